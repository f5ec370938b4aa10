"""YAML read strictly: plain data, no key twice, no word that turns into something else, one type.

PyYAML's own safe loader keeps the last of two equal keys in silence, reads `no` as false, `010` as
8 and `12:30` as 750. Here the scalars are those of the YAML 1.2 core schema.
"""

import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dicom_node.errors import ConfigurationError

MAXIMUM_BYTES = 1_048_576
"""A configuration is written by hand; a longer one is a mistake or an attack."""

T = TypeVar("T", bound=BaseModel)


def read_file(path: Path) -> bytes:
    """Return the bytes of a configuration file.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path.name}: seen no readable file in {path.parent} ({error.strerror}), wanted one"
        ) from None


def read_yaml(text: bytes, name: str) -> Any:
    """Return the document of `text`; `name` is what messages call it.

    Raises:
        ConfigurationError: it is not one YAML document, is too long, or has a key twice.
    """
    if len(text) > MAXIMUM_BYTES:
        raise ConfigurationError(f"{name}: seen {len(text)} bytes, wanted at most {MAXIMUM_BYTES}")
    try:
        return _StrictLoader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigurationError(f"{name}:{line} {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigurationError(f"{name}: seen bytes that are no text, wanted UTF-8") from None
    except RecursionError:
        raise ConfigurationError(f"{name}: seen endless nesting, wanted a few levels") from None


def check_document(kind: type[T], document: Any, name: str) -> T:
    """Return a document as its type; strict as JSON is, so that nothing is converted silently.

    Raises:
        ConfigurationError: one line for each mistake: file, key, what was seen, what is wanted.
    """
    try:
        return kind.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        lines = [
            _describe(name, each["loc"], each["type"], each["input"], each["msg"])
            for each in error.errors(include_url=False)
        ]
        raise ConfigurationError("\n".join(lines)) from None
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{name}: seen an alias inside itself, wanted a tree") from None


def _describe(name: str, location: Sequence[int | str], kind: str, seen: object, said: str) -> str:
    """Return one mistake as a line."""
    key = ".".join(str(part) for part in location) or "(whole file)"
    if kind == "missing":
        return f"{name}: {key} : seen nothing, wanted a value"
    wanted = said.removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "extra_forbidden":
        wanted = "no such key"
    shown = json.dumps(seen) if not isinstance(seen, dict | list) else "a whole section"
    return f"{name}: {key} : seen {shown}, wanted {wanted}"


_PLAIN_TAGS = {"null", "bool", "int", "float", "str", "seq", "map"}


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, which refuses a key that stands twice or is no text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    yaml_constructors = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _PLAIN_TAGS
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            problem = None
            if key.tag != "tag:yaml.org,2002:str":
                problem = f"seen the key {key.value!r}, wanted text; put it in quotes"
            elif key.value in seen:
                problem = f"seen the key {key.value!r} twice, wanted it once"
            if problem is not None:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
):
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )
