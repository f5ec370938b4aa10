"""What the node talks about: instances, series, studies, slots, gaps, plans and deliveries.

Values only: frozen, valid once built, no I/O. The words are DICOM's in snake case.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType

ContrastLabel = NewType("ContrastLabel", str)
"""A word of `config/contrasts.yaml`: T1w, T1c, T2w, FLAIR, CT, PET …"""

Header = Mapping[str, Any]
"""Chosen attributes of an instance, by DICOM keyword, as JSON types (str, int, float, list, None).
Sequences that matter are flattened by `contrast.read_header`."""

_LEADING_ZERO = re.compile(r"[ .]0[0-9]")

QUARANTINE = "quarantine"
"""Folder of the store for a content that came under the UID of another: it is never a source."""

UID_CONFLICT = "uid_conflict"
"""Why a study is held in which a UID has several contents."""

UID_NONCONFORMANT = "uid_nonconformant"
"""Flag of instances whose UIDs have leading zeros, as some makers write them."""


class Origin(StrEnum):
    """Who made a series."""

    ACQUIRED = "acquired"  # by a scanner, from a patient
    DERIVED = "derived"  # by a scanner or a workstation, from other images
    OWN = "own"  # by this node, or by any software that says Synthetic Data


class SlotState(StrEnum):
    """What a study holds of a slot that its protocol expects. Four different things."""

    PRESENT = "present"
    MISSING = "missing"
    INCOMPLETE = "incomplete"  # something is there, and it does not meet the slot's needs
    AMBIGUOUS = "ambiguous"  # a series that abstained could be it


class Mode(StrEnum):
    """How far a rule may go."""

    OFF = "off"
    SHADOW = "shadow"  # make, also what is present, and measure; send nothing
    HOLD = "hold"  # make, then wait for a person
    SEND = "send"


class Role(StrEnum):
    """What a derived series is."""

    IMAGE = "image"
    UNCERTAINTY = "uncertainty"
    REPORT = "report"  # TID 1500 SR
    WITHDRAWAL = "withdrawal"  # Key Object Selection that takes the others back


class StudyState(StrEnum):
    """Where a study stands."""

    RECEIVING = "receiving"
    JUDGED = "judged"  # rules applied; its jobs tell the rest
    HELD = "held"  # `hold_code` and `hold_reason` say why


class InquiryState(StrEnum):
    """Where a question to a peer stands."""

    DUE = "due"  # to be asked, now or again
    ANSWERED = "answered"
    SILENT = "silent"  # it did not answer in time; the rule says what follows


class NoticeState(StrEnum):
    """What a peer tells of a study: how far a step of it is, or that instances are available."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    DISCONTINUED = "discontinued"
    AVAILABLE = "available"


