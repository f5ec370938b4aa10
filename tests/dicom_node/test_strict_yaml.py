import pytest
from pydantic import BaseModel, ConfigDict

from dicom_node.errors import ConfigurationError
from dicom_node.strict_yaml import MAXIMUM_BYTES, check_document, read_file, read_yaml


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    numbers: tuple[int, ...] = ()


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
        (b"a: [1", "node.yaml: line 1: "),
        (b"a: 1\n---\nb: 2", "node.yaml: line 2: "),
        (b"a: \xff", "seen bytes that are no text, wanted UTF-8"),
        (b"[" * 5000, "seen endless nesting, wanted a few levels"),
        (b"#" * (MAXIMUM_BYTES + 1), "seen 1048577 bytes, wanted at most 1048576"),
    ],
)
def test_text_that_is_no_plain_data_is_refused(text, message):
    with pytest.raises(ConfigurationError, match=message):
        read_yaml(text, "node.yaml")


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigurationError) as refused:
        check_document(Document, {"name": 3, "numbers": ["4", True], "nmae": "x"}, "node.yaml")

    assert str(refused.value).splitlines() == [
        "node.yaml: name : seen 3, wanted a valid string",
        'node.yaml: numbers.0 : seen "4", wanted a valid integer',
        "node.yaml: numbers.1 : seen true, wanted a valid integer",
        'node.yaml: nmae : seen "x", wanted no such key',
    ]


def test_missing_key_is_told():
    with pytest.raises(ConfigurationError, match=r"node.yaml: name : seen nothing, wanted a value"):
        check_document(Document, {}, "node.yaml")


def test_empty_file_is_told():
    with pytest.raises(ConfigurationError, match=r"node.yaml: \(whole file\) : seen null"):
        check_document(Document, read_yaml(b"# nothing", "node.yaml"), "node.yaml")


def test_alias_inside_itself_is_refused():
    document = read_yaml(b"name: x\nnumbers: &a [*a]", "node.yaml")

    with pytest.raises(ConfigurationError, match="alias inside itself"):
        check_document(Document, document, "node.yaml")


def test_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match=r"node.yaml: seen no readable file in .*No such"):
        read_file(tmp_path / "node.yaml")
