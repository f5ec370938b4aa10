"""Questions to peers, in both databases: one generation of a study, until it is answered."""

from dicom_node.domain import InquiryState, Question, RemoteSeries
from doubles.ledger import PEER, SERIES, START, STUDY, judge, make_instance

QUESTION = Question(peer=PEER, siblings_within_days=1, fetch=True)
SERIES_THERE = RemoteSeries(
    peer=PEER,
    study_instance_uid=STUDY,
    series_instance_uid="7",
    instances=None,
    header={"Modality": "MR"},
)


def ask(ledger):
    ledger.record_instances([make_instance()], "modality", None)
    ledger.ask(STUDY, 1, [QUESTION])
    (due,) = ledger.find_due_inquiries(PEER, START, 10)
    return due


def test_question_is_due_until_it_is_answered(ledger):
    due = ask(ledger)
    assert ledger.find_waiting_studies() == {STUDY}

    ledger.record_inquiry(due, InquiryState.ANSWERED, found=[SERIES_THERE])

    (answered,) = ledger.inquiries(STUDY)
    assert (answered.state, answered.found) == (InquiryState.ANSWERED, (SERIES_THERE,))
    assert answered.question == QUESTION
    assert ledger.find_due_inquiries(PEER, START, 10) == ()
    assert ledger.find_waiting_studies() == set()


def test_answer_stays_whatever_comes_after_it(ledger):
    due = ask(ledger)
    ledger.record_inquiry(due, InquiryState.ANSWERED)

    ledger.record_inquiry(due, InquiryState.SILENT, reason="too late")

    (answered,) = ledger.inquiries(STUDY)
    assert (answered.state, answered.reason) == (InquiryState.ANSWERED, None)


def test_answer_belongs_to_one_generation(ledger):
    due = ask(ledger)
    ledger.record_inquiry(due, InquiryState.ANSWERED)
    assert judge(ledger)
    ledger.record_instances([make_instance(2)], "modality", None)

    assert ledger.inquiries(STUDY) == ()
    ledger.ask(STUDY, 2, [QUESTION])
    (due,) = ledger.find_due_inquiries(PEER, START, 10)
    assert due.generation == 2


def test_series_are_counted_by_their_instances(ledger):
    ledger.record_instances([make_instance(1), make_instance(2), make_instance(1)], "a", None)

    assert ledger.count_series(STUDY) == {SERIES: 2}
    assert ledger.find_own_series([SERIES]) == set()
