"""YAML read strictly: plain data, no key twice, no word that turns into something else, one type.

PyYAML's own safe loader keeps the last of two equal keys in silence, reads `no` as false, `010` as
8 and `12:30` as 750. Here the scalars are those of the YAML 1.2 core schema. A document keeps its
nodes, which know their lines, so that a mistake is told where it stands.
"""

import json
import re
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dicom_node.errors import ConfigurationError

MAXIMUM_BYTES = 1_048_576
"""A configuration is written by hand; a longer one is a mistake or an attack."""

OVERRIDE = "override"
"""What messages call a value that stands in no file, and so on no line."""

_SECRET = re.compile(r"://[^/\s]*@")
"""User and password in an address, which no message repeats."""

T = TypeVar("T", bound=BaseModel)
Location = Sequence[int | str]
"""Keys, and places in lists, from the top of a document to one of its values."""


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document, its nodes kept.

    Attributes:
        name: what messages call it.
        root: None for an empty document.
    """

    name: str
    root: yaml.Node | None

    def read(self) -> Any:
        """Return it as plain data.

        Raises:
            ConfigurationError: it has a key twice, or one that is no text.
        """
        with _Faults(self.name):
            return None if self.root is None else _StrictLoader("").construct_document(self.root)

    def check(self, kind: type[T]) -> T:
        """Return it as its type; strict as JSON is, so that nothing is converted silently.

        Raises:
            ConfigurationError: one line for each mistake: file, line, key, what was seen, what is
                wanted.
        """
        try:
            return kind.model_validate_json(json.dumps(self.read()), strict=True)
        except ValidationError as error:
            raise ConfigurationError("\n".join(self._describe_all(error, kind))) from None
        except (ValueError, RecursionError):
            raise ConfigurationError(
                f"{self.name}: seen an alias inside itself, wanted a tree"
            ) from None

    def override(self, key: str, text: str) -> None:
        """Set the value of a dotted key to `text`, which is YAML.

        Raises:
            ConfigurationError: `text` is no YAML, or the key is below a value.
        """
        mark = yaml.Mark(OVERRIDE, 0, 0, 0, None, 0)
        node = _compose(text.encode(), f"{OVERRIDE}: {key}")
        if node is None:
            node = yaml.ScalarNode("tag:yaml.org,2002:null", "", mark)
        for each in _walk(node):
            each.start_mark = mark
        *parents, last = key.split(".")
        here = self.root
        for parent in parents:
            below = _child(here, parent)
            if below is None and isinstance(here, yaml.MappingNode):
                below = yaml.MappingNode("tag:yaml.org,2002:map", [], mark)
                here.value.append((_text_node(parent, mark), below))
            here = below
        if not isinstance(here, yaml.MappingNode):
            raise ConfigurationError(
                f"{OVERRIDE}: {key} : seen a key below a value, wanted a setting"
            )
        here.value = [pair for pair in here.value if pair[0].value != last]
        here.value.append((_text_node(last, mark), node))

    def tell(self, location: Location, message: str) -> str:
        """Return `message` about the value at `location`, with file, line and key before it."""
        nodes = self._find(location)
        shown: list[str] = []
        for part, above, node in zip(location, nodes, nodes[1:], strict=False):
            name = _child(node, "name") if isinstance(above, yaml.SequenceNode) else None
            shown.append(str(part) if name is None else str(name.value))
        mark = self._find_mark(location)
        line = f" line {mark.line + 1}:" if mark and mark.name != OVERRIDE else ""
        return f"{self.name}:{line} {'.'.join(shown) or '(whole file)'} : {message}"

    def _describe_all(self, error: ValidationError, kind: type[BaseModel]) -> list[str]:
        """Return each mistake once: as its innermost part, and for all aliases of its anchor."""
        known = _list_keys(kind)
        found = error.errors(include_url=False)
        for each in found:
            each["loc"] = self._skip_kinds(each["loc"])
        wholes = {each["loc"][:k] for each in found for k in range(len(each["loc"]))}
        told: dict[tuple[int, int | str, str], str] = {}
        for each in found:
            location, said = each["loc"], each["msg"]
            if location not in wholes:
                line = self._describe(location, each["type"], each["input"], said, known)
                key = location[-1] if each["type"] == "missing" else ""
                told.setdefault((id(self._find(location)[-1]), key, said), line)
        return list(told.values())

    def _describe(
        self, location: Location, kind: str, seen: object, said: str, known: Collection[str]
    ) -> str:
        """Return one mistake as a line; a key that nobody knows with the `known` one like it."""
        if kind == "missing":
            *above, key = location
            told = self.tell(above, "seen nothing, wanted a value")
            place, _, message = told.rpartition(" : ")
            if not above:
                place = place.removesuffix(" (whole file)")
                return f"{place} {key} : {message}"
            return f"{place}.{key} : {message}"
        wanted = said.removeprefix("Value error, ").removeprefix("Input should be ")
        if kind == "extra_forbidden":
            near = get_close_matches(str(location[-1]), known, n=1)
            wanted = f"no such key; the nearest is {near[0]}" if near else "no such key"
        elif kind == "too_short":
            wanted = "at least one value"
        elif kind == "union_tag_invalid":
            wanted = f"as its kind one of {said.rpartition(': ')[2]}"
        elif seen is None and not location:
            return self.tell(location, "seen an empty file, wanted keys and values")
        elif kind == "value_error" and isinstance(seen, dict | list):
            return self.tell(location, f"wanted {wanted}")
        told = f"seen {_show(seen)}, wanted {wanted}"
        if seen is None and not location:
            told = "seen an empty file, wanted keys and values"
        elif kind == "value_error" and isinstance(seen, dict | list):
            told = f"wanted {wanted}"
        return self.tell(location, told)

    def _skip_kinds(self, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """Return `location` without the words that pydantic puts in to name a type."""
        node, keys = self.root, list[int | str]()
        for part in location[:-1]:
            below = _child(node, part)
            if below is None and isinstance(node, yaml.MappingNode):
                continue
            keys.append(part)
            node = below
        return (*keys, *location[-1:])

    def _find(self, location: Location) -> list[yaml.Node | None]:
        """Return the nodes on the way to `location`, as far as it goes."""
        nodes = [self.root]
        for part in location:
            node = _child(nodes[-1], part)
            if node is None:
                break
            nodes.append(node)
        return nodes

    def _find_mark(self, location: Location) -> yaml.Mark | None:
        """Return where the key of `location`, or the value where there is no key, stands."""
        nodes = self._find(location)
        if len(nodes) > 1 and isinstance(nodes[-2], yaml.MappingNode):
            for key, value in nodes[-2].value:
                if value is nodes[-1] and key.value == str(location[len(nodes) - 2]):
                    mark: yaml.Mark | None = key.start_mark
                    return mark
        last: yaml.Mark | None = None if nodes[-1] is None else nodes[-1].start_mark
        return last


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


def read_document(text: bytes, name: str) -> Document:
    """Return the document of `text`; `name` is what messages call it.

    Raises:
        ConfigurationError: it is not one YAML document, is too long, or has a key twice.
    """
    if len(text) > MAXIMUM_BYTES:
        raise ConfigurationError(f"{name}: seen {len(text)} bytes, wanted at most {MAXIMUM_BYTES}")
    document = Document(name, _compose(text, name))
    document.read()
    return document


def _compose(text: bytes, name: str) -> yaml.Node | None:
    with _Faults(name):
        return _StrictLoader(text).get_single_node()


class _Faults:
    """Tells every way in which text is no plain YAML as a `ConfigurationError`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        name = self._name
        if isinstance(error, yaml.MarkedYAMLError):
            mark = error.problem_mark
            line = f" line {mark.line + 1}:" if mark and mark.name != OVERRIDE else ""
            raise ConfigurationError(f"{name}:{line} {_reword(error)}") from None
        if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
            raise ConfigurationError(f"{name}: seen bytes that are no text, wanted UTF-8") from None
        if isinstance(error, RecursionError):
            raise ConfigurationError(f"{name}: seen endless nesting, wanted a few levels") from None