class Closing(StrEnum):
    """Why a study is judged now and not later."""

    COMPLETE = "complete"  # it lacks nothing
    SOURCES = "sources"  # one contrast is missing, and all that it is made of is complete
    PERFORMED = "performed"  # its procedure steps are completed, and all that they list is here
    DISCONTINUED = "discontinued"  # its procedure steps are over, and one was broken off
    QUIET = "quiet"  # nothing came for the quiet period
    OVERDUE = "overdue"  # the same; a step did not end, or what was listed did not come


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One received SOP Instance, stored verbatim.

    Attributes:
        path: file below the store's root, named by digests, never by peer text.
        sha256: of the file as stored (part 10 header and data set).
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    path: str
    header: Header | None = None

    @property
    def has_conformant_uids(self) -> bool:
        """Whether no component of its UIDs has a leading zero (PS3.5 section 9.1)."""
        uids = f" {self.sop_instance_uid} {self.series_instance_uid} {self.study_instance_uid}"
        return _LEADING_ZERO.search(uids) is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a series is, how sure, and why.

    Attributes:
        contrast: None is an abstention.
        confidence: 0 to 1.
        evidence: sentences without patient attributes, strongest first.
        attributes: plane, dimension ("2D"/"3D"), contrast_agent, fat_suppression, body_part …
        candidates: what it could be when `contrast` is None.
    """

    contrast: ContrastLabel | None
    confidence: float
    evidence: tuple[str, ...]
    attributes: Mapping[str, str | float | bool] = field(default_factory=dict)
    candidates: tuple[ContrastLabel, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series of a study, or one volume of a series that holds several.

    Attributes:
        instances: sorted along the slice normal where that is possible, else by UID.
        label: None until labelled.
        frames: the numbers, from 1, of the frames that are this volume, where its one multi-frame
            image holds others as well; empty: all.
        problem: why no volume can be read from it (code and sentence), or None.
        largest_b_value: of all volumes that share the series; None where none has a b-value.
    """

    series_instance_uid: str
    modality: str
    origin: Origin
    instances: tuple[Instance, ...]
    frame_of_reference_uid: str | None = None
    label: Label | None = None
    problem: tuple[str, str] | None = None
    largest_b_value: float | None = None
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a rule wants to know of a peer.

    Attributes:
        siblings_within_days: other studies of the patient so many days apart; None: none.
        fetch: whether what is there and not here is moved here.
    """

    peer: str
    siblings_within_days: int | None
    fetch: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSeries:
    """One series that a peer lists.

    Attributes:
        instances: how many it holds; None when it does not say.
        header: what it says of the series, by keyword.
    """

    peer: str
    study_instance_uid: str
    series_instance_uid: str
    instances: int | None
    header: Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A series that a peer lists and that is not here: it may fill a slot, and is no source.

    Attributes:
        label: by its description alone, unless `is_known`.
        is_known: it came here with another study, and the label is by its images.
    """

    remote: RemoteSeries
    origin: Origin
    label: Label
    is_known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One study as the node holds it now.

    Attributes:
        generation: grows each time that the study reopens.
        elsewhere: what peers list of it and of others of the same patient.
    """

    study_instance_uid: str
    generation: int
    series: tuple[Series, ...]
    elsewhere: tuple[Elsewhere, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A slot that a rule wants filled and that the study does not hold."""

    study_instance_uid: str
    rule: str
    target: ContrastLabel
    state: SlotState


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A gap that is not filled, and why."""

    rule: str
    target: ContrastLabel
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisPlan:
    """One decision to make one target from named sources with one model.

    `plan_id` comes from what enters the pixels (see `identifiers`); the rest is recorded with it.

    Attributes:
        sources: label to Series Instance UID; the first is the reference, whose grid is used.
        source_instances: sorted `(sop_instance_uid, sha256)` of every source instance.
        source_frames: label to the numbers of the frames that are the source, where its one
            multi-frame image holds other volumes as well.
        truth: Series Instance UID of the real series that a rule in shadow mode compares the result
            with; None where the contrast is missing.
        truth_instances: sorted `(sop_instance_uid, sha256)` of the truth's instances.
        truth_frames: as `source_frames`; empty: all.
        anatomy: what the rule says is imaged, BRAIN, LEG …; Body Part Examined when headers are
            silent.
        created_at: the job time, fixed here so that a retry writes the same bytes; aware UTC.
        rule_reason: one sentence: which rule, which slot, why it is missing.
    """

    plan_id: str
    study_instance_uid: str
    generation: int
    rule: str
    rule_reason: str
    target: ContrastLabel
    target_modality: str
    anatomy: str
    sources: Mapping[ContrastLabel, str]
    source_instances: tuple[tuple[str, str], ...]
    model_id: str
    model_digest: str
    seed: int
    mode: Mode
    priority: int
    deliver_to: tuple[str, ...]
    config_digest: str
    created_at: datetime
    truth: str | None = None
    truth_instances: tuple[tuple[str, str], ...] = ()
    source_frames: Mapping[ContrastLabel, tuple[int, ...]] = field(default_factory=dict)
    truth_frames: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedInstance:
    """One written instance of a derived series; `path` is below the store's root."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    role: Role
    number: int
    sha256: str
    path: str


class StepState(StrEnum):
    """Where a Unified Procedure Step that this node performs stands."""

    CLAIMING = "claiming"  # this node has asked for it; whether it got it may not be known
    CLAIMED = "claimed"  # it is this node's; its sources may have to be fetched
    PERFORMED = "performed"  # its study is on the walk, and followed
    COMPLETED = "completed"  # the worklist knows that it is done
    CANCELED = "canceled"  # the worklist knows why it cannot be done
    LOST = "lost"  # the worklist does not let this node go on with it


class DeliveryState(StrEnum):
    """Where the delivery of one instance to one peer stands."""

    PENDING = "pending"
    SENT = "sent"  # the peer answered success
    WARNED = "warned"  # the peer took it and coerced something (B000, B006, B007)
    COMMITTED = "committed"  # the peer was asked later, and said that it keeps it
    PARKED = "parked"  # the peer will not take it: a person must look


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One instance on its way to one peer.

    Attributes:
        queued_at: since when it waits for this peer, or was queued again by a person.
        ask_at: when the peer, which took it, is asked whether it keeps it; None: now.
    """

    delivery_id: int
    plan_id: str
    peer: str
    instance: DerivedInstance
    state: DeliveryState
    attempts: int
    status: int | None
    reason: str | None
    queued_at: datetime
    next_attempt: datetime
    ask_at: datetime | None
