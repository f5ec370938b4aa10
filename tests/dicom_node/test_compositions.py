"""The table of studies in compositions.yaml, and that neither order nor repetition changes it."""

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node import assembly
from dicom_node.assembly import find_hold
from dicom_node.domain import Instance
from dicom_node.jobs import JobState
from dicom_node.ledger import Ledger
from dicom_node.routing import Judge
from dicom_node.rules import ModelPolicy, Routing
from dicom_node.settings import Configuration, load
from dicom_node.store import Store
from doubles.ledger import Clock
from doubles.studies import (
    ACQUISITIONS,
    BRAIN,
    CARDS,
    CONFIG,
    LIMB_CARD,
    NOW,
    label_study,
    load_policy,
    load_routing,
    make_card,
    make_judge,
    make_series,
)

TABLE = Path(__file__).with_name("compositions.yaml")
STATES = ("present", "missing", "incomplete", "ambiguous")
ROWS: list[dict[str, Any]] = yaml.safe_load(TABLE.read_text())
QUIET = timedelta(seconds=61)


def build_series(number: int, series: str | Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    changes = dict(series) if isinstance(series, Mapping) else {"of": series}
    name, lost = changes.pop("of"), changes.pop("lost", [])
    direction = changes.pop("direction", [0, 0, 1])
    step = changes.pop("step", 5.0)
    made = make_series(
        f"1.{number}",
        slices=changes.pop("slices", 24),
        **{"SeriesNumber": float(number), **ACQUISITIONS[name], **BRAIN, **facts, **changes},
    )
    for k, each in enumerate(made):
        if k not in lost:
            place = [k * step * part for part in direction]
            yield replace(each, header={**(each.header or {}), "ImagePositionPatient": place})


def build_instances(row: Mapping[str, Any]) -> list[Instance]:
    return [
        instance
        for number, series in enumerate(row["series"], 1)
        for instance in build_series(number, series, row.get("facts", {}))
    ]


def build_judge(row: Mapping[str, Any]) -> Judge:
    changes: dict[str, Any] = {"cards": CARDS}
    if "rule" in row:
        documents = [
            each.model_dump(mode="json", exclude_none=True) for each in load_routing().rules
        ]
        slots = {slot["slot"] for slot in row["rule"].get("expects", documents[0]["expects"])}
        documents[0] |= {
            "makes": [make for make in documents[0]["makes"] if make["target"] in slots]
        }
        documents[0] |= row["rule"]
        degraded = load_routing().degraded
        changes["routing"] = Routing.model_validate({"degraded": degraded, "rules": documents})
    if "research" in row:
        policy = load_policy().model_dump() | {"never_make": (), "research": row["research"]}
        changes["policy"] = ModelPolicy.model_validate(policy)
    if "model" in row:
        changes["cards"] = (make_card(**row["model"]), LIMB_CARD)
    return make_judge(**changes)


@pytest.mark.parametrize("row", ROWS, ids=[row["study"] for row in ROWS])
def test_study_is_judged_as_the_table_says(row: dict[str, Any]) -> None:
    study, judge = label_study(build_instances(row)), build_judge(row)

    decision = judge.judge(study, NOW)

    hold = find_hold(study, decision)
    assert (None if hold is None else hold[0]) == row.get("held")
    if hold is not None:
        return
    slots = {label: state for states in decision.slots.values() for label, state in states.items()}
    assert slots == {label: state for state in STATES for label in row.get(state, ())}
    plans = {plan.target: list(plan.sources) for plan in decision.plans}
    assert plans == row.get("plans", {})
    assert {each.target: each.code for each in decision.refusals} == row.get("refusals", {})
    told = [plan.rule_reason for plan in decision.plans] + [r.reason for r in decision.refusals]
    assert row.get("says", "") in " ".join(told)


def test_table_is_long_and_says_each_thing_once() -> None:
    assert len(ROWS) >= 60
    assert len({row["study"] for row in ROWS}) == len(ROWS)
    known = {"study", "series", "facts", "rule", "research", "model", "plans", "refusals", "says"}
    assert {key for row in ROWS for key in row} <= known | {"held", *STATES}


SHIPPED = [row for row in ROWS if not row.keys() & {"rule", "research", "model"}]


@pytest.fixture(scope="module")
def configuration() -> Configuration:
    return load(CONFIG, ["query.enabled=false"])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(row=st.sampled_from(SHIPPED), seed=st.integers(0, 2**32), looks=st.integers(0, 2))
def test_neither_order_nor_repetition_of_arrival_changes_the_final_plan(
    tmp_path_factory: pytest.TempPathFactory,
    configuration: Configuration,
    row: dict[str, Any],
    seed: int,
    looks: int,
) -> None:
    """Instances come in any order, some again, and the study is judged in between."""
    instances, rng, clock = build_instances(row), random.Random(seed), Clock()
    arrivals = [*instances, *rng.choices(instances, k=len(instances) // 4)]
    rng.shuffle(arrivals)
    cuts = [0, *sorted(rng.sample(range(1, len(arrivals)), looks)), len(arrivals)]
    folder = tmp_path_factory.mktemp("arrivals")
    store = Store(folder / "store").open()

    with Ledger(f"sqlite:///{folder / 'ledger.sqlite'}", clock).open() as ledger:
        for start, end in itertools.pairwise(cuts):
            came = arrivals[start:end]
            ledger.record_instances(came, "modality", None)
            ledger.record_headers({(e.sop_instance_uid, e.sha256): e.header or {} for e in came})
            clock.advance(seconds=QUIET.total_seconds())
            assembly.sweep(ledger, store, configuration, CARDS, clock)
        row_at_end = ledger.study_row("1")
        wanted = {
            (job.plan.target, tuple(job.plan.sources.items()), job.plan.source_instances)
            for job in ledger.jobs("1")
            if job.state is not JobState.SUPERSEDED
        }

    decision = make_judge().judge(label_study(instances), NOW)
    assert row_at_end.hold_code == row.get("held")
    if "held" not in row:
        assert wanted == {
            (plan.target, tuple(plan.sources.items()), plan.source_instances)
            for plan in decision.plans
        }
