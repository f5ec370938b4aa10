import pytest

from dicom_node.domain import DeliveryState, Mode, Role
from dicom_node.errors import IllegalTransition, StorageError
from dicom_node.jobs import JobState
from dicom_node.ledger import HOLD_REASON
from doubles.ledger import (
    LEASE,
    PEER,
    SERIES,
    STUDY,
    finish,
    judge,
    make_derived,
    make_instance,
    make_plan,
    receive_and_judge,
)

PLAN = "a" * 32
BY = ("an operator", "a reason")
EMPTY = {"quality": {}, "seconds": {}, "record": []}


def hold(ledger, *instances):
    [job] = ledger.claim(1, LEASE)
    assert ledger.refuse_job(
        PLAN, job.attempt, ["too noisy", "wrong anatomy"], instances, quality={"verdict": "refuse"}
    )


def test_claim_takes_the_highest_priority_first(ledger, clock):
    plans = [make_plan(str(n) * 32, priority=n) for n in (1, 3, 2)]
    receive_and_judge(ledger, plans)

    first = ledger.claim(2, LEASE)
    second = ledger.claim(2, LEASE)

    assert [job.plan.priority for job in first + second] == [3, 2, 1]
    assert all(job.state == JobState.RUNNING and job.attempt == 1 for job in first)
    assert first[0].lease_until == clock.now + LEASE


def test_worker_keeps_its_job_while_it_renews(ledger, clock):
    receive_and_judge(ledger, [make_plan()])
    ledger.claim(1, LEASE)
    clock.advance(seconds=50)

    renewed = ledger.renew(PLAN, 1, LEASE)
    clock.advance(seconds=50)

    assert renewed
    assert ledger.return_lost(3) == []


def test_job_past_its_lease_is_queued_again(ledger, clock):
    receive_and_judge(ledger, [make_plan()])
    ledger.claim(1, LEASE)
    clock.advance(seconds=61)

    returned = ledger.return_lost(3)

    job = ledger.job(PLAN)
    assert returned == [PLAN]
    assert (job.state, job.attempt, job.losses, job.lease_until) == (JobState.QUEUED, 1, 1, None)


def test_worker_whose_lease_lapsed_changes_nothing(ledger, clock):
    receive_and_judge(ledger, [make_plan()])
    ledger.claim(1, LEASE)
    clock.advance(seconds=61)
    ledger.return_lost(3)
    ledger.claim(1, LEASE)

    reports = [
        ledger.renew(PLAN, 1, LEASE),
        ledger.record_derived(PLAN, 1, [make_derived()], **EMPTY),
        ledger.refuse_job(PLAN, 1, ["noise"]),
        ledger.fail_job(PLAN, 1, "broken"),
        ledger.lose_job(PLAN, 1, "gone", 3),
    ]

    assert reports == [False] * 5
    assert ledger.derived(PLAN) == []
    job = ledger.job(PLAN)
    assert (job.state, job.attempt) == (JobState.RUNNING, 2)


def test_job_that_kills_its_workers_fails(ledger):
    receive_and_judge(ledger, [make_plan()])

    for _ in range(3):
        [job] = ledger.claim(1, LEASE)
        ledger.lose_job(PLAN, job.attempt, "the worker was killed", 3)

    job = ledger.job(PLAN)
    assert (job.state, job.losses) == (JobState.FAILED, 3)
    assert job.reason == "the worker was killed; 3 workers were lost"


def test_restart_of_the_node_is_no_loss(ledger):
    receive_and_judge(ledger, [make_plan()])

    for _ in range(5):
        ledger.claim(1, LEASE)
        assert ledger.return_running() == [PLAN]

    job = ledger.job(PLAN)
    assert (job.state, job.attempt, job.losses) == (JobState.QUEUED, 5, 0)


def test_finished_job_queues_its_deliveries(ledger):
    receive_and_judge(ledger, [make_plan(deliver_to=("pacs", "archive"))])
    image, report = make_derived(1), make_derived(1, Role.REPORT)

    finish(ledger, image, report)

    job = ledger.job(PLAN)
    assert (job.state, job.reason, job.lease_until) == (JobState.DONE, None, None)
    assert (job.quality, job.seconds, job.record) == (
        {"verdict": "pass"},
        {"predict": 1.5},
        ("resampled",),
    )
    assert ledger.derived(PLAN) == [image, report]
    assert [(each.peer, each.instance) for each in ledger.deliveries(STUDY)] == [
        ("pacs", image),
        ("pacs", report),
        ("archive", image),
        ("archive", report),
    ]


def test_mode_hold_keeps_a_good_result_for_a_person(ledger):
    receive_and_judge(ledger, [make_plan(mode=Mode.HOLD)])

    finish(ledger)

    job = ledger.job(PLAN)
    assert (job.state, job.reason) == (JobState.HELD, HOLD_REASON)
    assert ledger.derived(PLAN) == [make_derived()]
    assert ledger.deliveries() == []


