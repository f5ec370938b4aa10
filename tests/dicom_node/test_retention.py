from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.domain import DeliveryState
from dicom_node.ledger import Ledger, Report
from dicom_node.node_settings import Retention
from dicom_node.retention import sweep
from dicom_node.store import Store
from doubles.ledger import (
    LEASE,
    Clock,
    finish,
    make_derived,
    make_instance,
    make_plan,
    receive_and_judge,
    record,
)

AGES = Retention()
PLAN = make_plan()
RECEIVED = make_instance().path
RESULT = make_derived().path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    store.write(RECEIVED, b"received")
    store.write(RESULT, b"result")
    return store


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock) as ledger:
        receive_and_judge(ledger, [PLAN])
        yield ledger


def deliver(ledger: Ledger) -> None:
    for delivery in ledger.deliveries():
        record(ledger, delivery.delivery_id, DeliveryState.SENT, 0, None)


def commit(ledger: Ledger, clock: Clock) -> None:
    [job] = ledger.find_unconfirmed("pacs", clock(), 10)
    ledger.record_request("1.2.3", job.deliveries, clock())
    kept = tuple(each.instance.sop_instance_uid for each in job.deliveries)
    report = Report(transaction_uid="1.2.3", kept=kept, lost={})
    ledger.record_report("pacs", report, lambda delivery, reason: None)


def test_delivered_study_loses_its_bytes_past_their_age(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    finish(ledger)
    deliver(ledger)
    clock.advance(days=8)

    sweep(ledger, store, AGES, clock())

    assert not store.path(RECEIVED).exists()
    assert store.path(RESULT).exists()


def test_result_goes_past_its_own_age(ledger: Ledger, store: Store, clock: Clock) -> None:
    finish(ledger)
    deliver(ledger)
    clock.advance(days=31)

    sweep(ledger, store, AGES, clock())

    assert not store.path(RESULT).exists()
    assert ledger.derived(PLAN.plan_id)


def test_waiting_job_keeps_its_sources(ledger: Ledger, store: Store, clock: Clock) -> None:
    clock.advance(days=365)

    sweep(ledger, store, AGES, clock())

    assert store.path(RECEIVED).exists()


def test_undelivered_result_is_kept(ledger: Ledger, store: Store, clock: Clock) -> None:
    finish(ledger)
    clock.advance(days=365)

    sweep(ledger, store, AGES, clock())

    assert store.path(RESULT).exists()


def test_what_is_to_be_committed_keeps_sources_and_result_until_it_is(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    finish(ledger)
    deliver(ledger)
    clock.advance(days=365)
    sweep(ledger, store, AGES, clock(), ["pacs"])
    before = store.path(RECEIVED).exists(), store.path(RESULT).exists()

    commit(ledger, clock)
    sweep(ledger, store, AGES, clock(), ["pacs"])

    assert before == (True, True)
    assert not store.path(RECEIVED).exists()
    assert not store.path(RESULT).exists()


def test_commitment_of_one_peer_is_not_that_of_another(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    finish(ledger)
    deliver(ledger)
    clock.advance(days=365)

    sweep(ledger, store, AGES, clock(), ["other"])

    assert not store.path(RESULT).exists()


def test_deletion_that_was_cut_short_is_finished(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    finish(ledger)
    deliver(ledger)
    clock.advance(days=8)
    store.delete(RECEIVED)

    sweep(ledger, store, AGES, clock())

    assert sweep(ledger, store, AGES, clock()) == 0


def test_what_lies_beside_a_result_stays_as_long_as_it(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    beside = f"{RESULT.rpartition('/')[0]}/mask.npz"
    store.write(beside, b"mask")
    finish(ledger)
    deliver(ledger)

    sweep(ledger, store, AGES, clock())
    assert store.path(beside).exists()

    clock.advance(days=31)
    sweep(ledger, store, AGES, clock())
    assert not store.path(beside).exists()


def test_files_of_a_lost_attempt_are_swept(ledger: Ledger, store: Store, clock: Clock) -> None:
    ledger.claim(1, LEASE)
    ledger.return_running()

    sweep(ledger, store, AGES, clock())

    assert not store.path(RESULT).exists()


def test_files_of_the_running_attempt_are_left_alone(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    ledger.claim(1, LEASE)

    sweep(ledger, store, AGES, clock())

    assert store.path(RESULT).exists()


def test_plan_that_the_ledger_does_not_know_is_left_alone(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    stranger = f"derived/{'7' * 32}/1/image-1.dcm"
    store.write(stranger, b"of a newer ledger")

    sweep(ledger, store, AGES, clock())

    assert store.path(stranger).exists()
