"""What modalities and archives tell of a study before and beside its instances, heard.

    N-CREATE IN PROGRESS → N-SET → … → N-SET COMPLETED or DISCONTINUED     Modality Performed
                                                                           Procedure Step
    N-CREATE: these instances are available                                Instance Availability
                                                                           Notification

Only what tells when a study is whole is kept: its UID, which instances belong to it, and how far
it is; nothing of the patient. `services` hears it, `progress` makes use of it.

Source: PS3.4 annexes F.7 and R; statuses: PS3.7 annex C.
"""

import logging
import re
from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING

from dicom_node.attributes import (
    CODE_VALUE,
    CODING_SCHEME_DESIGNATOR,
    DISCONTINUATION_REASON_CODE_SEQUENCE,
    INSTANCE_AVAILABILITY,
    PERFORMED_PROCEDURE_STEP_STATUS,
    PERFORMED_SERIES_SEQUENCE,
    REFERENCED_IMAGE_SEQUENCE,
    REFERENCED_NON_IMAGE_SEQUENCE,
    REFERENCED_SERIES_SEQUENCE,
    REFERENCED_SOP_CLASS_UID,
    REFERENCED_SOP_INSTANCE_UID,
    REFERENCED_SOP_SEQUENCE,
    SCHEDULED_STEP_ATTRIBUTES_SEQUENCE,
    STUDY_INSTANCE_UID,
    Attributes,
    decode_attributes,
    read_items,
    read_text,
)
from dicom_node.domain import NoticeState
from dicom_node.errors import RefusedInstance
from dicom_node.records import Noted, Notice
from dicom_node.structure import check_uid

if TYPE_CHECKING:
    from dicom_node.ledger import Ledger

PERFORMED_PROCEDURE_STEP = "1.2.840.10008.3.1.2.3.3"
"""Modality Performed Procedure Step SOP Class."""

INSTANCE_AVAILABILITY_NOTIFICATION = "1.2.840.10008.5.1.4.33"

NOTICES = (PERFORMED_PROCEDURE_STEP, INSTANCE_AVAILABILITY_NOTIFICATION)

LONGEST_NOTICE = 4_194_304
"""Bytes; twice what a notice of so many instances needs."""

MOST_INSTANCES = 20_000
"""Of one notice; the largest studies that are seen have half of it."""

INVALID_ATTRIBUTE_VALUE = 0x0106
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111
NO_SUCH_SOP_INSTANCE = 0x0112
MISSING_ATTRIBUTE = 0x0120
NO_LONGER_UPDATED = 0xA710
"""Error ID beside a processing failure: the step is over (PS3.4 section F.7.2.2.3)."""

_STATES = {
    "IN PROGRESS": NoticeState.IN_PROGRESS,
    "COMPLETED": NoticeState.COMPLETED,
    "DISCONTINUED": NoticeState.DISCONTINUED,
}
_AVAILABLE = frozenset({"ONLINE", "NEARLINE"})
_CODE = re.compile(r"[A-Za-z0-9.\-]{1,16}", re.ASCII)
_ANSWERS = {
    Noted.TAKEN: None,
    Noted.KNOWN: DUPLICATE_SOP_INSTANCE,
    Noted.UNKNOWN: NO_SUCH_SOP_INSTANCE,
    Noted.OVER: NO_LONGER_UPDATED,
}

logger = logging.getLogger(__name__)


def decode_notice(
    sop_class_uid: str,
    sop_instance_uid: str,
    data_set: bytes,
    classes: Container[str],
    *,
    explicit: bool,
    is_new: bool,
) -> Notice:
    """Return what the data set of an N-CREATE, or of an N-SET, says.

    Args:
        sop_class_uid: one of `NOTICES`.
        sop_instance_uid: of the step or the notification.
        data_set: as it came.
        classes: storage SOP classes that this node takes; instances of others never come here, so
            that they are not waited for.
        explicit: whether the data set is in Explicit VR.
        is_new: whether it is of an N-CREATE.

    Raises:
        RefusedInstance: it is none, or lacks what it must have.
    """
    try:
        attributes = decode_attributes(data_set, explicit=explicit)
        if sop_class_uid == INSTANCE_AVAILABILITY_NOTIFICATION:
            return _read_availability(sop_instance_uid, attributes, classes)
        return _read_step(sop_instance_uid, attributes, classes, is_new=is_new)
    except ValueError:
        raise RefusedInstance("it cannot be decoded", PROCESSING_FAILURE) from None


