"""What an editor is told of the configuration is what the node checks."""

import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from dicom_node.json_schema import FOLDER, TYPES, build_schemas, write_schemas
from dicom_node.settings import FILES
from dicom_node.strict_yaml import read_document
from doubles.studies import CONFIG

CASES = 100
"""Spoilt documents of each file that are tried; which, a fixed seed decides."""

VALUES = (None, True, 5, -1, 0.5, 10**9, "surprise", "", [], ["surprise"], {}, {"surprise": 1})
"""What is put in the place of any value."""

BEYOND_A_SCHEMA = (
    *("among the slots that it expects", "is no contrast here", ", because ", "the states of"),
    *("would be made from itself", "two are named", "only once under"),
)
"""Mistakes that lie between two places of a document."""


def test_committed_schemas_are_those_of_the_types(tmp_path: Path) -> None:
    written = {path.name: path.read_text() for path in write_schemas(tmp_path)}
    committed = {path.name: path.read_text() for path in (CONFIG / FOLDER).iterdir()}

    assert committed == written, "run `dicom-node schema config/schema` and commit what it wrote"


@pytest.mark.parametrize("name", FILES)
def test_each_file_names_its_schema(name: str) -> None:
    first = (CONFIG / name).read_text().splitlines()[0]

    assert first == f"# yaml-language-server: $schema={FOLDER}/{Path(name).stem}.json"
    assert (CONFIG / FOLDER / f"{Path(name).stem}.json").is_file()


def test_each_key_is_described_and_unknown_ones_are_mistakes() -> None:
    for name, text in build_schemas():
        document = json.loads(text)
        objects = [document, *document.get("$defs", {}).values()]
        for each in objects:
            if "properties" in each:
                assert each["additionalProperties"] is False
                bare = [
                    key for key, about in each["properties"].items() if not about.get("description")
                ]
                assert bare == [], f"{name}: {each['title']}"


def test_editor_is_told_words_and_ranges() -> None:
    schemas = {name: json.loads(text) for name, text in build_schemas()}
    rules, node = schemas["routing.json"]["$defs"], schemas["node.json"]["$defs"]

    assert rules["Ask"]["properties"]["when_silent"]["enum"] == ["wait", "go_on", "hold"]
    assert rules["Rule"]["properties"]["priority"]["maximum"] == 100
    assert "ms|s|min|h|d" in node["Query"]["properties"]["answer"]["pattern"]
    assert rules["Make"]["required"] == ["target", "sources", "model"]


def find_places(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys down to every value of a document."""
    pairs: Any = ()
    if isinstance(document, dict):
        pairs = document.items()
    elif isinstance(document, list):
        pairs = enumerate(document)
    for key, value in pairs:
        yield (*above, key)
        yield from find_places(value, (*above, key))


def spoil(document: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    spoilt = deepcopy(document)
    here = spoilt
    for key in place[:-1]:
        here = here[key]
    change(here, place[-1])
    return spoilt


def put(value: Any) -> Callable[[Any, Any], None]:
    return lambda here, key: here.__setitem__(key, deepcopy(value))


def misspell(here: Any, key: Any) -> None:
    if isinstance(here, dict):
        here[f"{key}x"] = here.pop(key)
    else:
        here.append("surprise")


CHANGES = (*map(put, VALUES), lambda here, key: here.__delitem__(key), misspell)


@pytest.mark.parametrize("name", FILES)
def test_editor_marks_what_the_check_tells_and_nothing_else(name: str) -> None:
    document = read_document((CONFIG / name).read_bytes(), name).read()
    schema = json.loads(dict(build_schemas())[f"{Path(name).stem}.json"])
    formats = Draft202012Validator.FORMAT_CHECKER
    editor = Draft202012Validator(schema, format_checker=formats)
    cases = [(place, change) for place in find_places(document) for change in CHANGES]
    assert editor.is_valid(document)

    for place, change in random.Random(0).sample(cases, min(CASES, len(cases))):
        spoilt = spoil(document, place, change)
        try:
            TYPES[name].model_validate_json(json.dumps(spoilt), strict=True)
            told = []
        except ValidationError as error:
            told = [each["msg"] for each in error.errors()]
        if not any(words in each for each in told for words in BEYOND_A_SCHEMA):
            assert editor.is_valid(spoilt) == (not told), f"{name}: {place}: {told}"
