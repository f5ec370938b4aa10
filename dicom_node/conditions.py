r"""Conditions of the YAML files: typed matches on DICOM keywords, data and never code.

A condition names a keyword (or several, whose values are pooled) and one operator, or joins other
conditions with `all_of`, `any_of`, `none_of`. An absent or empty attribute satisfies nothing but
`absent: true`, so that a silent header never counts as evidence; what is read of no header
(`readable`) cannot be named.

    {keyword: RepetitionTime, at_least: 300, at_most: 900}
    {keyword: [SeriesDescription, ProtocolName], has_word: [brain, head, kopf, "*mprage*"]}

Text is compared folded (see `fold`): case, accents and punctuation never decide. A study may hold
thousands of series, and each is held against hundreds of conditions: equal conditions are compiled
once, and a `Reading` remembers what it was asked.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cached_property, lru_cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from dicom_node.readable import READABLE

Scalar = str | int | float
_NUMBERS = (int, float)
_SEVERAL = (list, tuple)
"""Made once: a test runs a hundred times for each series, and `int | float` is made each time."""


def _read_scalar(value: object) -> Scalar:
    if isinstance(value, bool) or not isinstance(value, Scalar):
        raise ValueError("a text or a number")
    return value


def _read_keywords(value: object) -> tuple[object, ...]:
    """Return one keyword as a list of one: a union of both would tell one mistake twice."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise ValueError("a DICOM keyword, or a list of them")
    return tuple(value)


def _check_keyword(name: str) -> str:
    if name not in READABLE:
        near = get_close_matches(name, sorted(READABLE), n=1, cutoff=0)
        raise ValueError(f"a DICOM keyword that is read of every header; the nearest is {near[0]}")
    return name


_Value = Annotated[
    Scalar, PlainValidator(_read_scalar), WithJsonSchema({"type": ["string", "number"]})
]
_KEYWORD_SCHEMA: dict[str, Any] = {"type": "string", "enum": sorted(READABLE)}
_Keywords = Annotated[
    tuple[Annotated[str, AfterValidator(_check_keyword)], ...],
    BeforeValidator(_read_keywords),
    WithJsonSchema({"anyOf": [_KEYWORD_SCHEMA, {"type": "array", "items": _KEYWORD_SCHEMA}]}),
]

OPERATORS = (
    "equals",
    "one_of",
    "contains",
    "matches",
    "has_word",
    "at_least",
    "at_most",
    "absent",
)
JOINS = ("all_of", "any_of", "none_of")


def _tell_editors(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of a condition say what `Condition` checks of its keys together."""
    for about in schema["properties"].values():
        about["anyOf"] = [each for each in about["anyOf"] if each != {"type": "null"}]
    schema["oneOf"] = [
        *({"required": [name], "maxProperties": 1} for name in JOINS),
        *({"required": ["keyword", name], "maxProperties": 2} for name in OPERATORS),
        {"required": ["keyword", "at_least", "at_most"], "maxProperties": 3},
    ]


class Condition(BaseModel):
    """One match on a header, or a join of matches.

    Attributes:
        keyword: DICOM keyword, or keywords whose values are pooled.
        equals: the attribute has exactly this one value.
        one_of: at least one value of the attribute is in this list.
        contains: one value of a multi-valued attribute is this.
        matches: a regular expression found in the folded text of a value.
        has_word: whole words (or phrases) of the folded text; `*` stands for any letters.
        at_least: every value is a number not below this; may stand beside `at_most`.
        at_most: every value is a number not above this.
        absent: True when there is no value; False when there is one.
        all_of: every one of these conditions holds.
        any_of: at least one of these conditions holds.
        none_of: none of these conditions holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_tell_editors)

    keyword: _Keywords | None = None
    equals: _Value | None = None
    one_of: tuple[_Value, ...] | None = None
    contains: _Value | None = None
    matches: str | None = None
    has_word: tuple[str, ...] | None = None
    at_least: float | None = None
    at_most: float | None = None
    absent: bool | None = None
    all_of: tuple["Condition", ...] | None = Field(default=None, min_length=1)
    any_of: tuple["Condition", ...] | None = Field(default=None, min_length=1)
    none_of: tuple["Condition", ...] | None = Field(default=None, min_length=1)

    @field_validator("matches")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _says_one_thing(self) -> "Condition":
        for name in sorted(self.model_fields_set):
            if getattr(self, name) is None:
                raise ValueError(f"a value for {name}, or no such key")
        used = [name for name in OPERATORS + JOINS if getattr(self, name) is not None]
        if used != ["at_least", "at_most"] and len(used) != 1:
            raise ValueError(
                f"a condition needs exactly one of {', '.join(OPERATORS + JOINS)} "
                f"(at_least and at_most may stand together); seen: {', '.join(used) or 'none'}"
            )
        if (self.keyword is None) != (used[0] in JOINS):
            raise ValueError(
                "all_of, any_of and none_of take no keyword; every other operator needs one"
            )
        return self

    @cached_property
    def key(self) -> "_Key":
        """What equal conditions have in common."""
        used = tuple(name for name in OPERATORS + JOINS if getattr(self, name) is not None)
        operands = tuple(getattr(self, name) for name in used)
        if used[0] in JOINS:
            operands = tuple(part.key for part in operands[0])
        return self.keyword or (), used, operands

    @cached_property
    def test(self) -> "_Test":
        """What says whether a header satisfies this."""
        return _compile(self.key)


