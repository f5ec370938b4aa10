"""Writes the references from what they are about, and looks for dead links in the documents.

    python -m reference            docs/commands.md, docs/configuration.md, config/schema/ and the
                                   layers in docs/architecture.md; then every link of every page
    python -m reference --check    the links alone

Commands come from the argument parsers, by Typer's own generator; keys from the types that check
them. Links to other hosts are not followed.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dicom_node.json_schema import FOLDER, TYPES, build_schemas, write_schemas
from dicom_node.value_types import Strict

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WRITTEN = "<!-- Written by `make docs`. Change what it is made of instead. -->\n\n"
COMMANDS = {"dicom-node": "dicom_node.cli", "synthesis": "synthesis.cli"}
LAYERS = re.compile(r"(<!-- layers -->\n).*?(<!-- end of layers -->\n)", re.DOTALL)
FENCE = re.compile(r"^( *)```.*?^\1```|^ {4,}\S.*?$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 0.001))
SIZES = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))
NAMED_PATTERNS = {"(ms|s|min|h|d)$": "duration", "(B|KiB|MiB|GiB)$": "size"}
WORDS_SHOWN = 8
"""A longer list of words, as that of all storage classes, is left to the schema."""


def write_all() -> None:
    """Write every page that is made of something else."""
    write_schemas(ROOT / "config" / FOLDER)
    for name, text in build_pages().items():
        (DOCS / name).write_text(text)


def build_pages() -> dict[str, str]:
    """Return the text of each page that is written here, by its name."""
    architecture = (DOCS / "architecture.md").read_text()
    layers = "\n".join(describe_layers())
    return {
        "commands.md": WRITTEN + "\n".join(map(describe_command, COMMANDS)),
        "configuration.md": WRITTEN + "\n".join(describe_configuration()),
        "architecture.md": LAYERS.sub(
            lambda found: f"{found[1]}\n{layers}\n\n{found[2]}", architecture
        ),
    }


def describe_command(name: str) -> str:
    """Return the reference of a command, as Typer writes it."""
    command = [sys.executable, "-m", "typer", COMMANDS[name], "utils", "docs", "--name", name]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def describe_configuration() -> Iterator[str]:
    """Yield the lines of the configuration reference, file by file, type by type."""
    types = {each.__name__: each for each in find_types(BaseModel)}
    yield "# Configuration: every key\n"
    yield "Made from the types that `dicom-node check` checks with. How the keys work together:"
    yield "[guide.md](guide.md) for `node.yaml`, [rules.md](rules.md) for the others. Durations are"
    yield "written `500 ms`, `30 s`, `15 min`, `72 h`, `7 d`; sizes `64 KiB`, `2 GiB`.\n"
    for file, (_, text) in zip(TYPES, build_schemas(), strict=True):
        schema = json.loads(text)
        stem = Path(file).stem
        yield f"## {file}\n"
        yield from describe_type(TYPES[file], schema, stem)
        for name, part in sorted(schema.get("$defs", {}).items()):
            yield f"### {stem}: {name}\n"
            if "properties" in part:
                yield from describe_type(types[name], part, stem)
            else:
                yield f"{part['description']} One of {list_words(part['enum'])}.\n"


def find_types(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield every type that has been imported, those of the configuration among them."""
    for kind in base.__subclasses__():
        yield kind
        yield from find_types(kind)


def describe_type(kind: type[BaseModel], schema: dict[str, Any], stem: str) -> Iterator[str]:
    """Yield what a mapping of the configuration is, and a row for each of its keys."""
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    yield f"{schema['description']}\n"
    yield "| key | value | default | what it is |"
    yield "|---|---|---|---|"
    for key, about in schema["properties"].items():
        cells = (describe_value(about, stem), describe_default(fields[key], about))
        yield f"| `{key}` | {' | '.join(cells)} | {about['description']} |"
    yield ""


