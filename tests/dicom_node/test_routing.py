import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.domain import Instance, Mode, SlotState, Study, SynthesisPlan
from dicom_node.rules import ModelPolicy, Routing
from doubles.models import write_copying_model
from doubles.studies import (
    ACQUISITIONS,
    BRAIN,
    CARDS,
    DIGEST,
    LIMB_CARD,
    NOW,
    acquire,
    decide,
    label_study,
    load_routing,
    make_card,
    make_instance,
    make_judge,
    make_series,
)
from synthesis.registry import CARD, FALSE_LESIONS, LESION_RECALL, load_cards

RULE = "brain-mr-complete"
BUSY_MACHINE = 5
"""How much longer a step may take on a machine that does other things, too."""


def find_states(instances: list[Instance]) -> dict[str, SlotState]:
    return dict(decide(instances).slots[RULE])


def find_plans(instances: list[Instance], **changes: object) -> dict[str, SynthesisPlan]:
    return {plan.target: plan for plan in decide(instances, **changes).plans}


def find_refusals(instances: list[Instance], **changes: object) -> dict[str, str]:
    return {refusal.target: refusal.code for refusal in decide(instances, **changes).refusals}


def change_rule(**changes: object) -> Routing:
    rule, *others = load_routing().rules
    document = rule.model_dump(mode="json", exclude_none=True) | changes
    return Routing.model_validate(
        {"rules": [document, *(each.model_dump(mode="json", exclude_none=True) for each in others)]}
    )


def break_series(instances: list[Instance], uid: str) -> list[Instance]:
    """Return the study with a slice of one of its series missing."""
    return [each for each in instances if each.sop_instance_uid != f"{uid}.7"]


@pytest.mark.parametrize(
    ("held", "made"),
    [
        (["T1w", "T2w", "FLAIR"], {}),
        (["T1w", "T2w"], {"FLAIR": ["T2w", "T1w"]}),
        (["T1w", "FLAIR"], {"T2w": ["FLAIR", "T1w"]}),
        (["T2w", "FLAIR"], {"T1w": ["T2w", "FLAIR"]}),
        (["T1w"], {"T2w": ["T1w"], "FLAIR": ["T1w"]}),
        (["T1c", "FLAIR"], {"T1w": ["T1c", "FLAIR"], "T2w": ["FLAIR", "T1c"]}),
        (["T1c"], {"T1w": ["T1c"], "T2w": ["T1c"], "FLAIR": ["T1c"]}),
        (["T1w", "T2w", "DWI"], {"FLAIR": ["T2w", "T1w"]}),
        (["DWI"], {}),
    ],
)
def test_missing_contrasts_of_a_brain_are_made_from_those_that_are_there(
    held: list[str], made: dict[str, list[str]]
) -> None:
    plans = find_plans(acquire(*held, **BRAIN))

    assert {target: list(plan.sources) for target, plan in plans.items()} == made


def test_post_contrast_t1_and_t2_flair_lack_t1w_and_t2w() -> None:
    descriptions = ["AX T1 POST GD", "AX T2 FLAIR"]
    instances = [
        instance
        for number, text in enumerate(descriptions, 1)
        for instance in make_series(f"1.{number}", SeriesDescription=text, **BRAIN)
    ]

    assert find_states(instances) == {
        "T1w": SlotState.MISSING,
        "T2w": SlotState.MISSING,
        "FLAIR": SlotState.PRESENT,
        "T1c": SlotState.PRESENT,
    }


@pytest.mark.parametrize(
    "facts",
    [
        {"BodyPartExamined": "HEAD"},
        {"StudyDescription": "MRT Schädel nativ"},
        {"ProtocolName": "BRAIN ROUTINE"},
        {"StudyDescription": "IRM cérébrale"},
        {"BodyPartExamined": "UNKNOWN", "StudyDescription": "Neuro"},
        {"SeriesDescription": "mocoMEMPRAGE_220FOV RMS", "MRAcquisitionType": "3D"},
    ],
)
def test_brain_rule_finds_a_brain(facts: dict[str, object]) -> None:
    assert RULE in decide(acquire("T2w", **facts)).slots


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"BodyPartExamined": "KNEE"},
        {"BodyPartExamined": "HIP", "SeriesDescription": "T1 femoral head"},
        {"StudyDescription": "MR head and neck"},
        {"StudyDescription": "femoral head"},
        {"Modality": "CT", "BodyPartExamined": "HEAD"},
    ],
)
def test_brain_rule_leaves_other_studies_alone(facts: dict[str, object]) -> None:
    decision = decide(acquire("T2w", **facts))

    assert decision.slots == {}
    assert decision.plans == ()
    assert all(match.reasons for match in decision.rules)


