from datetime import timedelta

import pytest

from dicom_node.domain import (
    ContrastLabel,
    DeliveryState,
    Gap,
    Label,
    Origin,
    Refusal,
    Series,
    SlotState,
    StudyState,
)
from dicom_node.errors import IllegalTransition
from dicom_node.jobs import JobState
from dicom_node.ledger import SUPERSEDED, JudgedSeries
from doubles.ledger import (
    LEASE,
    PEER,
    SERIES,
    STUDY,
    finish,
    judge,
    make_instance,
    make_plan,
    receive_and_judge,
)

FIRST, SECOND = "1" * 32, "2" * 32


def states(ledger):
    return {job.plan.plan_id: job.state for job in ledger.jobs(STUDY)}


def reopen(ledger, late=99):
    ledger.record_instances([make_instance(late)], PEER, None)


def test_judgement_reads_back_as_it_was_written(ledger, clock):
    ledger.record_instances([make_instance()], PEER, None)
    label = Label(
        contrast=ContrastLabel("T1w"),
        confidence=0.9,
        evidence=("short TR",),
        attributes={"plane": "axial", "fat_suppression": False},
        candidates=(),
    )
    labelled = Series(
        series_instance_uid=SERIES,
        modality="MR",
        origin=Origin.ACQUIRED,
        instances=(make_instance(),),
        frame_of_reference_uid="1.7",
        label=label,
    )
    broken = Series(
        series_instance_uid="1.8",
        modality="CT",
        origin=Origin.DERIVED,
        instances=(),
        problem=("slice_gap", "a slice is missing"),
    )
    gap = Gap(
        study_instance_uid=STUDY,
        rule="brain",
        target=ContrastLabel("T2w"),
        state=SlotState.MISSING,
    )
    refusal = Refusal(rule="brain", target=ContrastLabel("CT"), code="no_model", reason="none")

    ledger.record_judgement(
        STUDY,
        1,
        seen=1,
        series=[labelled, broken],
        slots={"brain": {"T2w": "missing"}},
        gaps=[gap],
        plans=[],
        refusals=[refusal],
    )

    judgement = ledger.read_judgement(STUDY)
    assert judgement.series == (
        JudgedSeries(
            series_instance_uid=SERIES,
            modality="MR",
            origin=Origin.ACQUIRED,
            frame_of_reference_uid="1.7",
            instances=1,
            label=label,
            problem=None,
        ),
        JudgedSeries(
            series_instance_uid="1.8",
            modality="CT",
            origin=Origin.DERIVED,
            frame_of_reference_uid=None,
            instances=0,
            label=None,
            problem=("slice_gap", "a slice is missing"),
        ),
    )
    assert (judgement.gaps, judgement.refusals) == ((gap,), (refusal,))
    assert judgement.slots == {"brain": {"T2w": "missing"}}
    assert (judgement.generation, judgement.judged_at) == (1, clock.now)


def test_plan_reads_back_as_it_was_written(ledger):
    receive_and_judge(ledger, [make_plan()])

    assert ledger.job("a" * 32).plan == make_plan()


def test_judged_study_has_its_plans_queued(ledger):
    receive_and_judge(ledger, [make_plan(FIRST), make_plan(SECOND)])

    assert ledger.study_row(STUDY).state == StudyState.JUDGED
    assert states(ledger) == {FIRST: JobState.QUEUED, SECOND: JobState.QUEUED}


def test_instance_that_comes_while_judging_voids_the_judgement(ledger):
    ledger.record_instances([make_instance(1)], PEER, None)
    row = ledger.study_row(STUDY)
    ledger.record_instances([make_instance(2)], PEER, None)

    judged = ledger.record_judgement(
        STUDY,
        row.generation,
        seen=row.seen,
        series=(),
        slots={},
        gaps=(),
        plans=[make_plan()],
        refusals=(),
    )
    held = ledger.hold_study(STUDY, row.generation, "code", "reason", seen=row.seen)

    assert (judged, held) == (False, False)
    assert ledger.jobs() == []
    assert ledger.study_row(STUDY).state == StudyState.RECEIVING


def test_judgement_of_an_older_generation_is_void(ledger):
    receive_and_judge(ledger)
    reopen(ledger)

    assert not ledger.hold_study(STUDY, 1, "code", "reason", seen=2)


def test_study_is_judged_once(ledger):
    receive_and_judge(ledger)

    assert not judge(ledger)


def test_unchanged_plan_keeps_its_job_in_the_next_generation(ledger):
    receive_and_judge(ledger, [make_plan()])
    finish(ledger)
    reopen(ledger)

    judge(ledger, [make_plan(generation=2)])

    [job] = ledger.jobs(STUDY)
    assert (job.state, job.plan.generation, job.attempt) == (JobState.DONE, 2, 1)
    assert len(ledger.deliveries(STUDY)) == 1


