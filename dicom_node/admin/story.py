"""One study in plain words: what came, what lacked and why, what was made of what, where it went.

Told from the ledger alone, so that it is what happened and not what would happen now (`dicom-node
explain` tells that). Names of patients are no part of it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from dicom_node.admin.words import count
from dicom_node.domain import (
    Closing,
    Delivery,
    DeliveryState,
    DerivedInstance,
    InquiryState,
    Mode,
    Role,
    StudyState,
)
from dicom_node.jobs import JobState
from dicom_node.ledger import REJECTED, TAKEN, Event, Job, Judgement, Ledger, Show, StudyGlance
from dicom_node.progress import read_progress
from dicom_node.records import JudgedSeries

_MOST_LINES = 300
"""Of a timeline; the newest."""


class Tone(StrEnum):
    """How a state is to be taken; a color, and never that alone."""

    CALM = "calm"  # waits, or is nothing to think about
    BUSY = "busy"  # goes on
    GOOD = "good"  # done
    WATCH = "watch"  # a person must look
    BAD = "bad"  # failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One of the four steps of a study: received, judged, made, delivered.

    Attributes:
        done: how much of it is done, 0 to 1; None when that is not known.
    """

    name: str
    tone: Tone
    says: str
    done: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """A study in one line.

    Attributes:
        steps: the four steps.
        says: the step that counts now, in a sentence.
    """

    study_instance_uid: str
    steps: tuple[Step, ...]
    tone: Tone
    says: str
    instances: int
    last_received: datetime
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """One series that came."""

    series: JudgedSeries
    peers: str
    used_for: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One job, with all that there is to say of it.

    Attributes:
        reasons: of the quality gate, that `says` does not say.
        is_report_only: the gate let no image be written.
    """

    job: Job
    tone: Tone
    says: str
    reasons: tuple[str, ...]
    source_words: str
    figures: tuple[tuple[str, str], ...]
    seconds: float
    deliveries: tuple["Sent", ...]
    acts: tuple[str, ...]
    has_picture: bool
    is_report_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What of a job went to one peer, and how each instance stands."""

    peer: str
    tone: Tone
    says: str
    instances: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Everything that the page shows of a study.

    Attributes:
        lacks: for each rule its slots, their states, and what follows from each in a sentence.
        asked: what was asked of peers and what they said.
        timeline: when, and what happened.
    """

    glance: Glance
    judgement: Judgement | None
    closing: str | None
    came: tuple[Came, ...]
    lacks: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    made: tuple[Made, ...]
    asked: tuple[str, ...]
    conflicts: int
    hold: tuple[str, str] | None
    acts: tuple[str, ...]
    timeline: tuple[tuple[datetime, str], ...]


_CLOSINGS = {
    Closing.COMPLETE: "it lacks nothing",
    Closing.SOURCES: "one contrast was missing, and all that it is made of was here",
    Closing.PERFORMED: "the scanner said that it was done, and all that it listed was here",
    Closing.DISCONTINUED: "the scanner said that it broke off",
    Closing.QUIET: "nothing more came for the quiet period",
    Closing.OVERDUE: "nothing more came, although more had been announced",
}

_JOB_TONES = {
    JobState.QUEUED: Tone.CALM,
    JobState.RUNNING: Tone.BUSY,
    JobState.DONE: Tone.GOOD,
    JobState.HELD: Tone.WATCH,
    JobState.FAILED: Tone.BAD,
    JobState.REJECTED: Tone.CALM,
    JobState.SUPERSEDED: Tone.CALM,
}
_DELIVERY_TONES = {
    DeliveryState.PENDING: Tone.BUSY,
    DeliveryState.SENT: Tone.GOOD,
    DeliveryState.WARNED: Tone.GOOD,
    DeliveryState.COMMITTED: Tone.GOOD,
    DeliveryState.PARKED: Tone.WATCH,
}
_DELIVERY_WORDS = {
    DeliveryState.PENDING: "waiting to be sent",
    DeliveryState.SENT: "taken",
    DeliveryState.WARNED: "taken, with something changed",
    DeliveryState.COMMITTED: "taken and kept",
    DeliveryState.PARKED: "not taken",
}


def glance(
    each: StudyGlance, now: datetime, quiet_period: timedelta, usual_seconds: Mapping[str, float]
) -> Glance:
    """Return a study in one line.

    Args:
        each: as the ledger has it.
        now: the time.
        quiet_period: see `node_settings.Assembly`.
        usual_seconds: how long a job of each model takes.
    """
    steps = (
        _receive(each, now, quiet_period),
        _judge(each),
        _make(each.jobs, now, usual_seconds),
        _deliver(each),
    )
    urgent = (Tone.BAD, Tone.WATCH, Tone.BUSY)
    step = next(
        (step for tone in urgent for step in reversed(steps) if step.tone is tone),
        next((step for step in reversed(steps) if step.tone is Tone.GOOD), steps[0]),
    )
    if each.row.hold_code == REJECTED:
        step = steps[1]
    return Glance(
        study_instance_uid=each.row.study_instance_uid,
        steps=steps,
        tone=step.tone,
        says=step.says,
        instances=each.row.seen,
        last_received=each.row.last_received,
        targets=tuple(
            dict.fromkeys(
                job.plan.target for job in each.jobs if job.state is not JobState.SUPERSEDED
            )
        ),
    )


def tell(
    ledger: Ledger,
    study_instance_uid: str,
    now: datetime,
    quiet_period: timedelta,
    usual_seconds: Mapping[str, float],
) -> Story:
    """Return the story of a study.

    Raises:
        LookupError: the ledger does not know it.
        StorageError: the ledger does not answer.
    """
    found = ledger.glance(Show.ALL, 1, study_instance_uid=study_instance_uid)
    if not found:
        raise LookupError("the ledger does not know this study")
    row, jobs = found[0].row, found[0].jobs
    try:
        judgement = ledger.read_judgement(study_instance_uid)
    except LookupError:
        judgement = None
    deliveries: dict[str, list[Delivery]] = defaultdict(list)
    for each in ledger.deliveries(study_instance_uid):
        deliveries[each.plan_id].append(each)
    is_current = judgement is not None and judgement.generation == row.generation
    closing = judgement.closing if judgement is not None and is_current else None
    is_held = row.state is StudyState.HELD and row.hold_code != REJECTED
    return Story(
        glance=glance(found[0], now, quiet_period, usual_seconds),
        judgement=judgement,
        closing=None if closing is None else _CLOSINGS[closing],
        came=tuple(_tell_series(judgement, ledger.count_received(study_instance_uid), jobs)),
        lacks=tuple(_tell_slots(judgement, jobs)) if judgement is not None else (),
        made=tuple(
            tell_job(job, deliveries[job.plan.plan_id], ledger.derived(job.plan.plan_id))
            for job in jobs
        ),
        asked=tuple(_tell_questions(ledger, study_instance_uid)),
        conflicts=len(ledger.conflicts(study_instance_uid)),
        hold=(str(row.hold_code), str(row.hold_reason)) if row.hold_code else None,
        acts=("release", "reject", "requeue") if is_held else ("requeue",),
        timeline=tuple(_tell_events(ledger.events(study_instance_uid), jobs)),
    )


def _receive(each: StudyGlance, now: datetime, quiet_period: timedelta) -> Step:
    came = count(each.row.seen, "image")
    if each.row.state is not StudyState.RECEIVING:
        return Step(name="Received", tone=Tone.GOOD, says=f"{came} came", done=1.0)
    if each.is_sending:
        return Step(name="Receiving", tone=Tone.BUSY, says=f"{came} so far, more are coming")
    silent = now - each.row.last_received
    left = max(0.0, (quiet_period - silent).total_seconds())
    return Step(
        name="Receiving",
        tone=Tone.BUSY,
        says=f"{came} came; judged after {left:.0f} s of silence" if left else f"{came} came",
        done=min(1.0, silent / quiet_period) if quiet_period else 1.0,
    )


def _judge(each: StudyGlance) -> Step:
    row = each.row
    if row.state is StudyState.RECEIVING:
        return Step(name="Judge", tone=Tone.CALM, says="not judged yet")
    if row.hold_code == REJECTED:
        return Step(name="Closed", tone=Tone.CALM, says=f"closed by a person: {row.hold_reason}")
    if row.state is StudyState.HELD:
        return Step(name="Held", tone=Tone.WATCH, says=f"held: {row.hold_reason}")
    jobs = [job for job in each.jobs if job.state is not JobState.SUPERSEDED]
    lacked = dict.fromkeys(job.plan.target for job in jobs if job.plan.truth is None)
    says = "nothing to make"
    if lacked:
        says = f"lacked {_join(lacked)}"
    elif jobs:
        says = "made beside what is there, to compare"
    return Step(name="Judged", tone=Tone.GOOD, says=says, done=1.0)


def _make(jobs: Sequence[Job], now: datetime, usual_seconds: Mapping[str, float]) -> Step:
    jobs = [job for job in jobs if job.state is not JobState.SUPERSEDED]
    if not jobs:
        return Step(name="Make", tone=Tone.CALM, says="nothing to make")
    for state, name, words in (
        (JobState.FAILED, "Failed", "failed"),
        (JobState.HELD, "Held", "waits for a person"),
        (JobState.RUNNING, "Making", "is being made"),
        (JobState.QUEUED, "Queued", "waits for its turn"),
    ):
        those = [job for job in jobs if job.state is state]
        if not those:
            continue
        done = None
        if state is JobState.RUNNING:
            done = max(_estimate(job, now, usual_seconds) or 0.0 for job in those) or None
        reason = f": {those[0].reason}" if those[0].reason and state is not JobState.QUEUED else ""
        says = f"{_join(job.plan.target for job in those)} {words}{reason}"
        return Step(name=name, tone=_JOB_TONES[state], says=says, done=done)
    made = [job for job in jobs if job.state is JobState.DONE]
    if not made:
        return Step(name="Rejected", tone=Tone.CALM, says=f"rejected: {jobs[0].reason}")
    says = f"{_join(job.plan.target for job in made)} made"
    return Step(name="Made", tone=Tone.GOOD, says=says, done=1.0)


def _estimate(job: Job, now: datetime, usual_seconds: Mapping[str, float]) -> float | None:
    usual = usual_seconds.get(job.plan.model_id)
    if not usual:
        return None
    return min(0.97, (now - job.changed_at).total_seconds() / usual)


def _deliver(each: StudyGlance) -> Step:
    done = [job for job in each.jobs if job.state is JobState.DONE]
    counts: dict[DeliveryState, int] = defaultdict(int)
    for job in done:
        for state, number in each.deliveries.get(job.plan.plan_id, {}).items():
            counts[state] += number
    total, taken = sum(counts.values()), sum(counts[state] for state in TAKEN)
    if not total:
        quiet = bool(done) and all(job.plan.mode is Mode.SHADOW for job in done)
        says = "kept here: the rule is in shadow mode" if quiet else "nothing to send"
        return Step(name="Deliver", tone=Tone.CALM, says=says)
    if counts[DeliveryState.PARKED]:
        says = f"{counts[DeliveryState.PARKED]} of {total} were not taken"
        return Step(name="Parked", tone=Tone.WATCH, says=says, done=taken / total)
    if counts[DeliveryState.PENDING]:
        says = f"{taken} of {count(total, 'instance')} sent"
        return Step(name="Sending", tone=Tone.BUSY, says=says, done=taken / total)
    made = _join(job.plan.target for job in done)
    peers = _join(dict.fromkeys(peer for job in done for peer in job.plan.deliver_to))
    kept = " and kept" if counts[DeliveryState.COMMITTED] == total else ""
    return Step(
        name="Delivered", tone=Tone.GOOD, says=f"{made} made, taken{kept} by {peers}", done=1.0
    )


def _tell_series(
    judgement: Judgement | None, received: Mapping[str, Mapping[str, int]], jobs: Sequence[Job]
) -> Iterator[Came]:
    used: dict[str, list[str]] = defaultdict(list)
    for job in jobs:
        for uid in job.plan.sources.values():
            if job.plan.target not in used[uid]:
                used[uid].append(job.plan.target)
    for series in judgement.series if judgement is not None else ():
        peers = received.get(series.series_instance_uid, {})
        yield Came(
            series=series,
            peers=_join(peers) or "a peer",
            used_for=tuple(used[series.series_instance_uid]),
        )


def _tell_slots(
    judgement: Judgement, jobs: Sequence[Job]
) -> Iterator[tuple[str, tuple[tuple[str, str, str], ...]]]:
    refused = {(each.rule, str(each.target)): each.reason for each in judgement.refusals}
    planned = {
        (job.plan.rule, str(job.plan.target)): job
        for job in jobs
        if job.plan.generation == judgement.generation
    }
    for rule, slots in judgement.slots.items():
        told = []
        for slot, state in slots.items():
            job, reason = planned.get((rule, slot)), refused.get((rule, slot))
            if job is not None:
                says = f"{job.plan.rule_reason}. It is made by {job.plan.model_id}."
            elif reason is not None:
                says = f"Nothing is made: {reason}."
            else:
                says = _SLOT_WORDS.get(state, "")
            told.append((slot, state, says))
        yield rule, tuple(told)


_SLOT_WORDS = {
    "present": "It is there.",
    "missing": "It is missing, and no rule wants it made.",
    "incomplete": "It is there, but not usable as it is, and no rule wants it made.",
    "ambiguous": "A series that could not be labelled may be it, so nothing is made.",
}


def tell_job(job: Job, deliveries: Sequence[Delivery], derived: Sequence[DerivedInstance]) -> Made:
    """Return all that there is to say of a job.

    Args:
        job: as the ledger has it.
        deliveries: of what it made.
        derived: what it made.
    """
    plan = job.plan
    reason = job.reason or ""
    words = {
        JobState.QUEUED: "waits for its turn",
        JobState.RUNNING: "is being made",
        JobState.DONE: "was made",
        JobState.HELD: "waits for a person",
        JobState.FAILED: "could not be made",
        JobState.REJECTED: "was rejected by a person",
        JobState.SUPERSEDED: "is not wanted any more",
    }[job.state]
    figures = job.quality.get("figures") or {}
    comparison = job.quality.get("comparison") or {}
    told = [(name.replace("_", " "), f"{value:.3g}") for name, value in figures.items()]
    told += [
        (name, f"{comparison[key]:.4g}")
        for name, key in (("SSIM", "ssim"), ("PSNR, dB", "psnr_db"), ("mean error", "mae"))
        if comparison.get(key) is not None
    ]
    return Made(
        job=job,
        tone=_JOB_TONES[job.state],
        says=f"{plan.target} {words}" + (f": {job.reason}" if job.reason else ""),
        reasons=tuple(each for each in job.quality.get("reasons", ()) if each not in reason),
        source_words=_join(plan.sources),
        figures=tuple(told),
        seconds=sum(job.seconds.values()),
        deliveries=tuple(_tell_deliveries(deliveries)),
        acts=_find_acts(job, deliveries),
        has_picture=any(each.role is Role.IMAGE for each in derived),
        is_report_only={each.role for each in derived} == {Role.REPORT},
    )


def _find_acts(job: Job, deliveries: Sequence[Delivery]) -> tuple[str, ...]:
    if job.state is JobState.HELD:
        fresh = () if deliveries else ("requeue",)
        has_result = job.quality.get("verdict") is not None
        return (*(("release",) if has_result else ()), "reject", *fresh)
    if job.state is JobState.FAILED:
        return ("requeue",)
    is_parked = any(each.state is DeliveryState.PARKED for each in deliveries)
    return ("requeue",) if job.state is JobState.DONE and is_parked else ()


def _tell_deliveries(deliveries: Sequence[Delivery]) -> Iterator[Sent]:
    by_peer: dict[str, list[Delivery]] = defaultdict(list)
    for each in deliveries:
        by_peer[each.peer].append(each)
    order = (DeliveryState.PARKED, DeliveryState.PENDING, *reversed(TAKEN))
    for peer, group in by_peer.items():
        counts = {state: sum(each.state is state for each in group) for state in order}
        worst = next(state for state in order if counts[state])
        says = ", ".join(
            f"{number} {_DELIVERY_WORDS[state]}" for state, number in counts.items() if number
        )
        yield Sent(peer=peer, tone=_DELIVERY_TONES[worst], says=says, instances=tuple(group))


def _tell_questions(ledger: Ledger, study_instance_uid: str) -> Iterator[str]:
    for each in ledger.inquiries(study_instance_uid):
        peer = each.question.peer
        if each.state is InquiryState.DUE:
            why = f" ({each.reason})" if each.reason else ""
            yield f"{peer} is being asked what it has of this study{why}."
        elif each.state is InquiryState.SILENT:
            yield f"{peer} was asked what it has of this study, and did not answer in time."
        else:
            why = f"; {each.reason}" if each.reason else ""
            yield f"{peer} was asked, and lists {count(len(each.found), 'series', 'series')}{why}."
    progress = read_progress(ledger, study_instance_uid)
    for told in progress.notices if progress is not None else ():
        state = told.state.value.replace("_", " ")
        yield f"{told.peer} told of this study: {state}."


_SENTENCES: Mapping[str, str] = {
    "study.received": "{new} images came from {peer}",
    "study.asked": "the peers were asked what else there is",
    "study.judged": "judged: {gaps} missing, {queued} planned",
    "study.held": "held ({code})",
    "study.reopened": "opened again",
    "study.released": "released by {by}: {why}",
    "study.rejected": "closed by {by}: {why}",
    "study.uid_conflict": "{new} images came with other contents under the same UIDs",
    "job.claim": "{target}: a worker took it",
    "job.finish": "{target}: made",
    "job.refuse": "{target}: held, {reason}",
    "job.lose": "{target}: back in the queue, {reason}",
    "job.fail": "{target}: failed, {reason}",
    "job.requeue": "{target}: queued again by {by}: {why}",
    "job.release": "{target}: released by {by}: {why}",
    "job.reject": "{target}: rejected by {by}: {why}",
    "job.doubt": "{target}: held, {reason}",
    "job.supersede": "{target}: not wanted any more",
    "job.replan": "{target}: wanted again",
    "job.restore": "{target}: wanted again",
    "job.withdrawn": "{target}: withdrawn by {by}: {why}",
    "delivery.begun": "{target}: sending to {peer} began",
    "delivery.requeue": "{target}: sent again for {by}: {why}",
    "delivery.confirmed": "{target}: {peer} keeps {kept} instances",
    "commitment.asked": "{target}: {peer} was asked whether it keeps {count} instances",
    "inquiry.answered": "{peer} answered",
    "inquiry.silent": "{peer} did not answer in time",
    "step.claimed": "{peer} let this node perform a step of its worklist",
    "step.performed": "the step of {peer} is performed",
    "step.completed": "{peer} was told that its step is done",
    "step.canceled": "{peer} was told that its step cannot be done: {reason}",
    "step.lost": "{peer} does not let this node go on with its step: {reason}",
    "bytes.forgotten": "{files} files were deleted; what happened stays known",
    "page.patient_seen": "{by} looked at whose study it is",
}
_SENT = {
    "delivery.sent": "{target}: {peer} took {count}",
    "delivery.warned": "{target}: {peer} took {count}, with something changed",
    "delivery.parked": "{target}: {peer} did not take {count}: {reason}",
    "delivery.pending": "{target}: {count} not taken by {peer} yet: {reason}",
}


def _tell_events(events: Sequence[Event], jobs: Sequence[Job]) -> Iterator[tuple[datetime, str]]:
    """Yield what happened, the newest first; alike deliveries in a row are one line."""
    targets = {job.plan.plan_id: str(job.plan.target) for job in jobs}
    run: list[Event] = []
    lines: list[tuple[datetime, str]] = []
    for each in [*events, None]:
        if run and (each is None or _alike(each) != _alike(run[0]) or each.name not in _SENT):
            target = targets.get(str(run[0].plan_id), "a result")
            detail = {**run[0].detail, "target": target, "count": count(len(run), "instance")}
            lines.append((run[-1].at, _SENT[run[0].name].format_map(_Known(detail))))
            run = []
        if each is None:
            break
        if each.name in _SENT:
            run.append(each)
            continue
        sentence = _SENTENCES.get(each.name, each.name.replace(".", ": ").replace("_", " "))
        detail = {**each.detail, "target": targets.get(str(each.plan_id), "a result")}
        lines.append((each.at, sentence.format_map(_Known(detail))))
    return reversed(lines[-_MOST_LINES:])


class _Known(dict[str, Any]):
    """What an event says; what it does not say, or says nothing for, is passed over."""

    def __missing__(self, key: str) -> str:
        return "…"


def _alike(each: Event) -> tuple[Any, ...]:
    detail = each.detail
    return each.name, each.plan_id, detail.get("peer"), detail.get("status"), detail.get("reason")


def _join(words: Any) -> str:
    """Return words as they stand in a sentence."""
    listed = [str(each) for each in words]
    if len(listed) < 2:  # noqa: PLR2004 - nothing to join
        return "".join(listed)
    return f"{', '.join(listed[:-1])} and {listed[-1]}"