def test_spine_beside_the_brain_fills_no_slot() -> None:
    brain = acquire("T1w", **BRAIN)
    spine = make_series("2.1", SeriesDescription="C-SPINE T2 SAG", BodyPartExamined="SPINE")

    assert find_states(brain + spine)["T2w"] is SlotState.MISSING


def test_series_that_is_broken_makes_its_slot_incomplete_and_nothing_is_made_for_it() -> None:
    instances = break_series(acquire("T1w", "T2w", "FLAIR", **BRAIN), "1.2")

    assert find_states(instances)["T2w"] is SlotState.INCOMPLETE
    assert find_refusals(instances) == {"T2w": "slot_incomplete"}


def test_series_that_nobody_can_label_makes_slots_ambiguous() -> None:
    instances = acquire("T1w", "T2w", "unknown", **BRAIN)

    assert find_states(instances)["FLAIR"] is SlotState.AMBIGUOUS
    assert find_refusals(instances) == {"FLAIR": "slot_ambiguous"}


def test_rule_may_say_that_an_ambiguous_slot_is_filled() -> None:
    rule = load_routing().rules[0].model_dump(mode="json", exclude_none=True)
    makes = [{**make, "when": ["missing", "ambiguous"]} for make in rule["makes"]]

    plans = find_plans(acquire("T1w", "T2w", "unknown", **BRAIN), routing=change_rule(makes=makes))

    assert set(plans) == {"FLAIR"}


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, SlotState.INCOMPLETE),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, SlotState.INCOMPLETE),
        ({"SeriesDescription": "SyMRI FLAIR"}, SlotState.MISSING),
        ({"SyntheticData": "YES"}, SlotState.MISSING),
        ({"SeriesDescription": "AI SYNTH FLAIR"}, SlotState.MISSING),
    ],
)
def test_derived_series_fills_no_slot(facts: dict[str, Any], state: SlotState) -> None:
    flair = {"ScanningSequence": ["IR"], "AcquisitionContrast": "FLUID_ATTENUATED"}
    instances = acquire("T1w", "T2w", **BRAIN) + make_series("3.1", **flair, **facts, **BRAIN)

    assert find_states(instances)["FLAIR"] is state


def test_our_own_output_is_no_source() -> None:
    own = make_series("3.1", SeriesDescription="AI SYNTH T2w", **BRAIN)
    instances = acquire("FLAIR", **BRAIN) + own

    plans = find_plans(instances)

    assert all("T2w" not in plan.sources for plan in plans.values())


def test_two_nodes_that_feed_each_other_make_each_contrast_once() -> None:
    held = acquire("T1w", "T2w", **BRAIN)
    (first,) = decide(held).plans
    # What the other node sends has its creator's UID, and says what it is; here twice over.
    theirs = [
        instance
        for number in range(2)
        for instance in make_series(
            f"8.{number}",
            SeriesDescription="FLAIR",
            SyntheticData="YES",
            InstanceCreatorUID=f"2.25.{number}",
            ImageType=["DERIVED", "SECONDARY"],
            **BRAIN,
        )
    ]

    (again,) = decide(held + theirs).plans

    assert again.plan_id == first.plan_id
    assert again.source_instances == first.source_instances


def test_own_output_alone_matches_no_rule() -> None:
    own = make_series("3.1", SeriesDescription="AI SYNTH T2w", **BRAIN)

    assert decide(own).slots == {}


