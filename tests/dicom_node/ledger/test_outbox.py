from datetime import timedelta

import pytest

from dicom_node.domain import DeliveryState
from dicom_node.errors import IllegalTransition
from doubles.ledger import (
    PEER,
    STUDY,
    finish,
    judge,
    make_derived,
    make_instance,
    make_plan,
    receive_and_judge,
    record,
)

PLAN = "a" * 32


@pytest.fixture
def outbox(ledger):
    receive_and_judge(ledger, [make_plan()])
    finish(ledger, make_derived(1), make_derived(2))
    return ledger


def due(ledger, clock):
    return [each.instance.number for each in ledger.due_deliveries(PEER, clock.now, 10)]


def test_every_instance_is_due_to_its_peer_at_once(outbox, clock):
    assert due(outbox, clock) == [1, 2]
    assert outbox.due_deliveries("archive", clock.now, 10) == []
    assert len(outbox.due_deliveries(PEER, clock.now, 1)) == 1


def test_sent_instance_is_not_due_again(outbox, clock):
    first, _ = outbox.due_deliveries(PEER, clock.now, 10)

    record(outbox, first.delivery_id, DeliveryState.SENT, 0, None)

    sent, other = outbox.deliveries(STUDY)
    assert (sent.state, sent.status, sent.attempts) == (DeliveryState.SENT, 0, 1)
    assert other.state == DeliveryState.PENDING
    assert due(outbox, clock) == [2]


def test_failed_attempt_waits_for_its_time(outbox, clock):
    first, _ = outbox.due_deliveries(PEER, clock.now, 10)

    record(
        outbox,
        first.delivery_id,
        DeliveryState.PENDING,
        0xA700,
        "out of resources",
        clock.now + timedelta(seconds=30),
    )

    assert due(outbox, clock) == [2]
    clock.advance(seconds=30)
    assert due(outbox, clock) == [2, 1]
    assert outbox.deliveries()[0].attempts == 1


def test_what_was_sent_stays_sent(outbox, clock):
    first, _ = outbox.due_deliveries(PEER, clock.now, 10)
    record(outbox, first.delivery_id, DeliveryState.WARNED, 0xB000, "coerced")

    record(outbox, first.delivery_id, DeliveryState.PENDING, None, "no response")

    assert outbox.deliveries()[0].state == DeliveryState.WARNED


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (DeliveryState.SENT, DeliveryState.SENT),
        (DeliveryState.PENDING, DeliveryState.PARKED),
    ],
)
def test_outcome_of_a_delivery_parked_under_way(outbox, clock, outcome, state):
    first, _ = outbox.due_deliveries(PEER, clock.now, 10)
    outbox.record_instances([make_instance(9)], PEER, None)
    judge(outbox)

    record(outbox, first.delivery_id, outcome, None, None)

    assert outbox.deliveries()[0].state == state


def test_overdue_delivery_is_parked_and_may_be_sent_again(outbox, clock):
    clock.advance(hours=73)
    parked = outbox.park_overdue(PEER, clock.now - timedelta(hours=72))
    waiting = due(outbox, clock)

    outbox.requeue(PLAN, "an operator", "the archive is back")

    assert (parked, waiting) == (2, [])
    assert due(outbox, clock) == [1, 2]
    assert outbox.park_overdue(PEER, clock.now - timedelta(hours=72)) == 0


def test_superseded_job_is_not_sent_again(outbox, clock):
    outbox.record_instances([make_instance(9)], PEER, None)
    judge(outbox)

    with pytest.raises(IllegalTransition):
        outbox.requeue(PLAN, "an operator", "please")

    assert due(outbox, clock) == []


def test_job_that_was_sent_is_not_sent_again(outbox, clock):
    for delivery in outbox.due_deliveries(PEER, clock.now, 10):
        record(outbox, delivery.delivery_id, DeliveryState.SENT, 0, None)

    with pytest.raises(IllegalTransition):
        outbox.requeue(PLAN, "an operator", "please")


def test_delivery_events_belong_to_the_study(outbox, clock):
    first, _ = outbox.due_deliveries(PEER, clock.now, 10)

    record(outbox, first.delivery_id, DeliveryState.SENT, 0, None)

    event = outbox.events(STUDY)[-1]
    assert (event.name, event.plan_id, event.detail["peer"]) == ("delivery.sent", PLAN, PEER)


def test_outage_counts_its_failures_until_it_is_over(outbox, clock):
    outbox.record_outage(PEER, "no connection", clock.now + timedelta(seconds=30))
    clock.advance(seconds=30)
    outbox.record_outage(PEER, "the peer rejected", clock.now + timedelta(seconds=60))
    outage = outbox.outages()[PEER]
    outbox.end_outage(PEER)

    assert (outage.failures, clock.now - outage.since) == (2, timedelta(seconds=30))
    assert (outage.reason, outage.next_call - clock.now) == (
        "the peer rejected",
        timedelta(seconds=60),
    )
    assert outbox.outages() == {}


def test_backlog_counts_what_waits_and_what_a_person_must_see(outbox, clock):
    first, second = outbox.due_deliveries(PEER, clock.now, 10)
    record(outbox, first.delivery_id, DeliveryState.PARKED, 0xC000, "cannot understand")

    backlog = outbox.backlogs()[PEER]

    assert (backlog.pending, backlog.parked, backlog.unconfirmed) == (1, 1, 0)
    assert backlog.pending_since == second.queued_at


def test_what_a_study_has_outgrown_is_nobodys_to_look_at(outbox):
    outbox.record_instances([make_instance(9)], PEER, None)
    judge(outbox)

    backlog = outbox.backlogs()[PEER]

    assert (backlog.pending, backlog.parked) == (0, 0)
