"""JSON Schemas of the configuration files, by which an editor completes keys and marks mistakes.

Made from the types that `settings` checks with; the descriptions are those of their docstrings.
`dicom-node schema` writes them, and a test keeps the written ones up to date. What a schema cannot
say (names that other files know) `dicom-node check` does.
"""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from dicom_node.node_settings import NODE_FILE, NodeSettings
from dicom_node.rules import (
    CONTRASTS_FILE,
    MODELS_FILE,
    ROUTING_FILE,
    Contrasts,
    ModelPolicy,
    Routing,
)

FOLDER = "schema"
"""Beside the files that they are of."""
TYPES: dict[str, type[BaseModel]] = {
    NODE_FILE: NodeSettings,
    CONTRASTS_FILE: Contrasts,
    ROUTING_FILE: Routing,
    MODELS_FILE: ModelPolicy,
}
_ATTRIBUTE = re.compile(r"^    (\w+): ((?:.+\n?)(?:^     +.+\n?)*)", re.MULTILINE)


class _Described(GenerateJsonSchema):
    """Describes each property in the words of its class; the files themselves show defaults."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        summary, attributes = _read_docstring(schema["cls"])
        found["description"] = summary
        for name, text in attributes.items():
            if name in found.get("properties", {}):
                found["properties"][name]["description"] = text
        return found


def write_schemas(folder: Path) -> list[Path]:
    """Write the schema of each configuration file into `folder`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in build_schemas():
        path = folder / name
        path.write_text(text)
        written.append(path)
    return written


def build_schemas() -> Iterator[tuple[str, str]]:
    """Yield the file name and the text of each schema."""
    for name, kind in TYPES.items():
        found = kind.model_json_schema(schema_generator=_Described)
        document: dict[str, Any] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **found,
            "title": name,
        }
        yield f"{Path(name).stem}.json", json.dumps(document, indent=1) + "\n"


def _read_docstring(kind: type) -> tuple[str, dict[str, str]]:
    """Return the summary of a class, and what its docstring says of each attribute."""
    text = inspect.getdoc(kind) or ""
    summary, _, rest = text.partition("\nAttributes:\n")
    attributes = {name: " ".join(said.split()) for name, said in _ATTRIBUTE.findall(rest + "\n")}
    return " ".join(summary.split()), attributes
