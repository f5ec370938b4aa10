"""Storage commitment, what is said: a peer is asked whether it keeps what it took, and reports.

    N-ACTION with Transaction UID and instances → response → … → N-EVENT-REPORT: kept, lost

The report may come over the association of the request, or much later over one that the peer opens
to our receiver; `confirmation` asks, `services` and `confirmation` hear. What is kept becomes
COMMITTED. What is lost is sent again, as far as that can help.

Source: PS3.4 annex J; Failure Reason (0008,1197): PS3.3 section C.14.1.1.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from dicom_node.attributes import (
    FAILED_SOP_SEQUENCE,
    FAILURE_REASON,
    REFERENCED_SOP_CLASS_UID,
    REFERENCED_SOP_INSTANCE_UID,
    REFERENCED_SOP_SEQUENCE,
    TRANSACTION_UID,
    Attributes,
    decode_attributes,
    encode_attributes,
    read_items,
    read_text,
)
from dicom_node.domain import Delivery, DeliveryState, DerivedInstance
from dicom_node.errors import RefusedInstance
from dicom_node.outcomes import find_pause
from dicom_node.records import Attempt, Report
from dicom_node.structure import check_uid

if TYPE_CHECKING:
    from dicom_node.ledger import Ledger

STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""

WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
REQUEST_ACTION = 1
COMPLETE_EVENT, FAILURES_EVENT = 1, 2

MOST_REFERENCES = 500
"""Instances in one request, so that a report is one message inside the receiver, too."""

LONGEST_REPORT = 1_048_576
"""Bytes; ten times what a report on so many references needs."""

PROCESSING_FAILURE = 0x0110
INVALID_ARGUMENT_VALUE = 0x0115

_RESENT = {
    0x0110: "the peer failed to keep it",
    0x0112: "the peer does not have it any more",
    0x0213: "the peer had no resources to keep it",
}
_PARKED = {
    0x0119: "the peer has it under another SOP class",
    0x0122: "the peer does not commit to its SOP class",
}
_DUPLICATE_TRANSACTION = 0x0131

logger = logging.getLogger(__name__)


class Patience(Protocol):
    """How long a peer is borne with, see `node_settings.Delivery`."""

    @property
    def first_retry(self) -> timedelta:
        """The pause after the first failure."""

    @property
    def longest_retry(self) -> timedelta:
        """No pause is longer."""

    @property
    def give_up_after(self) -> timedelta:
        """What fails then is parked."""


def encode_request(
    transaction_uid: str, instances: Sequence[DerivedInstance], *, explicit: bool
) -> bytes:
    """Return the data set that asks for the commitment to `instances` (PS3.4 table J.3-1)."""
    references = [
        {
            REFERENCED_SOP_CLASS_UID: each.sop_class_uid,
            REFERENCED_SOP_INSTANCE_UID: each.sop_instance_uid,
        }
        for each in instances
    ]
    return encode_attributes(
        {TRANSACTION_UID: transaction_uid, REFERENCED_SOP_SEQUENCE: references}, explicit=explicit
    )


def decode_report(data_set: bytes, *, explicit: bool) -> Report:
    """Return what the data set of an N-EVENT-REPORT says (PS3.4 table J.3-2).

    Raises:
        ValueError: it is none, or names more instances than were ever asked for at a time.
    """
    attributes = decode_attributes(data_set, explicit=explicit)
    kept = read_items(attributes, REFERENCED_SOP_SEQUENCE)
    lost = read_items(attributes, FAILED_SOP_SEQUENCE)
    if len(kept) + len(lost) > MOST_REFERENCES:
        raise ValueError("more references than were asked for")
    reasons = {_read_uid(item, REFERENCED_SOP_INSTANCE_UID): _read_reason(item) for item in lost}
    uids = (_read_uid(item, REFERENCED_SOP_INSTANCE_UID) for item in kept)
    return Report(
        transaction_uid=_read_uid(attributes, TRANSACTION_UID),
        kept=tuple(uid for uid in uids if uid not in reasons),
        lost=reasons,
    )


def take_report(
    ledger: "Ledger", patience: Patience, clock: Callable[[], datetime], peer: str, report: Report
) -> int | None:
    """Record what a peer reports; a report that comes twice changes nothing the second time.

    Returns:
        None, or the status to answer with: nobody asked this peer under that Transaction UID.

    Raises:
        StorageError: the ledger does not answer.
    """

    def judge(delivery: Delivery, reason: int) -> Attempt | None:
        return judge_loss(delivery, reason, patience, clock())

    changed = ledger.record_report(peer, report, judge)
    if changed is None:
        logger.warning("commitment.unknown_transaction peer=%s", peer)
        return INVALID_ARGUMENT_VALUE
    level = logging.ERROR if report.lost else logging.INFO
    logger.log(
        level,
        "commitment.reported peer=%s kept=%d lost=%d",
        peer,
        len(report.kept),
        len(report.lost),
    )
    return None


def judge_loss(
    delivery: Delivery, reason: int, patience: Patience, now: datetime
) -> Attempt | None:
    """Say what becomes of an instance that its peer does not keep; None: it is asked again."""
    if reason == _DUPLICATE_TRANSACTION:
        return None
    is_over = delivery.queued_at < now - patience.give_up_after
    state = DeliveryState.PARKED if reason in _PARKED or is_over else DeliveryState.PENDING
    text = _PARKED.get(reason) or _RESENT.get(reason) or "the peer does not keep it"
    pause = timedelta()
    if state is DeliveryState.PENDING:
        pause = find_pause(patience.first_retry, patience.longest_retry, delivery.attempts - 1)
    return Attempt(
        delivery_id=delivery.delivery_id,
        state=state,
        status=delivery.status,
        reason=f"{text} (0x{reason:04X})",
        next_attempt=now + pause,
    )


def _read_uid(attributes: Attributes, tag: int) -> str:
    try:
        return check_uid(read_text(attributes, tag).encode("ascii"))
    except RefusedInstance:
        raise ValueError(f"({tag:08X}) is no UID") from None


def _read_reason(item: Attributes) -> int:
    value = item.get(FAILURE_REASON)
    if not isinstance(value, bytes) or len(value) != 2:  # noqa: PLR2004 - an unsigned short
        return PROCESSING_FAILURE
    return int.from_bytes(value, "little")
