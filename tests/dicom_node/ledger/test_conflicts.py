from pathlib import PurePosixPath

import pytest

from dicom_node.domain import UID_CONFLICT, Instance, StudyState
from dicom_node.errors import IllegalTransition
from dicom_node.ledger import Ledger, Receipt
from doubles.ledger import (
    PEER,
    STUDY,
    finish,
    judge,
    make_derived,
    make_instance,
    make_plan,
    receive_and_judge,
)

FIRST, SECOND, THIRD = (make_instance(1, content) for content in ("first", "second", "third"))
ELSEWHERE = "1.9"


def quarantine(path: str) -> str:
    return f"quarantine/{PurePosixPath(path).name}"


def receive(ledger: Ledger, *instances: Instance, association: str | None = None) -> list[str]:
    """Receive as the recorder does; return the paths of what was contested."""
    receipts = [Receipt(instance=each, peer=PEER, association_id=association) for each in instances]
    contested = ledger.record_receipts(receipts, quarantine=quarantine)
    return [each.instance.path for each in contested]


def hold(ledger: Ledger, study: str = STUDY) -> None:
    row = ledger.study_row(study)
    assert ledger.hold_study(study, row.generation, UID_CONFLICT, "two contents", seen=row.seen)


def quarantined(ledger: Ledger, study: str = STUDY) -> list[str]:
    return [each.quarantined for each in ledger.conflicts(study)]


def test_the_first_content_of_a_uid_is_the_only_one_that_counts(ledger):
    receive(ledger, FIRST)

    assert receive(ledger, SECOND) == [quarantine(SECOND.path)]

    assert ledger.read_instances(STUDY) == (FIRST,)
    (conflict,) = ledger.conflicts(STUDY)
    assert (conflict.sop_instance_uid, conflict.peer) == (FIRST.sop_instance_uid, PEER)
    assert (conflict.kept, conflict.quarantined) == (FIRST.path, quarantine(SECOND.path))


def test_the_order_of_arrival_decides_within_a_batch(ledger):
    other = make_instance(2)
    ledger.record_receipts(
        [
            Receipt(instance=other, peer=PEER, association_id="a"),
            Receipt(instance=SECOND, peer=PEER, association_id="b"),
            Receipt(instance=FIRST, peer=PEER, association_id="a"),
        ],
        quarantine=quarantine,
    )

    assert ledger.read_instances(STUDY) == (other, SECOND)
    assert quarantined(ledger) == [quarantine(FIRST.path)]


def test_what_came_twice_is_one_conflict_and_what_came_first_is_none(ledger):
    receive(ledger, FIRST, SECOND)

    assert receive(ledger, SECOND, FIRST, SECOND) == []

    assert quarantined(ledger) == [quarantine(SECOND.path)]
    assert ledger.study_row(STUDY).seen == 2


def test_a_contested_content_that_comes_again_is_moved_again(ledger):
    receive(ledger, FIRST, SECOND)
    moved = []

    ledger.record_receipts(
        [Receipt(instance=SECOND, peer=PEER, association_id=None)],
        quarantine=lambda path: moved.append(path) or quarantine(path),
    )

    assert moved == [SECOND.path]


def test_a_conflict_reopens_a_judged_study_and_is_told_once(ledger):
    receive_and_judge(ledger)

    receive(ledger, SECOND, THIRD)

    row = ledger.study_row(STUDY)
    assert (row.state, row.generation) == (StudyState.RECEIVING, 2)
    (told,) = [event for event in ledger.events(STUDY) if event.name == "study.uid_conflict"]
    assert told.detail == {"peer": PEER, "new": 2}


def test_a_conflict_outlives_the_bytes_of_the_first_content(ledger, clock):
    receive_and_judge(ledger)
    clock.advance(days=30)
    ledger.forget_bytes([FIRST.path])

    receive(ledger, SECOND)

    assert ledger.read_instances(STUDY) == (FIRST,)
    assert quarantined(ledger) == [quarantine(SECOND.path)]


def test_released_study_is_judged_again_with_its_first_contents(ledger):
    receive(ledger, FIRST, SECOND)
    hold(ledger)

    ledger.release_study(STUDY, "M. Meier", "the second is a test image")

    row = ledger.study_row(STUDY)
    assert (row.state, row.generation, row.hold_code) == (StudyState.RECEIVING, 2, None)
    assert ledger.conflicts(STUDY) == []
    assert ledger.read_instances(STUDY) == (FIRST,)
    told = ledger.events(STUDY)[-1]
    assert (told.name, told.detail["by"], told.detail["conflicts"]) == (
        "study.released",
        "M. Meier",
        1,
    )


def test_a_further_conflict_is_open_after_a_release(ledger):
    receive(ledger, FIRST, SECOND)
    hold(ledger)
    ledger.release_study(STUDY, "M. Meier", "looked at")

    receive(ledger, SECOND)
    assert ledger.conflicts(STUDY) == []
    receive(ledger, THIRD)

    assert quarantined(ledger) == [quarantine(THIRD.path)]


