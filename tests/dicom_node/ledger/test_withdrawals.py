"""Results that went out and are not wanted any more, in both databases."""

from dicom_node.domain import DeliveryState, Role
from doubles.ledger import (
    PEER,
    START,
    finish,
    judge,
    make_derived,
    make_instance,
    make_plan,
    receive_and_judge,
    record,
)

PLAN = "a" * 32


def send_and_outdate(ledger):
    receive_and_judge(ledger, [make_plan()])
    finish(ledger, make_derived(1), make_derived(2))
    for due in ledger.due_deliveries(PEER, START, 10):
        record(ledger, due.delivery_id, DeliveryState.SENT, 0, None)
    ledger.record_instances([make_instance(9)], "modality", None)
    assert judge(ledger, [])


def test_result_that_a_peer_took_and_nobody_wants_is_found(ledger):
    send_and_outdate(ledger)

    (outdated,) = ledger.find_outdated()

    assert (outdated.plan.plan_id, outdated.peers) == (PLAN, (PEER,))
    assert len(outdated.instances) == 2
    assert outdated.because == "what it was made of has changed"
    assert ledger.find_outdated("b" * 32) == []


def test_withdrawal_is_due_though_its_job_is_superseded(ledger):
    send_and_outdate(ledger)
    withdrawal = make_derived(1, Role.WITHDRAWAL, path="w.dcm", series_instance_uid="2.25.10")

    for _ in range(2):
        ledger.record_withdrawal(PLAN, withdrawal, [PEER], by="M. Meier", why="the real one came")

    (due,) = ledger.due_deliveries(PEER, START, 10)
    assert due.instance.sop_instance_uid == withdrawal.sop_instance_uid
    assert ledger.find_outdated() == []
    assert ledger.events()[-1].name == "job.withdrawn"