def describe_value(about: dict[str, Any], stem: str) -> str:
    """Return in a few words which values a schema lets in."""
    kind, pattern = about.get("type", ""), about.get("pattern", "")
    for alternatives in (about.get("anyOf"), about.get("oneOf")):
        if alternatives:
            return " or ".join(describe_value(each, stem) for each in alternatives)
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        text = f"[{name}](#{stem}-{name.lower()})"
    elif "enum" in about or "const" in about:
        text = list_words(about.get("enum") or [about["const"]])
    elif kind == "array":
        text = f"list of {describe_value(about['items'], stem)}"
    elif kind == "object":
        values = [*about.get("patternProperties", {}).values(), about.get("additionalProperties")]
        text = f"names to {describe_value(values[0], stem)}"
    elif named := [word for end, word in NAMED_PATTERNS.items() if pattern.endswith(end)]:
        [text] = named
    elif about.keys() >= {"minimum", "maximum"}:
        text = f"{about['minimum']} to {about['maximum']}"
    else:
        text = about.get("format") or (kind if isinstance(kind, str) else " or ".join(kind))
    return text


def list_words(words: list[str]) -> str:
    """Return words as the reference shows them."""
    if len(words) > WORDS_SHOWN:
        return f"one of {len(words)} words"
    return ", ".join(f"`{word}`" for word in words)


def describe_default(field: FieldInfo, about: dict[str, Any]) -> str:
    """Return what a key is when it is left out, written as an admin would write it."""
    if field.is_required():
        return "required"
    if field.default_factory is not None and field.default_factory is not dict:
        return "by the machine"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None and "null" not in json.dumps(about):
        return "left out"
    if isinstance(value, Strict):
        return ", ".join(f"`{key}: {each}`" for key, each in value if key == "kind") or "its own"
    return f"`{write_value(value, about)}`"


def write_value(value: object, about: dict[str, Any]) -> str:
    """Return a default as YAML."""
    if isinstance(value, timedelta):
        return scale(value.total_seconds(), UNITS)
    if isinstance(value, int) and describe_value(about, "") == "size":
        return scale(value, SIZES)
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple | frozenset):
        return f"[{', '.join(str(getattr(each, 'value', each)) for each in value)}]"
    return json.dumps(value) if value is None or isinstance(value, bool | dict) else str(value)


def scale(number: float, units: tuple[tuple[str, float], ...]) -> str:
    """Return a number with the largest unit of which it is a whole multiple."""
    unit, size = next(each for each in units if number % each[1] == 0 or each is units[-1])
    return f"{number / size:g} {unit}"


def describe_layers() -> Iterator[str]:
    """Yield the modules of both packages from the top down, with what each says that it does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    for contract in (each for each in contracts if each["type"] == "layers"):
        [package] = contract["containers"]
        yield from ("", f"| `{package}` | does |", "|---|---|")
        for layer in contract["layers"]:
            for module in layer.split(" | "):
                yield f"| `{module}` | {read_summary(ROOT / package / module)} |"
            yield "| | |"


def read_summary(module: Path) -> str:
    """Return the first line of a module's docstring."""
    file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()[0].replace("|", "/")


def find_dead_links() -> Iterator[str]:
    """Yield each link of the documents that leads to no file, or to no heading in it."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]:
        for link in LINK.findall(FENCE.sub("", page.read_text())):
            if "://" in link or link.startswith("mailto:"):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in read_anchors(target)):
                yield f"{page.relative_to(ROOT)}: {link}"


def read_anchors(page: Path) -> set[str]:
    """Return the anchors that a forge gives to the headings of a page."""
    anchors: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text())):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchors.add(slug if slug not in anchors else f"{slug}-1")
    return anchors


def main(arguments: list[str]) -> int:
    """Write the pages unless told otherwise, and return 1 if a link is dead."""
    if arguments != ["--check"]:
        write_all()
    dead = list(find_dead_links())
    sys.stderr.writelines(f"dead link: {each}\n" for each in dead)
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