def take_notice(ledger: "Ledger", peer: str, notice: Notice) -> int | None:
    """Record what a peer tells; None, or the status to answer with.

    Raises:
        StorageError: the ledger does not answer.
    """
    noted = ledger.record_notice(peer, notice)
    if noted is not Noted.TAKEN:
        logger.warning("notice.refused peer=%s why=%s", peer, noted)
    return _ANSWERS[noted]


def _read_step(
    sop_instance_uid: str, attributes: Attributes, classes: Container[str], *, is_new: bool
) -> Notice:
    status = read_text(attributes, PERFORMED_PROCEDURE_STEP_STATUS)
    if status not in _STATES and (status or is_new):
        raise RefusedInstance(
            "no status of a step", INVALID_ATTRIBUTE_VALUE if status else MISSING_ATTRIBUTE
        )
    state = _STATES.get(status)
    studies: tuple[str, ...] = ()
    if is_new:
        if state is not NoticeState.IN_PROGRESS:  # PS3.4 section F.7.2.1.2
            raise RefusedInstance("a new step is in progress", INVALID_ATTRIBUTE_VALUE)
        studies = _read_studies(read_items(attributes, SCHEDULED_STEP_ATTRIBUTES_SEQUENCE))
    instances = None
    if PERFORMED_SERIES_SEQUENCE in attributes:
        instances = _read_references(
            (
                reference
                for series in read_items(attributes, PERFORMED_SERIES_SEQUENCE)
                for tag in (REFERENCED_IMAGE_SEQUENCE, REFERENCED_NON_IMAGE_SEQUENCE)
                for reference in read_items(series, tag)
            ),
            classes,
        )
    return Notice(
        sop_instance_uid=sop_instance_uid,
        studies=studies,
        state=state,
        instances=instances,
        reason=_read_reason(attributes),
    )


def _read_availability(
    sop_instance_uid: str, attributes: Attributes, classes: Container[str]
) -> Notice:
    return Notice(
        sop_instance_uid=sop_instance_uid,
        studies=_read_studies([attributes]),
        state=NoticeState.AVAILABLE,
        instances=_read_references(
            (
                reference
                for series in read_items(attributes, REFERENCED_SERIES_SEQUENCE)
                for reference in read_items(series, REFERENCED_SOP_SEQUENCE)
                if read_text(reference, INSTANCE_AVAILABILITY) in _AVAILABLE
            ),
            classes,
        ),
    )


def _read_studies(items: Iterable[Attributes]) -> tuple[str, ...]:
    """Return the studies of a notice: one, or several where a step serves several requests."""
    raw = [read_text(item, STUDY_INSTANCE_UID) for item in items]
    if not all(raw) or not raw:
        raise RefusedInstance("no study", MISSING_ATTRIBUTE)
    return tuple(dict.fromkeys(map(_check, raw)))


def _read_references(references: Iterable[Attributes], classes: Container[str]) -> tuple[str, ...]:
    uids: dict[str, None] = {}
    for reference in references:
        uid = _check(read_text(reference, REFERENCED_SOP_INSTANCE_UID))
        if read_text(reference, REFERENCED_SOP_CLASS_UID) in classes:
            uids[uid] = None
        if len(uids) > MOST_INSTANCES:
            raise RefusedInstance("too many instances", PROCESSING_FAILURE)
    return tuple(uids)


def _read_reason(attributes: Mapping[int, object]) -> str | None:
    """Return the code why a step was discontinued, as `scheme:value`, if it is fit to be kept."""
    items = attributes.get(DISCONTINUATION_REASON_CODE_SEQUENCE)
    if not isinstance(items, list) or not items:
        return None
    parts = [read_text(items[0], tag) for tag in (CODING_SCHEME_DESIGNATOR, CODE_VALUE)]
    return ":".join(parts) if all(map(_CODE.fullmatch, parts)) else None


def _check(uid: str) -> str:
    try:
        return check_uid(uid.encode("ascii"))
    except RefusedInstance:
        raise RefusedInstance("a UID is not valid", INVALID_ATTRIBUTE_VALUE) from None
