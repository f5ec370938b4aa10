from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path

import pytest

from dicom_node.dispatch import Dispatch
from dicom_node.domain import SynthesisPlan
from dicom_node.errors import WorkerLost
from dicom_node.executors import InlineExecutor, JobExecutor, call
from dicom_node.jobs import JobState
from dicom_node.ledger import Ledger
from doubles.ledger import Clock, make_plan, receive_and_judge

LEASE = timedelta(minutes=1)
CALM, URGENT = make_plan("1" * 32), make_plan("2" * 32, priority=90)


class Workers(JobExecutor):
    """Keeps what was submitted, and lets the test say how it ends."""

    def __init__(self) -> None:
        self.jobs: list[tuple[tuple, Future]] = []
        self.places = 1

    def capacity(self) -> int:
        return self.places

    def end(self, future: Future) -> None:
        future.set_exception(WorkerLost("it was ended"))

    def submit(self, fn: Callable, /, *args: object, **kwargs: object) -> Future:
        assert fn is call
        future: Future = Future()
        future.set_running_or_notify_cancel()
        self.jobs.append((args, future))
        return future


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock) as ledger:
        receive_and_judge(ledger, [CALM, URGENT])
        yield ledger


def build(ledger: Ledger, workers: JobExecutor, capacity: int = 1, **changes: object) -> Dispatch:
    workers.places = capacity
    facts = {
        "lease": LEASE,
        "max_attempts": 2,
        "config_folder": Path("config"),
        "overrides": ["a=1"],
    }
    return Dispatch(ledger, workers, **(facts | changes))


def state(ledger: Ledger, plan: SynthesisPlan) -> JobState:
    return ledger.job(plan.plan_id).state


def test_worker_gets_ids_and_a_folder_of_the_most_urgent_job(ledger: Ledger) -> None:
    workers = Workers()

    build(ledger, workers).sweep()

    (arguments, _) = workers.jobs[0]
    assert arguments == ("dicom_node.work:run", URGENT.plan_id, 1, Path("config"), ("a=1",))


def test_no_more_jobs_are_claimed_than_there_is_room_for(ledger: Ledger) -> None:
    workers = Workers()
    dispatch = build(ledger, workers, capacity=1)

    dispatch.sweep()
    dispatch.sweep()

    assert len(workers.jobs) == 1
    assert state(ledger, CALM) is JobState.QUEUED


def test_ended_job_makes_room(ledger: Ledger) -> None:
    workers = Workers()
    dispatch = build(ledger, workers, capacity=1)
    dispatch.sweep()

    workers.jobs[0][1].set_result(None)
    dispatch.sweep()

    assert state(ledger, CALM) is JobState.RUNNING


def test_lost_worker_queues_its_job_again(ledger: Ledger) -> None:
    workers = Workers()
    dispatch = build(ledger, workers, capacity=2)
    dispatch.sweep()

    workers.jobs[1][1].set_exception(WorkerLost("the worker process ended before its job did"))
    dispatch.sweep()

    assert workers.jobs[2][0][1:3] == (CALM.plan_id, 2)


def test_poison_job_fails_with_its_reason_after_the_last_attempt(ledger: Ledger) -> None:
    workers = Workers()
    dispatch = build(ledger, workers, capacity=2, max_attempts=2)

    dispatch.sweep()
    workers.jobs[1][1].set_exception(WorkerLost("MemoryError at volumes.py:1"))
    dispatch.sweep()
    workers.jobs[2][1].set_exception(WorkerLost("MemoryError at volumes.py:1"))
    dispatch.sweep()

    job = ledger.job(CALM.plan_id)
    assert job.state is JobState.FAILED
    assert job.reason is not None
    assert job.reason.startswith("MemoryError at volumes.py:1")


def test_silent_worker_loses_its_job_when_the_lease_runs_out(ledger: Ledger, clock: Clock) -> None:
    workers = Workers()
    dispatch = build(ledger, workers, capacity=2)
    dispatch.sweep()

    clock.advance(seconds=61)
    dispatch.sweep()

    assert state(ledger, CALM) is JobState.QUEUED


def test_frozen_worker_makes_room_when_its_lease_runs_out(ledger: Ledger, clock: Clock) -> None:
    workers = Workers()
    dispatch = build(ledger, workers, capacity=1)
    dispatch.sweep()

    clock.advance(seconds=61)
    dispatch.sweep()
    dispatch.sweep()

    assert [arguments[1:3] for arguments, _ in workers.jobs] == [
        (URGENT.plan_id, 1),
        (URGENT.plan_id, 2),
    ]


def test_error_of_the_work_itself_is_a_lost_worker(ledger: Ledger) -> None:
    dispatch = build(ledger, InlineExecutor(), max_attempts=1, work="no.such.module:run")

    dispatch.sweep()
    dispatch.sweep()

    assert "ModuleNotFoundError" in (ledger.job(URGENT.plan_id).reason or "")


def test_drained_node_gives_its_jobs_back_without_blame(ledger: Ledger) -> None:
    workers = Workers()
    dispatch = build(ledger, workers, capacity=2)
    dispatch.sweep()

    dispatch.drain(timedelta())

    job = ledger.job(CALM.plan_id)
    assert job.state is JobState.QUEUED
    assert job.losses == 0


def test_drain_waits_for_the_jobs_that_end_in_time(ledger: Ledger) -> None:
    workers = Workers()
    dispatch = build(ledger, workers)
    dispatch.sweep()
    (_, plan_id, attempt, *_), future = workers.jobs[0]
    ledger.fail_job(plan_id, attempt, "the study is no use")
    future.set_result(None)

    dispatch.drain(timedelta(seconds=5))

    assert state(ledger, URGENT) is JobState.FAILED
