from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dicom_node.domain import DeliveryState
from dicom_node.ledger import Ledger
from dicom_node.retention import sweep
from dicom_node.settings import Retention
from dicom_node.store import Store
from doubles.ledgers import Clock, judge, make_derived, make_instances, make_plan, open_ledger

AGES = Retention()
PLAN = make_plan()
RECEIVED = "incoming/aa/a.dcm"
RESULT = f"derived/{PLAN.plan_id}/1/image-1.dcm"


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
    with open_ledger(tmp_path, clock) as ledger:
        judge(ledger, [PLAN], make_instances({RECEIVED: "a" * 64}))
        yield ledger


def finish(ledger: Ledger) -> None:
    ledger.claim(1, timedelta(minutes=1))
    ledger.record_derived(
        PLAN.plan_id, 1, [make_derived(RESULT)], quality={}, seconds={}, record=[]
    )


def deliver(ledger: Ledger) -> None:
    for delivery in ledger.deliveries():
        ledger.record_delivery(delivery.delivery_id, DeliveryState.SENT, 0, None)


def test_delivered_study_loses_its_bytes_past_their_age(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    finish(ledger)
    deliver(ledger)
    clock.turn(timedelta(days=8))

    sweep(ledger, store, AGES, clock())

    assert not store.path(RECEIVED).exists()
    assert store.path(RESULT).exists()


def test_result_goes_past_its_own_age(ledger: Ledger, store: Store, clock: Clock) -> None:
    finish(ledger)
    deliver(ledger)
    clock.turn(timedelta(days=31))

    sweep(ledger, store, AGES, clock())

    assert not store.path(RESULT).exists()
    assert ledger.derived(PLAN.plan_id)


def test_waiting_job_keeps_its_sources(ledger: Ledger, store: Store, clock: Clock) -> None:
    clock.turn(timedelta(days=365))

    sweep(ledger, store, AGES, clock())

    assert store.path(RECEIVED).exists()


def test_undelivered_result_is_kept(ledger: Ledger, store: Store, clock: Clock) -> None:
    finish(ledger)
    clock.turn(timedelta(days=365))

    sweep(ledger, store, AGES, clock())

    assert store.path(RESULT).exists()


def test_deletion_that_was_cut_short_is_finished(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    finish(ledger)
    deliver(ledger)
    clock.turn(timedelta(days=8))
    store.delete(RECEIVED)

    sweep(ledger, store, AGES, clock())

    assert sweep(ledger, store, AGES, clock()) == 0


def test_files_of_a_lost_attempt_are_swept(ledger: Ledger, store: Store, clock: Clock) -> None:
    ledger.claim(1, timedelta(minutes=1))
    ledger.return_running()

    sweep(ledger, store, AGES, clock())

    assert not store.path(RESULT).exists()


def test_files_of_the_running_attempt_are_left_alone(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    ledger.claim(1, timedelta(minutes=1))

    sweep(ledger, store, AGES, clock())

    assert store.path(RESULT).exists()


def test_plan_that_the_ledger_does_not_know_is_left_alone(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    stranger = f"derived/{make_plan(7).plan_id}/1/image-1.dcm"
    store.write(stranger, b"of a newer ledger")

    sweep(ledger, store, AGES, clock())

    assert store.path(stranger).exists()