def test_mode_shadow_sends_nothing(ledger):
    receive_and_judge(ledger, [make_plan(mode=Mode.SHADOW)])

    finish(ledger)

    assert ledger.job(PLAN).state == JobState.DONE
    assert ledger.deliveries() == []


def test_refused_job_is_held_with_its_reasons_and_what_it_wrote(ledger):
    receive_and_judge(ledger, [make_plan()])

    hold(ledger, make_derived(1, Role.REPORT))

    job = ledger.job(PLAN)
    assert (job.state, job.reason) == (JobState.HELD, "too noisy; wrong anatomy")
    assert job.quality == {"verdict": "refuse"}
    assert ledger.derived(PLAN) == [make_derived(1, Role.REPORT)]
    assert ledger.deliveries() == []


def test_release_sends_a_held_result(ledger):
    receive_and_judge(ledger, [make_plan(mode=Mode.HOLD)])
    finish(ledger)

    ledger.release(PLAN, *BY)

    assert ledger.job(PLAN).state == JobState.DONE
    assert [each.state for each in ledger.deliveries()] == [DeliveryState.PENDING]
    assert ledger.events(STUDY)[-1].detail["by"] == "an operator"


def test_release_of_nothing_is_refused(ledger):
    receive_and_judge(ledger, [make_plan()])
    hold(ledger)

    with pytest.raises(IllegalTransition, match="nothing that could be released"):
        ledger.release(PLAN, *BY)

    assert ledger.job(PLAN).state == JobState.HELD


def test_reject_closes_a_held_job_with_the_reason(ledger):
    receive_and_judge(ledger, [make_plan()])
    hold(ledger)

    ledger.reject(PLAN, *BY)

    job = ledger.job(PLAN)
    assert (job.state, job.reason) == (JobState.REJECTED, "a reason")


def test_requeued_job_replaces_what_it_wrote_under_the_same_uids(ledger):
    receive_and_judge(ledger, [make_plan()])
    hold(ledger, make_derived())

    ledger.requeue(PLAN, *BY)
    finish(ledger, make_derived(path="derived/again.dcm"))

    assert [each.path for each in ledger.derived(PLAN)] == ["derived/again.dcm"]


def test_requeue_gives_a_failed_job_its_attempts_back(ledger):
    receive_and_judge(ledger, [make_plan()])
    [job] = ledger.claim(1, LEASE)
    ledger.lose_job(PLAN, job.attempt, "gone", 1)

    ledger.requeue(PLAN, *BY)

    job = ledger.job(PLAN)
    assert (job.state, job.losses, job.reason) == (JobState.QUEUED, 0, None)


def test_failed_job_says_why(ledger):
    receive_and_judge(ledger, [make_plan()])
    [job] = ledger.claim(1, LEASE)

    assert ledger.fail_job(PLAN, job.attempt, "no such codec")

    job = ledger.job(PLAN)
    assert (job.state, job.reason) == (JobState.FAILED, "no such codec")


@pytest.mark.parametrize("action", ["requeue", "release", "reject"])
def test_operator_cannot_take_an_arrow_that_is_not_drawn(ledger, action):
    receive_and_judge(ledger, [make_plan()])

    with pytest.raises(IllegalTransition):
        getattr(ledger, action)(PLAN, *BY)
    with pytest.raises(LookupError):
        getattr(ledger, action)("unknown", *BY)


def test_one_uid_never_belongs_to_two_jobs(ledger):
    receive_and_judge(ledger, [make_plan("1" * 32), make_plan("2" * 32)])
    finish(ledger)
    [job] = ledger.claim(1, LEASE)

    with pytest.raises(StorageError, match=r"IntegrityError|UniqueViolation"):
        ledger.record_derived(job.plan.plan_id, job.attempt, [make_derived()], **EMPTY)

    assert ledger.job(job.plan.plan_id).state == JobState.RUNNING


def test_sources_are_the_very_contents_of_the_plan(ledger):
    old, new = make_instance(1, "first"), make_instance(1, "second")
    ledger.record_instances([old], PEER, None)
    judge(ledger, [make_plan(source_instances=((old.sop_instance_uid, old.sha256),))])
    ledger.record_instances([new], PEER, None)

    assert ledger.read_sources(PLAN) == {"T1w": (old,)}


def test_sources_that_are_gone_are_a_lookup_error(ledger):
    receive_and_judge(ledger, [make_plan(source_instances=((f"{SERIES}.7", "0" * 64),))])

    with pytest.raises(LookupError, match="1 instances of the plan are gone"):
        ledger.read_sources(PLAN)