def test_limb_without_ct_gets_one() -> None:
    instances = acquire("T1w", BodyPartExamined="EXTREMITY")

    (plan,) = decide(instances).plans

    assert (plan.target, plan.target_modality, plan.anatomy) == ("CT", "CT", "EXTREMITY")
    assert plan.model_id == "limb-ct-boosting"


def test_limb_with_ct_gets_none() -> None:
    assert decide(acquire("T1w", "CT", BodyPartExamined="EXTREMITY")).plans == ()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cards": ()}, "no_model"),
        ({"cards": (make_card(anatomy=["LEG"]),)}, "model_anatomy"),
        ({"cards": (make_card(targets={"T1w": "approved"}),)}, "model_target"),
        ({"cards": (make_card(targets={"FLAIR": "research"}),)}, "model_not_approved"),
        ({"cards": (make_card(targets={"FLAIR": "retired"}),)}, "model_not_approved"),
        ({"cards": (make_card(sources=["PDw"]),)}, "no_source"),
        ({"cards": (make_card(required=["T1c"]),)}, "no_source"),
        (
            {"policy": ModelPolicy(states=("approved",), digests={"brain-any-unet25d": "e" * 64})},
            "model_not_pinned",
        ),
        ({"policy": ModelPolicy(states=("approved",), never_make=("FLAIR",))}, "never_made"),
    ],
)
def test_gap_that_is_not_filled_has_a_reason(changes: dict[str, object], code: str) -> None:
    decision = decide(acquire("T1w", "T2w", **BRAIN), **changes)

    assert [refusal.code for refusal in decision.refusals] == [code]
    assert decision.plans == ()
    assert decision.refusals[0].reason


def test_unusable_source_is_named_in_the_refusal() -> None:
    instances = break_series(acquire("T1w", BodyPartExamined="LEG"), "1.1")

    (refusal,) = decide(instances).refusals

    assert refusal.code == "source_unusable"
    assert "slice_gap" in refusal.reason


@pytest.mark.parametrize("recall", [0.89, 0.9])
def test_generative_model_that_loses_lesions_sends_nothing(tmp_path: Path, recall: float) -> None:
    """The card says `approved`; its figure decides."""
    write_copying_model(tmp_path)
    path = tmp_path / "brain-any-unet25d" / CARD
    figure = {"target": "FLAIR", "sources": ["T1w"], "n": 1, "subjects": ["somebody"]}
    metrics = [
        {**figure, "name": LESION_RECALL, "value": recall},
        {**figure, "name": FALSE_LESIONS, "value": 0.0},
    ]
    facts = yaml.safe_load(path.read_text()) | {"method": "gan", "metrics": metrics}
    path.write_text(yaml.safe_dump(facts))

    decision = decide(acquire("T1w", "T2w", **BRAIN), cards=tuple(load_cards(tmp_path)))

    assert [plan.target for plan in decision.plans] == (["FLAIR"] if recall >= 0.9 else [])
    if recall < 0.9:
        assert [refusal.code for refusal in decision.refusals] == ["model_not_approved"]
        assert "keeps 89% of lesions (wanted 90%)" in decision.refusals[0].reason


def test_research_target_is_made_where_the_site_says_so() -> None:
    cards = (make_card(targets={"FLAIR": "research"}),)
    policy = ModelPolicy(states=("approved", "research"))

    assert set(find_plans(acquire("T1w", "T2w", **BRAIN), cards=cards, policy=policy)) == {"FLAIR"}


def test_rule_that_is_off_does_nothing() -> None:
    decision = decide(acquire("T1w", **BRAIN), routing=change_rule(mode="off"))

    assert decision.plans == ()
    assert decision.rules[0].reasons == ("its mode is off",)


def test_plan_carries_its_rule() -> None:
    plan = find_plans(acquire("T1w", "T2w", **BRAIN))["FLAIR"]

    assert plan.mode is Mode.SEND
    assert plan.deliver_to == ("pacs",)
    assert plan.model_digest == DIGEST
    assert plan.created_at == NOW
    assert RULE in plan.rule_reason
    assert len(plan.source_instances) == 48


