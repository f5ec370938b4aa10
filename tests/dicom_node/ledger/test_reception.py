from datetime import timedelta

from sqlalchemy import select

from dicom_node.domain import StudyState
from dicom_node.schema import association_study
from doubles.ledger import PEER, STUDY, finish, judge, make_derived, make_instance, make_plan
from doubles.ledger import receive_and_judge as receive

QUIET = timedelta(seconds=60)
STALE = timedelta(seconds=90)


def names(ledger):
    return [event.name for event in ledger.events(STUDY)]


def test_first_instance_opens_a_study(ledger, clock):
    ledger.record_instances([make_instance(1), make_instance(2)], PEER, None)

    row = ledger.study_row(STUDY)
    assert (row.state, row.generation, row.seen) == (StudyState.RECEIVING, 1, 2)
    assert row.first_received == row.last_received == clock.now
    assert names(ledger) == ["study.received"]


def test_same_content_again_changes_nothing(ledger, clock):
    receive(ledger)
    before = ledger.study_row(STUDY)
    clock.advance(hours=1)

    ledger.record_instances([make_instance()], PEER, None)

    assert ledger.study_row(STUDY) == before
    assert len(ledger.read_instances(STUDY)) == 1


def test_one_batch_may_hold_an_instance_twice(ledger):
    ledger.record_instances([make_instance(), make_instance()], PEER, None)

    assert ledger.study_row(STUDY).seen == 1


def test_late_instance_reopens_a_judged_study(ledger, clock):
    receive(ledger)
    clock.advance(hours=1)

    ledger.record_instances([make_instance(2)], PEER, None)

    row = ledger.study_row(STUDY)
    assert (row.state, row.generation) == (StudyState.RECEIVING, 2)
    assert row.last_received == clock.now
    assert "study.reopened" in names(ledger)


def test_late_instance_reopens_a_held_study_and_takes_its_reason_away(ledger):
    ledger.record_instances([make_instance()], PEER, None)
    assert ledger.hold_study(STUDY, 1, "slice_gap", "a slice is missing", seen=1)

    ledger.record_instances([make_instance(2)], PEER, None)

    row = ledger.study_row(STUDY)
    assert (row.state, row.generation, row.hold_code) == (StudyState.RECEIVING, 2, None)


def test_instance_in_a_receiving_study_does_not_make_a_generation(ledger):
    ledger.record_instances([make_instance(1)], PEER, None)

    ledger.record_instances([make_instance(2)], PEER, None)

    assert ledger.study_row(STUDY).generation == 1


def test_own_output_coming_back_reopens_nothing(ledger):
    receive(ledger, [make_plan()])
    finish(ledger)
    echo = make_instance(sop_instance_uid=make_derived().sop_instance_uid)

    ledger.record_instances([echo], PEER, None)

    assert ledger.study_row(STUDY).state == StudyState.JUDGED
    assert echo in ledger.read_instances(STUDY)
    assert ledger.is_own(echo.sop_instance_uid)
    assert ledger.own_uids([echo.sop_instance_uid, "1.2"]) == {echo.sop_instance_uid}


def test_study_is_quiet_after_the_quiet_period(ledger, clock):
    ledger.record_instances([make_instance()], PEER, None)

    clock.advance(seconds=59)
    before = ledger.find_quiet_studies(QUIET, STALE)
    clock.advance(seconds=1)

    assert (before, ledger.find_quiet_studies(QUIET, STALE)) == ([], [STUDY])
    assert ledger.find_receiving_studies() == [STUDY]


def test_judged_study_is_not_quiet_but_done(ledger, clock):
    receive(ledger)
    clock.advance(hours=1)

    assert ledger.find_quiet_studies(QUIET, STALE) == []
    assert ledger.find_receiving_studies() == []


def test_open_association_keeps_its_study_from_being_quiet(ledger, clock):
    ledger.record_instances([make_instance()], PEER, "one")
    clock.advance(seconds=80)

    during = ledger.find_quiet_studies(QUIET, STALE)
    ledger.record_receipts([], closed=["one"])

    assert (during, ledger.find_quiet_studies(QUIET, STALE)) == ([], [STUDY])


def test_association_without_a_beat_counts_as_closed(ledger, clock):
    ledger.record_instances([make_instance()], PEER, "one")
    clock.advance(seconds=80)
    ledger.record_receipts([], alive=["one"])
    clock.advance(seconds=80)

    alive = ledger.find_quiet_studies(QUIET, STALE)
    clock.advance(seconds=10)

    assert (alive, ledger.find_quiet_studies(QUIET, STALE)) == ([], [STUDY])


def test_association_that_delivers_elsewhere_keeps_nobody_waiting(ledger, clock):
    ledger.record_instances([make_instance()], PEER, None)
    clock.advance(seconds=80)
    ledger.record_instances([make_instance(9, study_instance_uid="1.9")], PEER, "one")

    assert ledger.find_quiet_studies(QUIET, STALE) == [STUDY]


def test_restart_closes_every_association(ledger, clock):
    ledger.record_instances([make_instance()], PEER, "one")
    clock.advance(seconds=61)

    ledger.close_all_associations()

    assert ledger.find_quiet_studies(QUIET, STALE) == [STUDY]


def test_closed_association_is_told_once_and_leaves_no_rows(ledger):
    ledger.record_instances([make_instance()], PEER, "one")

    ledger.record_receipts([], closed=["one"])
    ledger.record_receipts([], closed=["one"])

    told = [event.name for event in ledger.events() if event.name.startswith("association")]
    assert told == ["association.opened", "association.closed"]
    with ledger._reading() as connection:
        assert not connection.execute(select(association_study)).all()


def test_instance_of_an_unknown_association_is_kept(ledger):
    ledger.record_instances([make_instance()], PEER, "never opened")

    assert judge(ledger)


def test_empty_batch_writes_nothing(ledger):
    ledger.record_instances([], PEER, None)

    assert ledger.events() == []