@pytest.mark.parametrize("code", [None, "identity_conflict"])
def test_only_a_study_held_for_its_conflicts_can_be_released(ledger, code):
    receive(ledger, FIRST)
    if code is not None:
        assert ledger.hold_study(STUDY, 1, code, "two patients", seen=1)

    with pytest.raises(IllegalTransition, match=code or "receiving"):
        ledger.release_study(STUDY, "M. Meier", "why not")
    with pytest.raises(LookupError):
        ledger.release_study("1.404", "M. Meier", "why not")


def test_closed_study_says_who_and_why_and_is_no_alarm(ledger):
    receive(ledger, FIRST)
    assert ledger.hold_study(STUDY, 1, "identity_conflict", "two patients", seen=1)

    ledger.reject_study(STUDY, "M. Meier", "another patient's images are in it")

    row = ledger.study_row(STUDY)
    assert (row.state, row.hold_code) == (StudyState.HELD, "rejected")
    assert row.hold_reason == "another patient's images are in it"
    told = ledger.events(STUDY)[-1]
    assert (told.name, told.detail["by"]) == ("study.rejected", "M. Meier")
    with pytest.raises(IllegalTransition, match="held, rejected"):
        ledger.reject_study(STUDY, "M. Meier", "again")


def test_closed_study_opens_again_when_something_comes(ledger):
    receive(ledger, FIRST)
    assert ledger.hold_study(STUDY, 1, "identity_conflict", "two patients", seen=1)
    ledger.reject_study(STUDY, "M. Meier", "looked at")

    receive(ledger, make_instance(2))

    assert ledger.study_row(STUDY).state is StudyState.RECEIVING


def test_only_a_held_study_can_be_closed(ledger):
    receive(ledger, FIRST)

    with pytest.raises(IllegalTransition, match="receiving"):
        ledger.reject_study(STUDY, "M. Meier", "why not")
    with pytest.raises(LookupError):
        ledger.reject_study("1.404", "M. Meier", "why not")


def test_a_uid_in_two_studies_contests_both(ledger):
    receive_and_judge(ledger)
    stranger = make_instance(1, "second", study_instance_uid=ELSEWHERE)

    receive(ledger, stranger)

    assert ledger.study_row(STUDY).state is StudyState.RECEIVING
    assert ledger.read_instances(ELSEWHERE) == ()
    assert quarantined(ledger) == quarantined(ledger, ELSEWHERE) == [quarantine(stranger.path)]
    hold(ledger)
    ledger.release_study(STUDY, "M. Meier", "this one is right")
    assert quarantined(ledger) == []
    assert quarantined(ledger, ELSEWHERE) == [quarantine(stranger.path)]


def test_a_conflict_from_another_study_voids_a_judgement_that_has_not_seen_it(ledger):
    receive(ledger, FIRST)
    row = ledger.study_row(STUDY)

    receive(ledger, make_instance(1, "second", study_instance_uid=ELSEWHERE))

    assert not ledger.hold_study(STUDY, row.generation, "slice_gap", "too late", seen=row.seen)


def test_own_output_that_comes_back_changed_is_no_conflict_and_no_source(ledger):
    receive_and_judge(ledger, [make_plan()])
    finish(ledger)
    own = make_derived().sop_instance_uid
    echo, changed = (make_instance(content=each, sop_instance_uid=own) for each in ("a", "b"))

    assert receive(ledger, echo) == receive(ledger, changed) == []

    assert ledger.conflicts(STUDY) == []
    assert ledger.study_row(STUDY).state is StudyState.JUDGED
    assert ledger.read_instances(STUDY) == (FIRST, echo)


def test_what_was_quarantined_under_a_lost_ledger_is_no_source(ledger):
    found = make_instance(1, "second", path=quarantine(SECOND.path))
    receive(ledger, found)

    assert ledger.read_instances(STUDY) == ()
    assert [each.kept for each in ledger.conflicts(STUDY)] == [None]
    receive(ledger, FIRST)
    assert ledger.read_instances(STUDY) == (FIRST,)
    assert quarantined(ledger) == [found.path]


def test_no_content_is_forgotten_while_a_person_has_to_choose(ledger, clock):
    receive(ledger, FIRST, SECOND)
    hold(ledger)
    clock.advance(days=365)
    assert ledger.find_expired_instances(clock.now) == []

    ledger.release_study(STUDY, "M. Meier", "looked at")
    assert judge(ledger)

    assert ledger.find_expired_instances(clock.now) == [FIRST.path, quarantine(SECOND.path)]


def test_held_studies_are_counted_by_their_reason(ledger):
    assert ledger.counts()["holds.uid_conflict"] == 0
    receive(ledger, FIRST, SECOND)
    hold(ledger)

    assert ledger.counts()["holds.uid_conflict"] == 1
