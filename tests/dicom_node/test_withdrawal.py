"""A result that was sent and is not wanted any more is taken back, where the rule says so."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

import pytest
from pydicom import Dataset

from dicom_node import withdrawal
from dicom_node.demonstration.validators import find_errors
from dicom_node.domain import DeliveryState, Role
from dicom_node.elements import encode
from dicom_node.jobs import JobState
from dicom_node.rules import Routing
from doubles.ledger import STUDY, judge, make_instance, make_plan
from doubles.outbox import Outbox
from doubles.scripted_pacs import MR, ScriptedPacs
from doubles.series import make_series, require_validators, write_files
from doubles.studies import NAMESPACE, load_routing

pytestmark = pytest.mark.integration

KEY_OBJECT = "1.2.840.10008.5.1.4.1.1.88.59"
PLAN = "a" * 32


def make_routing(when_late: str) -> Routing:
    """Return the shipped rules; the first is the one that planned, with another policy."""
    first, *others = load_routing().rules
    changed = first.model_copy(update={"name": "brain", "when_late": when_late})
    return Routing.model_construct(degraded=None, rules=(changed, *others))


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    outbox = Outbox(tmp_path / "outbox", one_series=True)
    content = Dataset()
    content.update(dict(make_series("T1w")[0].items()))
    outbox.fill(peers=("pacs", "archive"), content=content)
    yield outbox
    outbox.ledger.close()


@pytest.fixture
def pacs() -> Iterator[ScriptedPacs]:
    with ScriptedPacs(classes=(MR, KEY_OBJECT)) as pacs:
        yield pacs


def outdate(outbox: Outbox) -> None:
    """Let a late series come, after which nobody wants the result."""
    outbox.ledger.record_instances([make_instance(9)], "modality", None)
    assert judge(outbox.ledger, [])
    assert outbox.ledger.job(PLAN).state is JobState.SUPERSEDED


def sweep(outbox: Outbox, when_late: str = "withdraw") -> int:
    return withdrawal.sweep(outbox.ledger, outbox.store, make_routing(when_late), NAMESPACE)


def test_result_that_was_sent_is_withdrawn_from_those_that_took_it(outbox, pacs):
    outbox.sweep(pacs)
    outdate(outbox)

    assert sweep(outbox) == 1
    outbox.sweep(pacs)

    (document,) = [each for each in pacs.datasets.values() if each.SOPClassUID == KEY_OBJECT]
    title = document.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113001", "DCM")
    assert document.StudyInstanceUID == outbox.study
    (evidence,) = document.CurrentRequestedProcedureEvidenceSequence
    named = [
        item.ReferencedSOPInstanceUID
        for series in evidence.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]
    assert sorted(named) == sorted(outbox.uids)
    states = {
        each.peer: each.state
        for each in outbox.ledger.deliveries(STUDY)
        if each.instance.role is Role.WITHDRAWAL
    }
    assert states == {"pacs": DeliveryState.SENT}
    assert str(outbox.ledger.job(PLAN).reason).startswith("withdrawn by rule: ")


def test_withdrawal_is_queued_once(outbox, pacs):
    outbox.sweep(pacs)
    outdate(outbox)

    assert [sweep(outbox), sweep(outbox)] == [1, 0]


def test_what_nobody_took_needs_no_withdrawal(outbox):
    outdate(outbox)

    assert sweep(outbox) == 0


@pytest.mark.parametrize("when_late", ["keep", "ask"])
def test_rule_may_leave_the_result_or_a_person_decide(outbox, pacs, when_late):
    outbox.sweep(pacs)
    outdate(outbox)

    assert sweep(outbox, when_late) == 0
    assert [each.plan.plan_id for each in outbox.ledger.find_outdated()] == [PLAN]
    alerts = list(withdrawal.find_alerts(outbox.ledger, make_routing(when_late)))
    assert len(alerts) == (1 if when_late == "ask" else 0)
    assert all("pacs took the result of job" in alert for alert in alerts)


def test_person_withdraws_what_the_rule_keeps(outbox, pacs):
    outbox.sweep(pacs)
    outdate(outbox)
    (outdated,) = outbox.ledger.find_outdated(PLAN)

    why = "the T2w was acquired after all"
    withdrawal.withdraw(outdated, outbox.ledger, outbox.store, NAMESPACE, by="M. Meier", why=why)

    assert outbox.ledger.job(PLAN).reason == f"withdrawn by M. Meier: {why}"
    assert outbox.ledger.find_outdated(PLAN) == []


def test_what_was_withdrawn_is_not_sent_again(outbox, pacs):
    outbox.sweep(pacs)
    outdate(outbox)
    sweep(outbox)
    outbox.ledger.record_instances([make_instance(10)], "modality", None)

    assert judge(outbox.ledger, [make_plan()])

    assert outbox.ledger.job(PLAN).state is JobState.SUPERSEDED


def test_withdrawal_is_known_as_our_own_and_stays_the_same(outbox, pacs):
    outbox.sweep(pacs)
    outdate(outbox)
    (outdated,) = outbox.ledger.find_outdated()
    headers = make_series("T1w")

    first, second = (
        encode(withdrawal.write_withdrawal(headers, PLAN, NAMESPACE, outdated.since))
        for _ in range(2)
    )
    sweep(outbox)

    assert first == second
    (row,) = [e for e in outbox.ledger.derived(PLAN) if e.role is Role.WITHDRAWAL]
    assert outbox.ledger.own_uids([row.sop_instance_uid]) == {row.sop_instance_uid}


def test_key_object_selection_conforms(tmp_path: Path) -> None:
    images = make_series("T1w")
    for image in images:
        image.InstanceCreatorUID = "1.2.3"
    document = withdrawal.write_withdrawal(
        images, PLAN, UUID(int=5), Outbox(tmp_path / "o").clock.now
    )

    def save(instances: Sequence[object], name: str) -> list[Path]:
        return write_files(instances, tmp_path / name)

    errors = find_errors(require_validators(), save([document], "ko"), save(images, "images"))

    assert errors == []
