from dataclasses import replace

from dicom_node.domain import StepState
from doubles.ledger import STEP, STUDY


def test_step_is_known_from_before_it_is_claimed_until_it_is_over(ledger):
    assert ledger.begin_step(STEP)
    assert not ledger.begin_step(replace(STEP, transaction_uid="2.25.9"))
    assert ledger.find_open_steps("manager") == [STEP]
    assert ledger.find_open_steps("other") == []

    ledger.change_step(STEP, StepState.CLAIMED, told="claimed")
    [claimed] = ledger.find_open_steps("manager")
    ledger.change_step(claimed, StepState.CLAIMED, rounds=1, reason="the PACS is silent")
    ledger.change_step(claimed, StepState.CANCELED)

    assert ledger.find_open_steps("manager") == []
    [over] = ledger.steps(STUDY)
    assert (over.state, over.told, over.rounds, over.reason) == (
        StepState.CANCELED,
        "claimed",
        1,
        "the PACS is silent",
    )
    assert [each.name for each in ledger.events(STUDY)] == ["step.claimed", "step.canceled"]