_PROBLEMS = (
    (r"found character '\\t'", "seen a tab, wanted spaces"),
    (
        r"mapping values are not allowed",
        "seen a second colon, or a key that is indented too far; wanted one key on a line, and a "
        "text with a colon in quotes",
    ),
    (
        r"expected <block end>",
        "seen a line that is indented unlike its neighbors, or that goes on behind a quote; wanted "
        "the same spaces before all keys of a section and all items of a list",
    ),
    (r"expected ',' or '\]'", "seen no end of the list from line {began}, wanted ]"),
    (r"expected ',' or '\}'", "seen no end of the section from line {began}, wanted }}"),
    (
        r"found unexpected end of stream",
        "seen no end of the text from line {began}, wanted a quote",
    ),
    (r"could not find expected ':'", "seen a line without a colon, wanted KEY: VALUE"),
)
"""What the parser says of mistakes that people make, to what they have to mend."""


def _list_keys(kind: type[BaseModel]) -> list[str]:
    """Return every key that a type and the types in it know."""
    waiting: list[Any] = [kind]
    seen: set[type[BaseModel]] = set()
    keys: set[str] = set()
    while waiting:
        each = waiting.pop()
        waiting += get_args(each)
        if isinstance(each, type) and issubclass(each, BaseModel) and each not in seen:
            seen.add(each)
            for name, field in each.model_fields.items():
                keys.add(field.alias or name)
                waiting.append(field.annotation)
    return sorted(keys)


def _reword(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong with text that is no YAML, in words of people."""
    problem = str(error.problem)
    began = error.context_mark.line + 1 if error.context_mark else 1
    for pattern, words in _PROBLEMS:
        if re.match(pattern, problem):
            return words.format(began=began)
    return problem


def _show(seen: object) -> str:
    if isinstance(seen, dict | list):
        kind = "section" if isinstance(seen, dict) else "list"
        return f"a {kind}" if seen else f"an empty {kind}"
    if isinstance(seen, str) and _SECRET.search(seen):
        return "an address with a secret"
    return json.dumps(seen)


def _child(node: yaml.Node | None, part: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.SequenceNode):
        is_place = isinstance(part, int) and part < len(node.value)
        return node.value[part] if is_place else None
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == str(part)), None)
    return None


def _walk(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield `node` and all below it, each once."""
    seen: dict[int, yaml.Node] = {}
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        if isinstance(each, yaml.MappingNode):
            waiting += [part for pair in each.value for part in pair]
        elif isinstance(each, yaml.SequenceNode):
            waiting += each.value
    yield from seen.values()


def _text_node(text: str, mark: yaml.Mark) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, mark)


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
