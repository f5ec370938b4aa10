"""Steps of a worklist become studies on the walk; the worklist is told what came of them.

The worklist is a double (`doubles.task_manager`): no PACS at hand manages steps.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dicom_node.domain import DeliveryState, Mode, Refusal, StepState
from dicom_node.door_settings import Peer
from dicom_node.errors import ConfigurationError
from dicom_node.ledger import Ledger
from dicom_node.node_settings import read_node
from dicom_node.performer import Performer
from dicom_node.store import Store
from doubles.ledger import (
    SERIES,
    STUDY,
    Clock,
    finish,
    judge,
    make_derived,
    make_instance,
    make_plan,
    record,
)
from doubles.querying_pacs import QueryingPacs
from doubles.studies import CONFIG
from doubles.task_manager import WORKITEM, TaskManager

pytestmark = pytest.mark.integration

OUTPUTS = {"2.25.9": {make_derived().sop_instance_uid}}
PATIENT = "PLANTED-4711"
ROW = {
    "StudyInstanceUID": STUDY,
    "SeriesInstanceUID": SERIES,
    "Modality": "MR",
    "NumberOfSeriesRelatedInstances": 1,
}


class Site:
    """A node without processes, between a worklist and a PACS."""

    def __init__(self, folder: Path, manager: TaskManager, pacs: QueryingPacs) -> None:
        self.clock = Clock()
        self.manager = manager
        self.pacs = pacs
        self._folder = folder
        self.store = Store(folder / "store").open()
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}", self.clock).open()
        self.performer = self.make_performer()

    def make_performer(self, *overrides: str) -> Performer:
        """Return a performer as a restart would make it."""
        value, scheme, meaning = WORKITEM
        called = {"host": "127.0.0.1", "roles": ["query"]}
        peers = {
            "pacs": {**called, "ae_title": "PACS", "port": self.pacs.port, "roles": ["query"]},
            "manager": {
                **called,
                "ae_title": "MANAGER",
                "port": self.manager.port,
                "roles": ["worklist"],
            },
        }
        workitem = {"value": value, "scheme": scheme, "meaning": meaning}
        settings = read_node(
            CONFIG,
            [
                f"peers={json.dumps(peers)}",
                f"steps.workitems={json.dumps([workitem])}",
                f"data_folder={self._folder}",
                "query.pause=0 s",
                "query.answer=5 s",
                *overrides,
            ],
        )
        return Performer("manager", self.ledger, self.store, settings, self.clock)

    def look(self, **duration: float) -> None:
        """Let the performer look, some time later."""
        self.clock.advance(**(duration or {"seconds": 15}))
        self.performer.sweep()

    def receive(self) -> None:
        self.ledger.record_instances([make_instance()], "pacs", None)

    def deliver(self, state: DeliveryState = DeliveryState.SENT) -> None:
        for each in self.ledger.deliveries(STUDY):
            record(self.ledger, each.delivery_id, state, 0, None)

    def complete(self) -> None:
        """Do what the rest of the node does: receive, judge, make and deliver."""
        self.receive()
        judge(self.ledger, [make_plan()])
        finish(self.ledger)
        self.deliver()

    @property
    def states(self) -> list[StepState]:
        return [each.state for each in self.ledger.steps(STUDY)]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[TaskManager, QueryingPacs]]:
    with TaskManager() as manager, QueryingPacs() as pacs:
        yield manager, pacs


@pytest.fixture
def site(tmp_path: Path, servers: tuple[TaskManager, QueryingPacs]) -> Iterator[Site]:
    manager, pacs = servers
    manager.forget()
    pacs.rows, pacs.moved, pacs.status, pacs.on_move = [], [], 0, lambda _: True
    site = Site(tmp_path, manager, pacs)
    yield site
    site.ledger.close()


def test_step_is_completed_when_what_was_missing_is_delivered(site):
    step = site.manager.schedule(STUDY)
    site.pacs.rows = [ROW]
    site.pacs.on_move = lambda _: bool(site.receive() or True)

    site.look()
    assert site.manager.state(step) == "IN PROGRESS"
    assert site.pacs.moved == [SERIES]
    site.look()
    judge(site.ledger, [make_plan()])
    site.look()
    finish(site.ledger)
    site.look()
    assert site.manager.state(step) == "IN PROGRESS"
    site.deliver()
    site.look()

    assert site.manager.state(step) == "COMPLETED"
    assert site.manager.outputs(step) == OUTPUTS
    assert site.manager.told == [
        "the study is coming, or looked for at its PACS",
        "0 of 1 contrasts are made",
        "what was made is delivered",
    ]
    [performed] = site.manager.steps[step].UnifiedProcedureStepPerformedProcedureSequence
    [output] = performed.OutputInformationSequence
    assert output.DICOMRetrievalSequence[0].RetrieveAETitle == "PACS"
    assert site.states == [StepState.COMPLETED]


def test_what_was_made_before_is_named_at_once(site):
    site.complete()
    site.pacs.rows = [ROW]
    step = site.manager.schedule(STUDY)

    site.look()
    site.look()

    assert site.pacs.moved == []
    assert site.manager.outputs(step) == OUTPUTS
    assert site.manager.state(step) == "COMPLETED"


@pytest.mark.parametrize(
    "facts",
    [
        {"workitem": ("OTHER", *WORKITEM[1:])},
        {"readiness": "INCOMPLETE"},
        {"station": ("SOMEBODY", "99SITE", "another performer")},
    ],
)
@pytest.mark.parametrize("honors_keys", [True, False])
def test_step_for_others_is_left_to_them(site, facts, honors_keys, monkeypatch):
    if not honors_keys:
        monkeypatch.setattr("doubles.task_manager._matches", lambda _, __: True)
    step = site.manager.schedule(STUDY, **facts)

    site.look()

    assert site.manager.state(step) == "SCHEDULED"
    assert site.states == []


def test_no_more_steps_are_claimed_than_are_done_at_once(site):
    site.performer = site.make_performer("steps.at_once=2")
    steps = [site.manager.schedule(STUDY) for _ in range(3)]

    site.look()

    states = sorted(map(site.manager.state, steps))
    assert states == ["IN PROGRESS", "IN PROGRESS", "SCHEDULED"]


def test_only_the_series_that_a_step_names_are_fetched(site):
    site.pacs.rows = [ROW, {**ROW, "SeriesInstanceUID": f"{SERIES}.9"}]
    site.manager.schedule(STUDY, series=(SERIES,))

    site.look()

    assert site.pacs.moved == [SERIES]


def test_step_whose_study_nobody_has_is_canceled_with_the_reason(site):
    step = site.manager.schedule(STUDY)

    for _ in range(5):
        site.look()

    assert site.manager.state(step) == "CANCELED"
    assert site.manager.reason(step) == "no peer that may be asked has the study"
    assert site.states == [StepState.CANCELED]


def test_step_waits_for_a_pacs_that_is_away_for_a_while(site):
    step = site.manager.schedule(STUDY)
    site.pacs.status = 0xA700
    site.look()
    site.pacs.status, site.pacs.rows = 0, [ROW]
    site.pacs.on_move = lambda _: bool(site.complete() or True)

    site.look()
    site.look()

    assert site.manager.state(step) == "COMPLETED"


@pytest.mark.parametrize("studies", [(), (STUDY, f"{STUDY}.9")])
def test_step_that_is_not_about_one_study_is_canceled(site, studies):
    step = site.manager.schedule(*studies)

    site.look()
    site.look()

    assert site.manager.state(step) == "CANCELED"
    assert "one study" in site.manager.reason(step)


def test_step_that_the_rules_refuse_is_canceled_with_their_reason(site):
    site.receive()
    row = site.ledger.study_row(STUDY)
    refusal = Refusal(rule="brain", target="T2w", code="no_source", reason="there is no T1w")
    judged = {"series": (), "slots": {}, "gaps": (), "plans": (), "refusals": (refusal,)}
    site.ledger.record_judgement(STUDY, row.generation, seen=row.seen, **judged)
    site.pacs.rows = [ROW]
    step = site.manager.schedule(STUDY)

    site.look()
    site.look()

    assert site.manager.state(step) == "CANCELED"
    assert site.manager.reason(step) == "T2w: there is no T1w"
    assert site.manager.outputs(step) == {}


def test_step_of_which_a_part_is_refused_is_completed_and_says_so(site):
    site.receive()
    row = site.ledger.study_row(STUDY)
    refusal = Refusal(rule="brain", target="FLAIR", code="no_source", reason="there is no T2w")
    judged = {"series": (), "slots": {}, "gaps": (), "plans": (make_plan(),)}
    site.ledger.record_judgement(
        STUDY, row.generation, seen=row.seen, refusals=(refusal,), **judged
    )
    finish(site.ledger)
    site.deliver()
    site.pacs.rows = [ROW]
    step = site.manager.schedule(STUDY)

    site.look()
    site.look()

    assert site.manager.state(step) == "COMPLETED"
    [progress] = site.manager.steps[step].ProcedureStepProgressInformationSequence
    assert progress.ProcedureStepProgressDescription == "FLAIR: there is no T2w"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, "lacks nothing"),
        ({"mode": Mode.SHADOW}, "lacks nothing"),
        ({"truth": "1.2.9"}, "lacks nothing"),
    ],
)
def test_step_for_which_nothing_is_made_to_be_sent_is_canceled(site, changes, reason):
    site.receive()
    judge(site.ledger, [] if changes is None else [make_plan(**changes)])
    site.pacs.rows = [ROW]
    step = site.manager.schedule(STUDY)

    site.look()
    site.look()

    assert site.manager.state(step) == "CANCELED"
    assert reason in site.manager.reason(step)


def test_step_whose_job_fails_is_canceled(site):
    site.receive()
    judge(site.ledger, [make_plan()])
    [job] = site.ledger.claim(1, site.performer._settings.dispatch.lease)
    site.ledger.fail_job(job.plan.plan_id, job.attempt, "out of order")
    site.pacs.rows = [ROW]
    step = site.manager.schedule(STUDY)

    site.look()
    site.look()

    assert site.manager.reason(step) == "T2w: failed"


def test_step_that_waits_for_a_person_says_so_and_ends_after_its_patience(site):
    site.receive()
    row = site.ledger.study_row(STUDY)
    site.ledger.hold_study(STUDY, row.generation, "identity_conflict", "", seen=row.seen)
    site.pacs.rows = [ROW]
    step = site.manager.schedule(STUDY)

    site.look()
    site.look()
    assert site.manager.state(step) == "IN PROGRESS"
    assert site.manager.told == ["a person must look at the study: identity_conflict"]
    site.look(hours=25)

    assert site.manager.state(step) == "CANCELED"
    assert "not done in time" in site.manager.reason(step)


def test_result_that_was_not_taken_waits_for_a_person(site):
    site.receive()
    judge(site.ledger, [make_plan()])
    finish(site.ledger)
    site.deliver(DeliveryState.PARKED)
    site.pacs.rows = [ROW]
    step = site.manager.schedule(STUDY)

    site.look()
    site.look()

    assert site.manager.state(step) == "IN PROGRESS"
    assert site.manager.told == ["a person must look at what was not taken"]


def break_off(name: str) -> Callable[[str, Any], None]:
    """Return what lets a request be done, and its answer never arrive."""

    def after(done: str, event: Any) -> None:
        if done == name:
            event.assoc.abort()

    return after


def test_claim_whose_answer_did_not_arrive_is_known_to_be_ours(site):
    step = site.manager.schedule(STUDY)
    site.manager.after = break_off("N-ACTION IN PROGRESS")
    site.look()
    assert site.states == [StepState.CLAIMING]
    site.manager.after = lambda _, __: None

    site.performer = site.make_performer()
    site.look()

    assert site.states == [StepState.CLAIMED]
    assert site.manager.state(step) == "IN PROGRESS"


def test_step_that_another_has_claimed_meanwhile_is_lost(site):
    step = site.manager.schedule(STUDY)
    site.manager.after = break_off("N-ACTION IN PROGRESS")
    site.look()
    site.manager.holders[step] = "1.2.3.4.5"
    site.manager.after = lambda _, __: None

    site.performer = site.make_performer()
    site.look()

    assert site.states == [StepState.LOST]
    assert site.manager.told == []


def test_step_that_is_claimed_by_another_in_the_same_moment_is_left(site):
    step = site.manager.schedule(STUDY)

    def another_first(name: str) -> int | None:
        if name != "N-ACTION IN PROGRESS":
            return None
        site.manager.holders[step] = "1.2.3.4.5"
        site.manager.steps[step].ProcedureStepState = "IN PROGRESS"
        return 0xC302

    site.manager.on_request = another_first
    site.look()

    assert site.states == [StepState.LOST]
    assert site.manager.told == []


def test_worklist_that_cannot_answer_a_claim_is_asked_again(site):
    step = site.manager.schedule(STUDY)
    site.manager.on_request = lambda name: 0x0110 if name == "N-ACTION IN PROGRESS" else None
    site.look()
    site.manager.on_request = lambda _: None

    site.look()

    assert site.manager.state(step) == "IN PROGRESS"


def test_end_whose_answer_did_not_arrive_is_told_no_second_time(site):
    site.complete()
    site.pacs.rows = [ROW]
    step = site.manager.schedule(STUDY)
    site.look()
    site.manager.after = break_off("N-ACTION COMPLETED")
    site.look()
    assert site.manager.state(step) == "COMPLETED"
    assert site.states == [StepState.PERFORMED]
    site.manager.after = lambda _, __: None

    site.performer = site.make_performer()
    site.look()

    assert site.states == [StepState.COMPLETED]


@pytest.mark.parametrize("state", ["CANCELED", "COMPLETED"])
def test_step_that_somebody_else_ended_is_let_go(site, state):
    step = site.manager.schedule(STUDY)
    site.receive()
    site.pacs.rows = [ROW]
    site.look()
    site.manager.steps[step].ProcedureStepState = state

    site.look()

    assert site.states == [StepState.LOST]


def test_worklist_that_is_away_is_left_alone_for_a_while(site):
    site.performer = site.make_performer("peers.manager.port=9")
    site.look(seconds=1)
    assert not site.performer._rest.is_over()

    site.look(minutes=5)

    assert site.performer._rest.failures == 2


def test_worklist_that_refuses_the_query_is_told_in_the_log(site, caplog):
    site.manager.on_request = lambda name: 0xA700 if name == "C-FIND" else None

    site.look()

    assert "worklist.failed peer=manager failures=1" in caplog.text
    assert "0xA700" in caplog.text


def test_no_patient_is_told_of(site, caplog, tmp_path):
    caplog.set_level(logging.DEBUG, "dicom_node")
    step = site.manager.schedule(STUDY, patient_id=PATIENT)

    for _ in range(5):
        site.look()

    assert site.manager.state(step) == "CANCELED"
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.sqlite*"))
    assert PATIENT not in caplog.text
    assert PATIENT.encode() not in kept


def test_worklist_without_a_workitem_or_over_http_is_a_mistake():
    called = {"host": "a.example", "port": 104, "ae_title": "M", "roles": ["worklist"]}
    with pytest.raises(ConfigurationError, match=r"steps\.workitems"):
        read_node(CONFIG, [f"peers.manager={json.dumps(called)}"])
    with pytest.raises(ValidationError, match="DIMSE alone"):
        Peer(dicomweb={"url": "https://a.example"}, roles={"worklist", "send"})