class Reading(dict[str, Any]):
    """A header that many conditions are held against: each thing is looked up once.

    Attributes:
        memo: joins that were judged.
    """

    __slots__ = ("_codes", "_values", "memo")

    def __init__(self, header: Mapping[str, Any]) -> None:
        super().__init__(header)
        self.memo: dict[_Test, bool] = {}
        self._values: dict[tuple[str, ...], list[Scalar]] = {}
        self._codes: dict[tuple[str, ...], frozenset[Scalar]] = {}

    def read(self, keywords: tuple[str, ...]) -> list[Scalar]:
        """Return the values of keywords, pooled, without empty ones."""
        found = self._values.get(keywords)
        if found is None:
            found = self._values[keywords] = read_values(self, keywords)
        return found

    def read_codes(self, keywords: tuple[str, ...]) -> frozenset[Scalar]:
        """Return the same as codes are compared: without case."""
        found = self._codes.get(keywords)
        if found is None:
            found = self._codes[keywords] = frozenset(map(_code, self.read(keywords)))
        return found


_Key = tuple[tuple[str, ...], tuple[str, ...], tuple[Any, ...]]
"""Keywords, operators and operands of a condition; operands of a join are the keys of its parts."""
_Test = Callable[[Reading], bool]


def matches(condition: Condition, header: Mapping[str, Any]) -> bool:
    """Return whether `header`, perhaps a `Reading`, satisfies `condition`."""
    return condition.test(header if isinstance(header, Reading) else Reading(header))


def read_values(header: Mapping[str, Any], keywords: str | Iterable[str]) -> list[Scalar]:
    """Return the values of one or more keywords as one list, without empty ones."""
    values: list[Scalar] = []
    for keyword in (keywords,) if isinstance(keywords, str) else keywords:
        value = header.get(keyword)
        if value is None or value == "":
            continue
        if isinstance(value, _SEVERAL):
            values.extend([item for item in value if item is not None and item != ""])
        else:
            values.append(value)
    return values


@lru_cache(maxsize=4096)
def fold(text: str) -> str:
    """Return `text` in lower case, without accents, its words apart by single spaces.

    `*` after a letter or digit is spelt out ("T2*w" becomes "t2star w") and `+` stays, before a
    space of its own ("T1+C" becomes "t1 +c"): they change what a series is.
    """
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    plain = re.sub(r"(?<=\w)\*", "star ", plain)
    plain = plain.replace("+", " +")
    return re.sub(r"[^\w+]+|_+", " ", plain).strip()


def find_word(words: tuple[str, ...], text: str) -> str | None:
    """Return which entry of `words` stands first in `text`, folded, as whole words, or None."""
    found = _words_pattern(words).search(fold(text)) if words else None
    return words[(found.lastindex or 1) - 1] if found else None


def drop_words(words: tuple[str, ...], text: str) -> str:
    """Return `text` folded and without `words`."""
    return _words_pattern(words).sub(" ", fold(text)) if words else fold(text)


@lru_cache(maxsize=8192)
def _compile(key: _Key) -> _Test:
    """Return the test of a condition; equal conditions have the same."""
    keywords, operators, operands = key
    if operators[0] in JOINS:
        return _compile_join(operators[0], tuple(map(_compile, operands)))
    if operators[0] == "absent":
        return lambda reading: operands[0] == (not reading.read(keywords))
    if operators[0] in {"at_least", "at_most"}:
        limits = dict(zip(operators, operands, strict=True))
        return _compile_range(
            keywords, limits.get("at_least", -math.inf), limits.get("at_most", math.inf)
        )
    return _compile_comparison(keywords, operators[0], operands[0])


def _compile_join(operator: str, tests: tuple[_Test, ...]) -> _Test:
    ends_at, otherwise = {
        "all_of": (False, True),
        "any_of": (True, False),
        "none_of": (True, True),
    }[operator]
    at_end = ends_at if operator != "none_of" else False

    def test(reading: Reading) -> bool:
        known = reading.memo.get(test)
        if known is not None:
            return known
        result = otherwise
        for part in tests:
            if part(reading) is ends_at:
                result = at_end
                break
        reading.memo[test] = result
        return result

    return test


def _compile_range(keywords: tuple[str, ...], low: float, high: float) -> _Test:
    def test(reading: Reading) -> bool:
        values = reading.read(keywords)
        return bool(values) and all(
            isinstance(value, _NUMBERS) and low <= value <= high for value in values
        )

    return test


def _compile_comparison(keywords: tuple[str, ...], operator: str, operand: Any) -> _Test:
    if operator == "matches":
        pattern = re.compile(operand)
        return lambda reading: any(pattern.search(fold(str(v))) for v in reading.read(keywords))
    if operator == "has_word":
        words = _words_pattern(operand)
        return lambda reading: any(words.search(fold(str(v))) for v in reading.read(keywords))
    codes = frozenset(map(_code, operand if operator == "one_of" else (operand,)))
    if operator == "equals":
        return lambda reading: (
            len(reading.read(keywords)) == 1 and reading.read_codes(keywords) == codes
        )
    return lambda reading: not codes.isdisjoint(reading.read_codes(keywords))


def _code(value: Scalar) -> Scalar:
    """Return what two values have in common that are the same: codes are compared without case."""
    return value.strip().casefold() if isinstance(value, str) else value


@lru_cache(maxsize=1024)
def _words_pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    parts = (re.escape(_fold_pattern(word)).replace(r"\*", r"\w*") for word in words)
    return re.compile(rf"(?<!\w)(?:{'|'.join(f'({part})' for part in parts)})(?!\w)")


def _fold_pattern(word: str) -> str:
    """Return a `has_word` entry folded, its `*` and the spaces beside them kept."""
    return re.sub(r"[^*]+", lambda part: _fold_part(part[0]), word)


def _fold_part(part: str) -> str:
    before, after = " " * part.startswith(" "), " " * part.endswith(" ")
    return f"{before}{fold(part)}{after}" if part.strip() else " "
