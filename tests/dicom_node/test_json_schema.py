"""What an editor is told of the configuration is what the node checks."""

import json
from pathlib import Path

import pytest

from dicom_node.json_schema import FOLDER, build_schemas, write_schemas
from dicom_node.settings import FILES
from doubles.studies import CONFIG


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
