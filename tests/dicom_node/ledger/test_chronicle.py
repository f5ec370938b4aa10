from datetime import timedelta

import pytest

from dicom_node.domain import DeliveryState
from doubles.ledger import (
    LEASE,
    PEER,
    STUDY,
    finish,
    make_derived,
    make_instance,
    make_plan,
    receive_and_judge,
    record,
)

PLAN = "a" * 32


def test_life_of_a_study_is_told_in_order(ledger):
    receive_and_judge(ledger, [make_plan()])
    finish(ledger)
    record(ledger, 1, DeliveryState.SENT, 0, None)
    ledger.record_instances([make_instance(9, study_instance_uid="1.9")], PEER, None)

    events = ledger.events(STUDY)

    assert [event.name for event in events] == [
        "study.received",
        "study.judged",
        "job.claim",
        "job.finish",
        "delivery.sent",
    ]
    assert [event.sequence for event in events] == sorted(event.sequence for event in events)
    assert len(ledger.events()) == len(events) + 1


def test_counts_name_every_state(ledger):
    receive_and_judge(ledger, [make_plan()])
    finish(ledger)

    counts = ledger.counts()

    present = {name: count for name, count in counts.items() if count}
    assert present == {
        "studies.judged": 1,
        "jobs.done": 1,
        "deliveries.pending": 1,
        "instances": 1,
        "derived": 1,
    }
    assert {"studies.held", "jobs.failed", "deliveries.parked"} <= counts.keys()


def test_received_bytes_expire_when_nothing_is_left_to_do(ledger, clock):
    receive_and_judge(ledger)
    early = ledger.find_expired_instances(clock.now)
    clock.advance(days=7)

    assert early == []
    assert ledger.find_expired_instances(clock.now) == [make_instance().path]


@pytest.mark.parametrize("step", ["received", "queued", "running", "held", "sending"])
def test_received_bytes_stay_while_somebody_may_need_them(ledger, clock, step):
    if step == "received":
        ledger.record_instances([make_instance()], PEER, None)
    else:
        receive_and_judge(ledger, [make_plan()])
    if step == "running":
        ledger.claim(1, LEASE)
    elif step == "held":
        [job] = ledger.claim(1, LEASE)
        ledger.refuse_job(PLAN, job.attempt, ["noise"])
    elif step == "sending":
        finish(ledger)
    clock.advance(days=365)

    assert ledger.find_expired_instances(clock.now) == []


def test_derived_bytes_stay_until_every_peer_has_them(ledger, clock):
    receive_and_judge(ledger, [make_plan(deliver_to=("pacs", "archive"))])
    finish(ledger)
    clock.advance(days=30)
    record(ledger, 1, DeliveryState.SENT, 0, None)
    record(ledger, 2, DeliveryState.PARKED, 0xC000, "cannot understand")
    owed = ledger.find_expired_derived(clock.now)

    record(ledger, 2, DeliveryState.SENT, 0, None)

    assert owed == []
    assert ledger.find_expired_derived(clock.now) == [make_derived().path]
    assert ledger.find_expired_derived(clock.now - timedelta(days=30)) == []


def test_forgotten_bytes_keep_their_rows(ledger, clock):
    receive_and_judge(ledger)
    clock.advance(days=7)

    ledger.forget_bytes(ledger.find_expired_instances(clock.now))

    assert ledger.find_expired_instances(clock.now) == []
    assert ledger.read_instances(STUDY) == (make_instance(),)
    assert ledger.known_paths() == set()
    told = ledger.events(STUDY)[-1]
    assert (told.name, told.detail) == ("bytes.forgotten", {"files": 1})


def test_bytes_that_come_again_are_remembered(ledger, clock):
    receive_and_judge(ledger)
    clock.advance(days=7)
    ledger.forget_bytes([make_instance().path])

    ledger.record_instances([make_instance()], PEER, None)

    assert ledger.find_expired_instances(clock.now) == [make_instance().path]
