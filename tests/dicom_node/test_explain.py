import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicom_node.assembly import build_judge
from dicom_node.domain import DeliveryState, NoticeState, StepState
from dicom_node.explain import explain_folder, explain_study
from dicom_node.ledger import Notice
from dicom_node.routing import Judge
from doubles.bench import Bench
from doubles.ledger import STEP, finish, make_derived, make_plan, record
from doubles.ledger import judge as judge_study
from doubles.models import write_copying_model
from doubles.series import make_series, write_files
from synthesis.registry import load_cards

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = {"study_instance_uid", "series", "rules", "slots", "plans", "refusals"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    write_copying_model(tmp_path / "models")
    bench = Bench(tmp_path / "data", tmp_path / "models")
    yield bench
    bench.ledger.close()


@pytest.fixture
def judge(bench: Bench) -> Judge:
    cards = load_cards(bench.configuration.node.models_folder)
    return build_judge(bench.configuration, cards, bench.store.namespace())


def test_folder_is_explained_with_labels_gaps_and_plans(judge: Judge, tmp_path: Path):
    write_files(make_series("T1w"), tmp_path / "study")

    (told,) = explain_folder(tmp_path / "study", judge, NOW)

    assert set(told) == KEYS
    (series,) = told["series"]
    assert (series["label"], series["origin"], series["modality"]) == ("T1w", "acquired", "MR")
    assert series["evidence"]
    assert told["slots"]["T1w"] == "present"
    assert told["slots"]["FLAIR"] == "missing"
    assert {plan["target"] for plan in told["plans"]} == {"T2w", "FLAIR"}
    assert told["plans"][0]["sources"] == {"T1w": series["series_instance_uid"]}


def test_explanation_is_json(judge: Judge, tmp_path: Path):
    write_files(make_series("T1w"), tmp_path / "study")

    json.dumps(explain_folder(tmp_path / "study", judge, NOW))


def test_received_study_is_explained_as_its_folder_is(bench: Bench, judge: Judge, tmp_path: Path):
    instances = make_series("T1w")
    write_files(instances, tmp_path / "study")
    bench.receive(instances)

    told = explain_study(instances[0].StudyInstanceUID, bench.ledger, bench.store, judge, NOW)

    assert [told] == explain_folder(tmp_path / "study", judge, NOW)


def test_what_went_out_is_told_with_where_it_stands(tmp_path: Path, bench: Bench, judge: Judge):
    instances = make_series("T1w")
    bench.receive(instances)
    study = instances[0].StudyInstanceUID
    assert judge_study(bench.ledger, [make_plan(study_instance_uid=study)], study)
    finish(bench.ledger, make_derived(1), make_derived(2))
    record(bench.ledger, 1, DeliveryState.SENT, 0, None)

    told = explain_study(study, bench.ledger, bench.store, judge, NOW)["deliveries"]

    assert {(each["peer"], each["state"], each["instances"]) for each in told} == {
        ("pacs", "sent", 1),
        ("pacs", "pending", 1),
    }


def test_what_a_modality_told_of_a_study_is_told(bench: Bench, judge: Judge):
    images = make_series("T1w")
    bench.receive(images[:-1])
    study = images[0].StudyInstanceUID
    listed = tuple(image.SOPInstanceUID for image in images)
    for studies, state in [((study,), NoticeState.IN_PROGRESS), ((), NoticeState.COMPLETED)]:
        notice = Notice(sop_instance_uid="1.2.9", studies=studies, state=state, instances=listed)
        bench.ledger.record_notice("scanner", notice)

    [told] = explain_study(study, bench.ledger, bench.store, judge, NOW)["notices"]

    assert (told["peer"], told["state"]) == ("scanner", "completed")
    assert (told["instances"], told["not_here"]) == (len(images), 1)


def test_what_a_worklist_wants_of_a_study_is_told(bench: Bench, judge: Judge):
    images = make_series("T1w")
    bench.receive(images)
    study = images[0].StudyInstanceUID
    step = replace(STEP, study_instance_uid=study)
    bench.ledger.begin_step(step)
    bench.ledger.change_step(step, StepState.CLAIMED, told="the sources are fetched")

    [told] = explain_study(study, bench.ledger, bench.store, judge, NOW)["steps"]

    assert told == {
        "peer": step.peer,
        "step": step.sop_instance_uid,
        "state": "claimed",
        "told": "the sources are fetched",
        "reason": None,
    }


def test_explaining_writes_nothing(bench: Bench, judge: Judge):
    instances = make_series("T1w")
    bench.receive(instances)
    before = bench.ledger.events()

    explain_study(instances[0].StudyInstanceUID, bench.ledger, bench.store, judge, NOW)

    assert bench.ledger.events() == before
    assert bench.ledger.jobs() == []


def test_two_patients_in_one_study_are_told_and_nothing_is_planned(judge: Judge, tmp_path: Path):
    write_files(make_series("T1w"), tmp_path / "study" / "one")
    other = make_series("T1w", number=2, patient_id="PHANTOM-2")
    write_files(other, tmp_path / "study" / "two")

    (told,) = explain_folder(tmp_path / "study", judge, NOW)

    assert told["plans"] == []
    assert {each["target"] for each in told["refusals"]} == {"T2w", "FLAIR"}
    assert all("identity_conflict" in each["reason"] for each in told["refusals"])


def test_two_contents_under_one_uid_are_told_and_nothing_is_planned(
    bench: Bench, judge: Judge, tmp_path: Path
):
    first, second = make_series("T1w"), make_series("T1w", patient_name="PHANTOM^OTHER")
    write_files(first, tmp_path / "study" / "1")
    write_files(first, tmp_path / "study" / "2")
    write_files(second, tmp_path / "study" / "3")
    bench.receive(first)
    bench.receive(second)

    (told,) = explain_folder(tmp_path / "study", judge, NOW)

    assert told == explain_study(first[0].StudyInstanceUID, bench.ledger, bench.store, judge, NOW)
    assert told["plans"] == []
    assert all("uid_conflict" in each["reason"] for each in told["refusals"])


def test_folder_without_dicom_is_told(judge: Judge, tmp_path: Path):
    (tmp_path / "letter.txt").write_text("no image")

    with pytest.raises(LookupError, match="no DICOM file"):
        explain_folder(tmp_path, judge, NOW)


def test_unknown_study_is_told(bench: Bench, judge: Judge):
    with pytest.raises(LookupError):
        explain_study("1.2.404", bench.ledger, bench.store, judge, NOW)