def test_two_rules_that_want_one_target_make_it_once() -> None:
    rule = load_routing().rules[0].model_dump(mode="json", exclude_none=True)
    routing = Routing.model_validate(
        {"rules": [{**rule, "name": "second", "priority": 1}, {**rule, "name": "first"}]}
    )

    decision = decide(acquire("T1w", "T2w", **BRAIN), routing=routing)

    assert [plan.rule for plan in decision.plans] == ["first"]
    assert [(each.rule, each.code) for each in decision.refusals] == [("second", "other_rule")]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"MRAcquisitionType": "3D"}, {"MRAcquisitionType": "2D"}),
        ({"step": 1.0, "slices": 120}, {"step": 5.0}),
        ({"slices": 24}, {"slices": 20}),
        ({"SeriesNumber": 9.0}, {"SeriesNumber": 2.0}),
        ({"step": 5.0, "slices": 24}, {"step": 1.0, "slices": 20, "MRAcquisitionType": "3D"}),
    ],
)
@pytest.mark.parametrize("order", [("1.1", "1.2"), ("1.2", "1.1")])
def test_best_of_several_series_is_the_source(
    better: dict[str, Any], worse: dict[str, Any], order: tuple[str, str]
) -> None:
    instances = [
        *make_series(order[0], **{"SeriesDescription": "T1", **BRAIN, **better}),
        *make_series(order[1], **{"SeriesDescription": "T1", **BRAIN, **worse}),
    ]

    plan = find_plans(instances)["FLAIR"]

    assert plan.sources == {"T1w": order[0]}
    assert "best of 2" in plan.rule_reason


def test_broken_repeat_does_not_hide_the_good_one() -> None:
    good = make_series("1.1", SeriesDescription="T1", SeriesNumber=1.0, **BRAIN)
    broken = make_series("1.2", SeriesDescription="T1", SeriesNumber=2.0, **BRAIN)

    plan = find_plans([*good, *break_series(broken, "1.2")])["FLAIR"]

    assert plan.sources == {"T1w": "1.1"}


def test_two_sources_in_one_series_are_not_used_together() -> None:
    echoes = [
        instance
        for number, (text, echo) in enumerate([("T2w", 100.0), ("FLAIR", 120.0)])
        for instance in (
            make_instance(
                f"{number}.{k}", {**(each.header or {}), "SeriesDescription": text}, series="1.1"
            )
            for k, each in enumerate(make_series("1.1", EchoTime=echo, **BRAIN))
        )
    ]

    plan = find_plans(echoes)["T1w"]

    assert list(plan.sources) == ["T2w"]
    assert len(plan.source_instances) == 24


def test_plan_id_depends_on_what_enters_the_pixels_only() -> None:
    instances = acquire("T1w", "T2w", **BRAIN)
    plan_id = find_plans(instances)["FLAIR"].plan_id

    assert find_plans(instances, config_digest="f" * 64)["FLAIR"].plan_id == plan_id
    routing = change_rule(priority=1, mode="hold")
    assert find_plans(instances, routing=routing)["FLAIR"].plan_id == plan_id


@pytest.mark.parametrize(
    "changes",
    [
        {"cards": (make_card(digest="e" * 64),)},
        {"policy": ModelPolicy(states=("approved",), seed=5)},
    ],
)
def test_plan_id_changes_with_model_and_seed(changes: dict[str, object]) -> None:
    instances = acquire("T1w", "T2w", **BRAIN)

    plans = find_plans(instances), find_plans(instances, **changes)

    assert plans[0]["FLAIR"].plan_id != plans[1]["FLAIR"].plan_id


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([("T1w",), ("T1w", "T2w", "unknown")]))
def test_order_of_arrival_never_changes_the_decision(random: Any, names: tuple[str, ...]) -> None:
    instances = acquire(*names, **BRAIN) + make_series("2.1", SeriesDescription="T1", **BRAIN)
    shuffled = list(instances)
    random.shuffle(shuffled)

    assert decide(shuffled) == decide(instances)


