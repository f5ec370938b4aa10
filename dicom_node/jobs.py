"""The life of a synthesis job: its states, the events that move it, and the table of arrows.

The ledger stores the state; nothing else decides it. An unlisted pair raises `IllegalTransition`.
"""

from enum import StrEnum

from dicom_node.errors import IllegalTransition


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # a worker holds its lease
    DONE = "done"  # derived series written, deliveries queued
    HELD = "held"  # a person must look: refused by the gate, mode hold, or whose it is is not sure
    FAILED = "failed"  # the same input would fail again
    REJECTED = "rejected"  # a person looked and said no
    SUPERSEDED = "superseded"  # the study changed or the real series came; nothing more is sent


class JobEvent(StrEnum):
    """What happens to a job."""

    CLAIM = "claim"  # a dispatcher takes it
    FINISH = "finish"  # the worker wrote the derived series
    REFUSE = "refuse"  # quality, or a rule in mode hold
    LOSE = "lose"  # the worker died or its lease ran out
    FAIL = "fail"  # not retryable, or out of attempts
    REQUEUE = "requeue"  # an operator tries again
    RELEASE = "release"  # an operator lets a held result go out
    REJECT = "reject"  # an operator says no
    DOUBT = "doubt"  # what it made says another patient than what came since
    SUPERSEDE = "supersede"  # the study changed under it
    REPLAN = "replan"  # a judgement wants it again, and it has no result yet
    RESTORE = "restore"  # a judgement wants it again, and its result was on its way out


TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.QUEUED, JobEvent.CLAIM): JobState.RUNNING,
    (JobState.QUEUED, JobEvent.SUPERSEDE): JobState.SUPERSEDED,
    (JobState.RUNNING, JobEvent.FINISH): JobState.DONE,
    (JobState.RUNNING, JobEvent.REFUSE): JobState.HELD,
    (JobState.RUNNING, JobEvent.LOSE): JobState.QUEUED,
    (JobState.RUNNING, JobEvent.FAIL): JobState.FAILED,
    (JobState.RUNNING, JobEvent.SUPERSEDE): JobState.SUPERSEDED,
    (JobState.DONE, JobEvent.DOUBT): JobState.HELD,
    (JobState.DONE, JobEvent.SUPERSEDE): JobState.SUPERSEDED,
    (JobState.HELD, JobEvent.REQUEUE): JobState.QUEUED,
    (JobState.HELD, JobEvent.RELEASE): JobState.DONE,
    (JobState.HELD, JobEvent.REJECT): JobState.REJECTED,
    (JobState.HELD, JobEvent.SUPERSEDE): JobState.SUPERSEDED,
    (JobState.FAILED, JobEvent.REQUEUE): JobState.QUEUED,
    (JobState.FAILED, JobEvent.SUPERSEDE): JobState.SUPERSEDED,
    (JobState.SUPERSEDED, JobEvent.REPLAN): JobState.QUEUED,
    (JobState.SUPERSEDED, JobEvent.RESTORE): JobState.DONE,
}


def next_state(state: JobState, event: JobEvent) -> JobState:
    """Return the state that `event` leads to from `state`.

    Raises:
        IllegalTransition: no arrow of `TRANSITIONS` leaves `state` with `event`.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"a job that is {state} cannot take the event {event}") from None
