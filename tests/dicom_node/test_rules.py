import copy
from typing import Any

import pytest
from pydantic import ValidationError

from dicom_node.domain import Mode
from dicom_node.rules import ModelPolicy, Routing, find_disagreements
from doubles.studies import load_contrasts, load_policy, load_routing

RULE: dict[str, Any] = {
    "name": "brain",
    "says": "a brain has a T1w",
    "owner": "site",
    "mode": "send",
    "priority": 1,
    "anatomy": "BRAIN",
    "study": {"any_series": {"keyword": "Modality", "equals": "MR"}},
    "expects": [{"slot": "T1w"}],
    "makes": [{"target": "T1w", "sources": ["T2w"], "model": "m"}],
    "send_to": ["pacs"],
}


def make_routing(*changes: dict[str, Any]) -> Routing:
    return Routing.model_validate({"rules": [copy.deepcopy(RULE) | change for change in changes]})


def test_shipped_files_agree_with_one_another() -> None:
    found = list(
        find_disagreements(load_contrasts(), load_routing(), load_policy(), {"pacs"}, {"pacs"})
    )

    assert found == []


def test_shipped_rules_never_make_contrast_enhancement() -> None:
    targets = {make.target for rule in load_routing().rules for make in rule.makes}

    assert "T1c" not in targets
    assert "T1c" in load_policy().never_make


def test_rules_are_asked_by_priority_then_in_the_order_of_the_file() -> None:
    routing = make_routing(
        {"name": "low"}, {"name": "first", "priority": 9}, {"name": "second", "priority": 9}
    )

    assert [rule.name for rule in routing.in_order()] == ["first", "second", "low"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Brain MR"}, "name"),
        ({"mode": "on"}, "mode"),
        ({"priority": 101}, "priority"),
        ({"send_to": []}, "send_to with at least one peer"),
        ({"expects": [{"slot": "T1w"}, {"slot": "T1w"}]}, "T1w only once"),
        ({"expects": [{"slot": "T2w"}]}, "among the slots that it expects: T2w"),
        ({"makes": [{"target": "T1w", "sources": ["T1w"], "model": "m"}]}, "made from itself"),
        ({"makes": [{"target": "T1w", "sources": [], "model": "m"}]}, "at least 1 item"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_mistake_in_a_rule_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_routing(change)


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="two are named 'brain'"):
        make_routing({}, {})


@pytest.mark.parametrize(
    ("change", "peers", "location", "message"),
    [
        ({}, {"archive"}, ("send_to", 0), "'pacs' is no peer"),
        (
            {"expects": [{"slot": "T1w", "or_else": ["T9"]}]},
            {"pacs"},
            ("expects", 0, "or_else", 0),
            "seen 'T9', wanted a contrast",
        ),
        (
            {
                "expects": [{"slot": "T1c"}],
                "makes": [{"target": "T1c", "sources": ["T1w"], "model": "m"}],
            },
            {"pacs"},
            ("makes", 0, "target"),
            "T1c may never be made",
        ),
    ],
)
def test_name_that_another_file_does_not_know_is_told(
    change: dict[str, Any], peers: set[str], location: tuple[int | str, ...], message: str
) -> None:
    (found,) = find_disagreements(
        load_contrasts(), make_routing(change), load_policy(), peers, peers
    )

    assert (found.file, found.location) == ("routing.yaml", ("rules", 0, *location))
    assert message in found.says


def test_unknown_contrast_in_the_model_policy_is_told() -> None:
    policy = ModelPolicy(states=("approved",), never_make=("T7",))

    found = list(find_disagreements(load_contrasts(), make_routing({}), policy, {"pacs"}, set()))

    assert found == [
        ("models.yaml", ("never_make", 0), "seen 'T7', wanted a contrast of contrasts.yaml"),
    ]


def test_pet_example_is_off() -> None:
    modes = {rule.name: rule.mode for rule in load_routing().rules}

    assert modes["limb-mr-to-pet"] is Mode.OFF