def test_plan_that_is_no_longer_wanted_is_superseded_and_not_sent(ledger, clock):
    receive_and_judge(ledger, [make_plan(FIRST)])
    finish(ledger)
    reopen(ledger)

    judge(ledger, [make_plan(SECOND)])

    assert states(ledger) == {FIRST: JobState.SUPERSEDED, SECOND: JobState.QUEUED}
    [delivery] = ledger.deliveries(STUDY)
    assert (delivery.state, delivery.reason) == (DeliveryState.PARKED, SUPERSEDED)
    assert ledger.due_deliveries(PEER, clock.now, 10) == []


def test_superseded_job_that_is_wanted_again_is_done_after_all(ledger):
    receive_and_judge(ledger, [make_plan(FIRST)])
    reopen(ledger)
    judge(ledger)
    reopen(ledger, late=100)

    judge(ledger, [make_plan(FIRST, generation=3)])

    assert states(ledger) == {FIRST: JobState.QUEUED}


def test_superseded_result_that_is_wanted_again_goes_out_as_it_was(ledger, clock):
    receive_and_judge(ledger, [make_plan(FIRST)])
    finish(ledger)
    reopen(ledger)
    judge(ledger)
    reopen(ledger, late=100)

    judge(ledger, [make_plan(FIRST, generation=3)])

    assert states(ledger) == {FIRST: JobState.DONE}
    assert len(ledger.due_deliveries(PEER, clock.now, 10)) == 1


def test_worker_of_a_superseded_job_changes_nothing(ledger):
    receive_and_judge(ledger, [make_plan(FIRST)])
    [job] = ledger.claim(1, LEASE)
    reopen(ledger)
    judge(ledger)

    recorded = ledger.record_derived(FIRST, job.attempt, [], quality={}, seconds={}, record=[])

    assert not recorded
    assert states(ledger) == {FIRST: JobState.SUPERSEDED}


def test_rejected_job_stays_rejected(ledger):
    receive_and_judge(ledger, [make_plan(FIRST)])
    [job] = ledger.claim(1, LEASE)
    ledger.refuse_job(FIRST, job.attempt, ["noise"])
    ledger.reject(FIRST, "an operator", "noise")
    reopen(ledger)

    judge(ledger)

    assert states(ledger) == {FIRST: JobState.REJECTED}
    with pytest.raises(IllegalTransition):
        ledger.requeue(FIRST, "an operator", "again")


def test_held_study_says_why(ledger, clock):
    ledger.record_instances([make_instance()], PEER, None)

    ledger.hold_study(STUDY, 1, "identity_conflict", "two patients", seen=1)

    row = ledger.study_row(STUDY)
    assert (row.state, row.hold_code, row.hold_reason, row.judged_at) == (
        StudyState.HELD,
        "identity_conflict",
        "two patients",
        clock.now,
    )
    assert ledger.read_judgement(STUDY).series == ()


def test_operator_reopens_a_held_study(ledger):
    ledger.record_instances([make_instance()], PEER, None)
    ledger.hold_study(STUDY, 1, "code", "reason", seen=1)

    ledger.reopen_study(STUDY, "an operator", "the rules are mended")

    row = ledger.study_row(STUDY)
    assert (row.state, row.generation, row.hold_code) == (StudyState.RECEIVING, 2, None)


def test_headers_come_back_with_their_instances(ledger):
    one, two = make_instance(1), make_instance(2)
    ledger.record_instances([one, two], PEER, None)

    ledger.record_headers({(one.sop_instance_uid, one.sha256): {"EchoTime": 90.0, "ImageType": []}})
    ledger.record_headers({})

    headers = {each.sop_instance_uid: each.header for each in ledger.read_instances(STUDY)}
    assert headers == {
        one.sop_instance_uid: {"EchoTime": 90.0, "ImageType": []},
        two.sop_instance_uid: None,
    }


def test_newest_study_is_listed_first(ledger, clock):
    ledger.record_instances([make_instance(1)], PEER, None)
    clock.advance(seconds=1)
    ledger.record_instances([make_instance(2, study_instance_uid="1.9")], PEER, None)

    assert [row.study_instance_uid for row in ledger.studies()] == ["1.9", STUDY]


def test_unknown_study_is_a_lookup_error(ledger):
    with pytest.raises(LookupError):
        ledger.study_row("1.9")
    with pytest.raises(LookupError):
        ledger.read_judgement("1.9")
    with pytest.raises(LookupError):
        ledger.reopen_study("1.9", "an operator", "why not")


def test_jobs_of_a_study_that_receives_again_wait(ledger, clock):
    receive_and_judge(ledger, [make_plan(FIRST), make_plan(SECOND)])
    finish(ledger)
    reopen(ledger)

    waiting = ledger.claim(9, LEASE), ledger.due_deliveries(PEER, clock.now, 9)
    judge(ledger, [make_plan(FIRST), make_plan(SECOND)])

    assert waiting == ([], [])
    assert len(ledger.due_deliveries(PEER, clock.now, 9)) == 1
    assert len(ledger.claim(9, timedelta(seconds=1))) == 1
