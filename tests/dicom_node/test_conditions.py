import pytest
from pydantic import ValidationError

from dicom_node.conditions import Condition, drop_words, find_word, fold, matches

HEADER = {
    "Modality": "MR",
    "RepetitionTime": 500.0,
    "ImageType": ["ORIGINAL", "PRIMARY", "M"],
    "SeriesDescription": "Schädel T2*w_tra",
    "ProtocolName": "",
}


def holds(**condition: object) -> bool:
    return matches(Condition.model_validate(condition), HEADER)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"keyword": "Modality", "equals": "mr"}, True),
        ({"keyword": "ImageType", "equals": "ORIGINAL"}, False),
        ({"keyword": "ImageType", "contains": "primary"}, True),
        ({"keyword": "ImageType", "one_of": ["P", "M"]}, True),
        ({"keyword": "RepetitionTime", "at_least": 300, "at_most": 900}, True),
        ({"keyword": "RepetitionTime", "at_least": 501}, False),
        ({"keyword": "Modality", "at_least": 1}, False),
        ({"keyword": "SeriesDescription", "has_word": ["schadel"]}, True),
        ({"keyword": "SeriesDescription", "has_word": ["scha"]}, False),
        ({"keyword": "SeriesDescription", "has_word": ["scha*"]}, True),
        ({"keyword": "SeriesDescription", "matches": "t2star w"}, True),
        ({"keyword": ["ProtocolName", "SeriesDescription"], "has_word": ["tra"]}, True),
        ({"keyword": "ProtocolName", "absent": True}, True),
        ({"keyword": "EchoTime", "absent": False}, False),
        ({"none_of": [{"keyword": "EchoTime", "at_most": 30}]}, True),
        ({"all_of": [{"keyword": "Modality", "equals": "MR"}]}, True),
        ({"any_of": [{"keyword": "Modality", "equals": "CT"}]}, False),
    ],
)
def test_condition_holds_for_a_header(condition: dict[str, object], expected: bool) -> None:
    assert holds(**condition) is expected


@pytest.mark.parametrize("operator", [{"equals": 5}, {"at_least": 0}, {"one_of": [5]}])
def test_silent_header_satisfies_no_operator_but_absent(operator: dict[str, object]) -> None:
    assert not holds(keyword="FlipAngle", **operator)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"keyword": "Modality"}, "exactly one of"),
        ({"keyword": "Modality", "equals": "MR", "absent": True}, "seen: equals, absent"),
        ({"equals": "MR"}, "every other operator needs one"),
        ({"keyword": "Modality", "all_of": []}, "at least 1 item"),
        ({"keyword": "SeriesDescripton", "equals": "x"}, "nearest is SeriesDescription"),
        ({"keyword": "MagneticFieldStrengh", "at_least": 1}, "nearest is MagneticFieldStrength"),
        ({"keyword": "PatientName", "equals": "x"}, "a DICOM keyword that is read of every header"),
        ({"keyword": "Modality", "matches": "("}, "not a regular expression"),
        ({"keyword": "Modality", "equal": "MR"}, "Extra inputs"),
    ],
)
def test_mistake_is_told(condition: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Condition.model_validate(condition)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("T1+C", "t1 +c"),
        ("T2*", "t2star"),
        ("*ep_b1000#11", "ep b1000 11"),
        ("Tête  CRÂNE", "tete crane"),
        ("", ""),
    ],
)
def test_text_is_folded(text: str, folded: str) -> None:
    assert fold(text) == folded


def test_words_are_dropped_whole() -> None:
    assert find_word(("contrast",), drop_words(("w o contrast",), "T1 w/o contrast")) is None
    assert find_word(("contrast",), drop_words(("w o",), "T1 contrast")) == "contrast"


@pytest.mark.parametrize("text", ["Densité protonique", "densité de la protonique"])
def test_star_before_a_space_ends_its_word(text: str) -> None:
    found = find_word(("dens* proton*",), text)

    assert (found is not None) == (text == "Densité protonique")
