"""What the ledger is given and gives back: receipts, study rows, jobs, judgements, events.

Beside the ledger and not in it: who only fills in a receipt need not load a database library.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from dicom_node.domain import (
    Closing,
    Delivery,
    DeliveryState,
    DerivedInstance,
    Gap,
    InquiryState,
    Instance,
    Label,
    NoticeState,
    Origin,
    Question,
    Refusal,
    RemoteSeries,
    StepState,
    StudyState,
    SynthesisPlan,
)
from dicom_node.jobs import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """Where a study stands.

    Attributes:
        generation: 1 at first, one more each time that the study reopens.
        seen: how many instances (contents, not UIDs) the study holds. Read the row before the
            instances and give `seen` back with the judgement: an instance that came in between
            then voids it.
        hold_code: why it is HELD, as a short stable word; None in any other state.
    """

    study_instance_uid: str
    state: StudyState
    generation: int
    seen: int
    first_received: datetime
    last_received: datetime
    judged_at: datetime | None
    hold_code: str | None
    hold_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSeries:
    """A series as it was judged.

    Attributes:
        instances: how many.
        label: None when it was not labelled.
        problem: why no volume can be read from it (code and sentence), or None.
    """

    series_instance_uid: str
    modality: str
    origin: Origin
    frame_of_reference_uid: str | None
    instances: int
    label: Label | None
    problem: tuple[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the rules said of one generation of a study.

    Attributes:
        slots: rule name to slot name to the slot's state.
        closing: why the study was not waited for any longer; None when it is held, or was judged
            by an earlier version.
        config_digest: of the configuration that it was judged by, as `closing`.
    """

    study_instance_uid: str
    generation: int
    judged_at: datetime
    series: tuple[JudgedSeries, ...]
    slots: Mapping[str, Mapping[str, str]]
    gaps: tuple[Gap, ...]
    refusals: tuple[Refusal, ...]
    closing: Closing | None
    config_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """A question about a study, and what the peer said.

    Attributes:
        since: when this generation of the study wanted it first.
        rounds: how often something was fetched.
        found: what the peer lists, of this study and of others of the patient.
        reason: why it is not answered, or what could not be fetched; None when nothing is wrong.
    """

    study_instance_uid: str
    generation: int
    question: Question
    state: InquiryState
    since: datetime
    next_attempt: datetime
    rounds: int
    found: tuple[RemoteSeries, ...]
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One plan on its way to a derived series.

    Attributes:
        attempt: grows with every claim; a worker that holds an older one changes nothing.
        losses: workers lost since a person last queued it.
        lease_until: until when its worker may be silent; None unless RUNNING.
        reason: why it is HELD, FAILED, REJECTED or back in the queue; None when nothing is wrong.
        quality: the numbers and the verdict of the gate.
        seconds: time per step.
        record: what the engine did, step by step.
    """

    plan: SynthesisPlan
    state: JobState
    attempt: int
    losses: int
    lease_until: datetime | None
    reason: str | None
    quality: Mapping[str, Any]
    seconds: Mapping[str, float]
    record: tuple[Any, ...]
    changed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Outdated:
    """A result that peers took and that no judgement wants any more.

    Attributes:
        instances: of the result, whose files are here still.
        peers: that took any of it and have not been told that it is withdrawn.
        because: why it is not wanted, in a sentence.
        since: when its job was superseded.
    """

    plan: SynthesisPlan
    instances: tuple[DerivedInstance, ...]
    peers: tuple[str, ...]
    because: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened, in the order of `sequence`; clocks may jump, sequences do not."""

    sequence: int
    at: datetime
    name: str
    study_instance_uid: str | None
    plan_id: str | None
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A content that came under a SOP Instance UID that another content had.

    Attributes:
        kept: path of the content that has the UID; None when the ledger was lost and its file is
            gone.
        quarantined: path of the other one.
        peer: who sent the other one.
    """

    sop_instance_uid: str
    kept: str | None
    quarantined: str
    peer: str
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One instance as it came in.

    Attributes:
        association_id: over which it came; None for one that was found in the store.
    """

    instance: Instance
    peer: str
    association_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one attempt to send one instance to one peer went.

    Attributes:
        status: None when there was no C-STORE response.
        next_attempt: None keeps the time.
    """

    delivery_id: int
    state: DeliveryState
    status: int | None
    reason: str | None
    next_attempt: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """What one job sent to one peer, of which the peer has not said that it keeps it."""

    study_instance_uid: str
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a peer says of the instances that it was asked to keep.

    Attributes:
        kept: SOP Instance UIDs.
        lost: SOP Instance UID to Failure Reason (0008,1197).
    """

    transaction_uid: str
    kept: tuple[str, ...]
    lost: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What a peer tells of studies: a new notice, or a change of one.

    Attributes:
        sop_instance_uid: of the performed procedure step, or of the availability notification.
        studies: Study Instance UIDs; none when it is a change.
        state: None when it stays.
        instances: SOP Instance UIDs, of classes that this node takes; None when they stay.
        reason: code why a step was discontinued, if it was told.
    """

    sop_instance_uid: str
    studies: tuple[str, ...]
    state: NoticeState | None
    instances: tuple[str, ...] | None
    reason: str | None = None


class Noted(StrEnum):
    """What became of a notice."""

    TAKEN = "taken"
    KNOWN = "known"  # there is one under its UID
    UNKNOWN = "unknown"  # this peer has none under its UID
    OVER = "over"  # it was completed or discontinued


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyNotice:
    """What was told of one study.

    Attributes:
        sop_instance_uid: see `Notice`.
        peer: who told it.
        changed_at: when, the last time.
        instances: SOP Instance UIDs, also those of other studies that share the step.
        reason: see `Notice`.
    """

    sop_instance_uid: str
    peer: str
    state: NoticeState
    changed_at: datetime
    instances: frozenset[str]
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A peer that does not answer now.

    Attributes:
        failures: associations in a row that came to nothing.
        next_call: nothing is sent to it before.
    """

    peer: str
    failures: int
    since: datetime
    next_call: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What is still to be done for one peer.

    Attributes:
        pending: instances that it still has to get, the oldest waiting since `pending_since`.
        parked: instances of results that still stand, which wait for a person.
        unconfirmed: instances that it took, that are here still, and of which it has not said that
            it keeps them; the oldest was queued at `unconfirmed_since`.
    """

    peer: str
    pending: int
    pending_since: datetime | None
    parked: int
    unconfirmed: int
    unconfirmed_since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a step says of its input.

    Attributes:
        series: Series Instance UIDs; empty: the whole study.
        ae_titles: of those that hold it.
    """

    series: tuple[str, ...] = ()
    ae_titles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A Unified Procedure Step that this node has claimed, or is about to.

    Attributes:
        peer: alias of the worklist.
        workitem: code, scheme and meaning of what is to be done.
        since: when it was claimed.
        rounds: how often its sources were asked for.
        told: how far it is, as the worklist was told.
        reason: what went wrong, without patient attributes.
    """

    sop_instance_uid: str
    peer: str
    study_instance_uid: str
    transaction_uid: str
    workitem: tuple[str, str, str]
    sources: Sources
    state: StepState
    since: datetime
    next_attempt: datetime
    rounds: int = 0
    told: str | None = None
    reason: str | None = None
