from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from dicom_node.errors import ConfigurationError
from dicom_node.strict_yaml import MAXIMUM_BYTES, read_document, read_file


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    count: int = 0


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    numbers: tuple[int, ...] = ()
    items: tuple[Item, ...] = ()
    more: dict[str, Item] = {}


def read_yaml(text: bytes, name: str) -> Any:
    return read_document(text, name).read()


def find_mistakes(text: str, **overrides: str) -> list[str]:
    document = read_document(text.encode(), "node.yaml")
    for key, value in overrides.items():
        document.override(key.replace("__", "."), value)
    with pytest.raises(ConfigurationError) as refused:
        document.check(Form)
    return str(refused.value).splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("ON", "ON"),
        ("010", "010"),
        ("12:30", "12:30"),
        ("2026-01-02", "2026-01-02"),
        ("0x10", "0x10"),
        ("true", True),
        ("-3", -3),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("~", None),
        ("", None),
    ],
)
def test_word_stays_what_it_looks_like(text, value):
    read = read_yaml(f"key: {text}".encode(), "node.yaml")["key"]

    assert read == value
    assert type(read) is type(value)


def test_alias_repeats_what_it_names():
    assert read_yaml(b"{a: &x [1], b: *x}", "node.yaml") == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: 1\nb: 2\na: 3", "node.yaml: line 3: seen the key 'a' twice, wanted it once"),
        (b"1: a", "node.yaml: line 1: seen the key '1', wanted text; put it in quotes"),
        (b"[a]: b", "node.yaml: line 1: .*wanted text"),
        (b"a: !!set {b}", "node.yaml: line 1: could not determine a constructor"),
        (b"!!python/object/apply:os.getcwd []", "line 1: could not determine a constructor"),
        (b"a: [1", "node.yaml: line 1: seen no end of the list from line 1, wanted ]"),
        (b"a: 1\nb: [1\nc: 2", "line 3: seen no end of the list from line 2, wanted ]"),
        (b"a: {b: 1\nc: 2\n", "seen no end of the section from line 1, wanted }"),
        (b'a: 1\nb: "2\nc: 3', "line 3: seen no end of the text from line 2, wanted a quote"),
        (b"a:\n    b: 1\n   c: 2", "line 3: seen a line that is indented unlike its neighbors"),
        (b"a:\n\tb: 1", "line 2: seen a tab, wanted spaces"),
        (b"a: note: b", "line 1: seen a second colon, or a key that is indented too far"),
        (b"a: 1\nb\nc: 2", "line 3: seen a line without a colon, wanted KEY: VALUE"),
        (b"a: 1\n---\nb: 2", "node.yaml: line 2: "),
        (b"a: \xff", "seen bytes that are no text, wanted UTF-8"),
        (b"[" * 5000, "seen endless nesting, wanted a few levels"),
        (b"#" * (MAXIMUM_BYTES + 1), "seen 1048577 bytes, wanted at most 1048576"),
    ],
)
def test_text_that_is_no_plain_data_is_refused(text, message):
    with pytest.raises(ConfigurationError, match=message):
        read_yaml(text, "node.yaml")


def test_all_mistakes_are_told_at_once_with_their_lines():
    text = "name: 3\nnumbers:\n  - '4'\n  - 5\n  - true\nnmae: x\n"

    assert find_mistakes(text) == [
        "node.yaml: line 1: name : seen 3, wanted a valid string",
        'node.yaml: line 3: numbers.0 : seen "4", wanted a valid integer',
        "node.yaml: line 5: numbers.2 : seen true, wanted a valid integer",
        'node.yaml: line 6: nmae : seen "x", wanted no such key; the nearest is name',
    ]


def test_item_of_a_list_is_called_by_its_name():
    text = "name: x\nitems:\n  - name: first\n  - name: second\n    count: many\n"

    assert find_mistakes(text) == [
        'node.yaml: line 5: items.second.count : seen "many", wanted a valid integer'
    ]


def test_mistake_that_aliases_repeat_is_told_once():
    text = "name: x\nmore:\n  a: &a {name: y, count: many}\n  b: *a\nitems: [*a]\n"

    assert [line.split(" : ")[0] for line in find_mistakes(text)] == [
        "node.yaml: line 3: items.y.count"
    ]


def test_missing_key_is_told_with_the_line_of_what_lacks_it():
    assert find_mistakes("numbers: []\nitems:\n  - count: 1\n") == [
        "node.yaml: line 1: name : seen nothing, wanted a value",
        "node.yaml: line 3: items.0.name : seen nothing, wanted a value",
    ]


def test_each_of_several_missing_keys_is_told():
    class Strict(BaseModel):
        one: str
        two: str

    with pytest.raises(ConfigurationError) as refused:
        read_document(b"{}", "node.yaml").check(Strict)

    assert [line.split(" : ")[0] for line in str(refused.value).splitlines()] == [
        "node.yaml: line 1: one",
        "node.yaml: line 1: two",
    ]


def test_mistake_of_an_override_has_no_line():
    assert find_mistakes("name: x\n", numbers="[seven]", more__a__count="1") == [
        'node.yaml: numbers.0 : seen "seven", wanted a valid integer',
        "node.yaml: more.a.name : seen nothing, wanted a value",
    ]


def test_override_goes_over_what_the_file_says():
    document = read_document(b"name: x\nitems: [{name: y}]\n", "node.yaml")

    document.override("name", "z")
    document.override("more.a", "{name: b}")

    assert document.check(Form) == Form(
        name="z", items=(Item(name="y"),), more={"a": Item(name="b")}
    )


def test_empty_file_is_told():
    assert find_mistakes("# nothing") == [
        "node.yaml: (whole file) : seen an empty file, wanted keys and values"
    ]


def test_alias_inside_itself_is_refused():
    document = read_document(b"name: x\nnumbers: &a [*a]", "node.yaml")

    with pytest.raises(ConfigurationError, match="alias inside itself"):
        document.check(Form)


def test_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match=r"node.yaml: seen no readable file in .*No such"):
        read_file(tmp_path / "node.yaml")


def test_password_in_an_address_is_not_repeated():
    (mistake,) = find_mistakes("name: a\nitems: [postgresql://node:hunter2@db/ledger]")

    assert mistake.startswith("node.yaml: line 2: items.0 : seen an address with a secret, wanted ")