@pytest.mark.parametrize(
    ("series", "slices", "seconds"), [(50, 1, 0.05), (50, 30, 0.05), (5000, 1, 2.0)]
)
def test_study_is_labelled_and_judged_in_no_longer_than_it_may(
    series: int, slices: int, seconds: float
) -> None:
    kinds = list(ACQUISITIONS.values())
    instances = [
        instance
        for k in range(series)
        for instance in make_series(
            f"2.{k}",
            slices=slices,
            **{**kinds[k % len(kinds)], **BRAIN, "SeriesDescription": f"series {k}"},
        )
    ]
    judge = make_judge()
    judge.judge(label_study(instances[:slices]), NOW)  # compiles the conditions, once in a process

    start = time.process_time()
    study: Study = label_study(instances)
    decision = judge.judge(study, NOW)
    spent = time.process_time() - start

    assert decision.slots
    assert spent < BUSY_MACHINE * seconds


def test_shipped_models_are_named_by_shipped_rules() -> None:
    named = {
        model
        for rule in load_routing().rules
        if rule.mode is not Mode.OFF
        for make in rule.makes
        for model in make.model
    }

    assert named == {card.id for card in CARDS}
    assert LIMB_CARD.id in named


def find_shadow_plans(instances: list[Instance], **changes: Any) -> dict[str, SynthesisPlan]:
    return find_plans(instances, routing=change_rule(mode="shadow", **changes))


def test_shadow_mode_also_makes_what_is_there_from_the_others() -> None:
    plans = find_shadow_plans(acquire("T1w", "T2w", "FLAIR", **BRAIN))

    assert {target: list(plan.sources) for target, plan in plans.items()} == {
        "T1w": ["T2w", "FLAIR"],
        "T2w": ["FLAIR", "T1w"],
        "FLAIR": ["T2w", "T1w"],
    }
    for plan in plans.values():
        assert plan.truth is not None
        assert plan.truth not in plan.sources.values()
        assert not set(plan.truth_instances) & set(plan.source_instances)
        assert plan.deliver_to == ()


def test_what_is_missing_is_compared_with_nothing_in_shadow_mode() -> None:
    plans = find_shadow_plans(acquire("T1w", "T2w", **BRAIN))

    assert plans["FLAIR"].truth is None
    assert {target for target, plan in plans.items() if plan.truth} == {"T1w", "T2w"}


@pytest.mark.parametrize("mode", ["hold", "send"])
def test_what_is_there_is_made_in_no_other_mode(mode: str) -> None:
    plans = find_plans(acquire("T1w", "T2w", "FLAIR", **BRAIN), routing=change_rule(mode=mode))

    assert plans == {}


def test_synthetic_series_is_never_what_a_result_is_compared_with() -> None:
    held = acquire("T1w", "T2w", "FLAIR", **BRAIN)
    flair = held[-1].series_instance_uid
    told = [
        replace(each, header={**(each.header or {}), "SyntheticData": "YES"})
        if each.series_instance_uid == flair
        else each
        for each in held
    ]

    plans = find_shadow_plans(told)

    assert plans["FLAIR"].truth is None


def test_study_with_one_contrast_only_gives_no_comparison_and_no_refusal() -> None:
    decision = decide(acquire("T1w", **BRAIN), routing=change_rule(mode="shadow"))

    assert "T1w" not in {plan.target for plan in decision.plans}
    assert "T1w" not in {each.target for each in decision.refusals}


def test_comparison_has_another_plan_than_the_gap_before_it() -> None:
    before = find_shadow_plans(acquire("T1w", "T2w", **BRAIN))["FLAIR"]
    after = find_shadow_plans(acquire("T1w", "T2w", "FLAIR", **BRAIN))["FLAIR"]

    assert before.sources == after.sources
    assert before.plan_id != after.plan_id


def test_result_is_not_compared_with_the_other_side_of_the_body() -> None:
    held = [
        replace(each, header={**(each.header or {}), "Laterality": side})
        for name, uid, side in (("T1w", "1", "L"), ("T2w", "2", "L"), ("FLAIR", "3", "R"))
        for each in make_series(f"1.{uid}", slices=24, **{**ACQUISITIONS[name], **BRAIN})
    ]

    assert find_shadow_plans(held) == {}
