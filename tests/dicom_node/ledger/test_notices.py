from dicom_node.domain import NoticeState
from dicom_node.ledger import Noted, Notice
from doubles.ledger import PEER, STUDY, make_instance

OTHER, STEP = "1.2.4", "1.2.3.9"


def make_notice(state: NoticeState | None, *studies: str, instances=None, reason=None) -> Notice:
    return Notice(
        sop_instance_uid=STEP, studies=studies, state=state, instances=instances, reason=reason
    )


BEGUN = make_notice(NoticeState.IN_PROGRESS, STUDY, instances=())
ENDED = make_notice(NoticeState.COMPLETED, instances=("1.2.7",))


def test_step_is_kept_before_its_study_comes_and_changed_by_its_peer_alone(ledger, clock):
    outcomes = [
        ledger.record_notice("scanner", ENDED),
        ledger.record_notice("scanner", BEGUN),
        ledger.record_notice("scanner", BEGUN),
        ledger.record_notice("other", ENDED),
    ]
    clock.advance(minutes=1)
    outcomes += [ledger.record_notice("scanner", ENDED), ledger.record_notice("scanner", ENDED)]

    assert outcomes == [
        Noted.UNKNOWN,
        Noted.TAKEN,
        Noted.KNOWN,
        Noted.UNKNOWN,
        Noted.TAKEN,
        Noted.OVER,
    ]
    [told] = ledger.notices(STUDY)
    assert (told.state, told.instances) == (NoticeState.COMPLETED, {"1.2.7"})
    assert (told.peer, told.changed_at) == ("scanner", clock.now)
    assert [event.name for event in ledger.events(STUDY)] == [
        "notice.in_progress",
        "notice.completed",
    ]


def test_change_leaves_what_it_does_not_say(ledger):
    ledger.record_notice("scanner", make_notice(NoticeState.IN_PROGRESS, STUDY, instances=("1.2",)))

    ledger.record_notice("scanner", make_notice(None))
    ledger.record_notice("scanner", make_notice(NoticeState.DISCONTINUED, reason="DCM:110501"))

    [told] = ledger.notices(STUDY)
    assert told.instances == {"1.2"}
    assert (told.state, told.reason) == (NoticeState.DISCONTINUED, "DCM:110501")


def test_studies_that_share_a_step_share_what_came(ledger):
    ledger.record_notice("scanner", make_notice(NoticeState.IN_PROGRESS, STUDY, OTHER))
    ledger.record_notice("scanner", ENDED)
    ledger.record_instances(
        [make_instance(1), make_instance(2, study_instance_uid=OTHER)], PEER, None
    )

    assert ledger.find_noticed_studies() == {STUDY, OTHER}
    assert ledger.notices(STUDY) == ledger.notices(OTHER)
    assert ledger.find_received(OTHER) == {"1.2.3.4.1", "1.2.3.4.2"}


def test_study_of_which_nothing_was_told_is_not_noticed(ledger):
    ledger.record_instances([make_instance()], PEER, None)

    assert ledger.find_noticed_studies() == set()
    assert ledger.notices(STUDY) == ()
