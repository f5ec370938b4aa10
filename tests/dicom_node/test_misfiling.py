from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from dicom_node import work
from dicom_node.delivery import Destination
from dicom_node.domain import Mode, Role
from dicom_node.errors import IllegalTransition
from dicom_node.explain import explain_study
from dicom_node.jobs import JobState
from dicom_node.ledger import Job
from dicom_node.misfiling import find_changes
from dicom_node.routing import Judge
from doubles.bench import CONFIGURATION, Bench
from doubles.job import make_synthesis
from doubles.models import write_copying_model
from doubles.scripted_pacs import ScriptedPacs
from doubles.series import make_series
from doubles.studies import make_judge


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_copying_model(folder)
    return folder


@pytest.fixture
def bench(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A node with one result that is due."""

    def synthesize(volumes: Any, *, reference: str, **_: Any) -> Any:
        return make_synthesis(volumes[reference])

    monkeypatch.setattr(work, "synthesize", synthesize)
    bench = Bench(tmp_path / "data", models)
    bench.receive(make_series("T1w"))
    bench.judge()
    job = bench.claim("FLAIR")
    work.run(job.plan.plan_id, job.attempt, CONFIGURATION, bench.overrides)
    yield bench
    bench.ledger.close()


def find_job(bench: Bench) -> Job:
    [job] = [job for job in bench.ledger.jobs() if job.plan.target == "FLAIR"]
    assert job.plan.mode is Mode.SEND
    return job


def receive_later(bench: Bench, **study: object) -> None:
    """Receive a series that changes no plan, and judge the study again."""
    bench.receive(make_series("CT", number=2, **study))
    bench.judge()


def sweep(bench: Bench, pacs: ScriptedPacs) -> int:
    node = bench.configuration.node
    peer = node.peers["pacs"].model_copy(
        update={"host": "127.0.0.1", "port": pacs.port, "ae_title": "PACS"}
    )
    settings = node.model_copy(update={"peers": {"pacs": peer}})
    clock = lambda: datetime.now(UTC)  # noqa: E731
    with closing(Destination("pacs", bench.ledger, bench.store, settings, clock)) as destination:
        return destination.sweep()


@pytest.mark.integration
def test_result_of_a_patient_who_was_renamed_is_held_and_not_sent(bench: Bench) -> None:
    receive_later(bench, patient_name="PHANTOM^RENAMED")

    with ScriptedPacs() as pacs:
        assert sweep(bench, pacs) == 0
        assert sweep(bench, pacs) == 0

    job = find_job(bench)
    assert pacs.received == []
    assert job.state is JobState.HELD
    assert (job.reason or "").startswith("identity_changed: PatientName of the result")
    assert "RENAMED" not in (job.reason or "")


@pytest.mark.integration
def test_explain_tells_that_a_job_is_held_for_its_patient(bench: Bench) -> None:
    receive_later(bench, patient_name="PHANTOM^RENAMED")
    with ScriptedPacs() as pacs:
        sweep(bench, pacs)
    study = find_job(bench).plan.study_instance_uid
    judge: Judge = make_judge()

    told = explain_study(study, bench.ledger, bench.store, judge, datetime.now(UTC))

    [held] = told["held"]
    assert held["target"] == "FLAIR"
    assert held["reason"].startswith("identity_changed: ")


@pytest.mark.integration
def test_person_may_let_it_go_all_the_same(bench: Bench) -> None:
    receive_later(bench, patient_name="PHANTOM^RENAMED")
    with ScriptedPacs() as pacs:
        sweep(bench, pacs)
        plan_id = find_job(bench).plan.plan_id
        with pytest.raises(IllegalTransition, match="release or reject"):
            bench.ledger.requeue(plan_id, "test", "again")
        bench.ledger.release(plan_id, "test", "the name was wrong before")

        taken = sweep(bench, pacs)

    images = [each for each in bench.ledger.derived(plan_id) if each.role is Role.IMAGE]
    assert taken == len(images)  # this peer takes nothing else
    assert find_job(bench).state is JobState.DONE


@pytest.mark.integration
def test_result_of_the_same_patient_goes_out(bench: Bench) -> None:
    receive_later(bench, patient_name="Phantom^Head^^")

    with ScriptedPacs() as pacs:
        assert sweep(bench, pacs) > 0


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "PatientBirthDate", "PatientSex"])
def test_each_part_of_the_identity_counts(keyword: str) -> None:
    ours, theirs = Dataset(), Dataset()
    for each in (ours, theirs):
        each.PatientID, each.PatientName = "1", "A^B"
        each.PatientBirthDate, each.PatientSex = "19700101", "F"
    setattr(theirs, keyword, None)

    assert find_changes(ours, theirs) == [keyword]
    assert find_changes(ours, ours) == []
