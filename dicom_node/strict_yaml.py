"""YAML read strictly: plain data, no key twice, and no word that turns into something else.

PyYAML's own safe loader keeps the last of two equal keys in silence, reads `no` as false, `010` as
8 and `12:30` as 750. Here the scalars are those of the YAML 1.2 core schema.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from dicom_node.errors import ConfigurationError

MAXIMUM_BYTES = 1_048_576
"""A configuration is written by hand; a longer one is a mistake or an attack."""


def read_yaml(text: bytes, name: str) -> Any:
    """Return the document of `text`; `name` is what messages call it.

    Raises:
        ConfigurationError: it is not one YAML document, is too long, or has a key twice.
    """
    if len(text) > MAXIMUM_BYTES:
        raise ConfigurationError(f"{name}: seen {len(text)} bytes, wanted at most {MAXIMUM_BYTES}")
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigurationError(f"{name}:{line} {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigurationError(f"{name}: seen bytes that are no text, wanted UTF-8") from None
    except RecursionError:
        raise ConfigurationError(f"{name}: seen endless nesting, wanted a few levels") from None


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
