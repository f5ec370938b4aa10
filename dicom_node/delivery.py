"""Step 12 of the walk: a sweep that sends derived instances to peers, and records what each said.

    due deliveries → one association per peer → C-STORE → status → ledger, one instance at a time

Nothing is called sent that the peer did not take. A crash between its answer and the row sends the
same bytes under the same UID once more. What may succeed later is tried later, ever more rarely;
what will not is parked for a person; nothing is deleted. Peers are served side by side, so that a
slow one holds up nobody else. Statuses: PS3.4 table B.2-1 and PS3.7 annex C.
"""

import hashlib
import logging
import random
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO

from pydicom import Dataset, dcmread, dcmwrite

from dicom_node.crashpoints import reach
from dicom_node.domain import Delivery, DeliveryState
from dicom_node.errors import DeliveryError, StorageError
from dicom_node.ledger import Ledger
from dicom_node.network import (
    IMPLICIT_VR_LITTLE_ENDIAN,
    AssociationRejectedError,
    Requestor,
    client_context,
    open_association,
)
from dicom_node.node_settings import NodeSettings, Peer
from dicom_node.part10 import decode_file_meta
from dicom_node.store import Store

SWEEP_SECONDS = 15.0
"""After so long a sweep leaves the rest to the next: what is new is seen, and a stop is soon."""

LOOK_AHEAD = 1_000
"""Deliveries whose classes are proposed when the association is asked for."""

BATCH = 32
"""Deliveries read at a time: what the study has outgrown meanwhile is not sent any more."""

SUCCESS = 0x0000
DUPLICATE_INSTANCE = 0x0111
_WARNINGS = (0xB000, 0xBFFF)
_OUT_OF_RESOURCES = (0xA700, 0xA7FF)
_NOT_UNDERSTOOD = ((0xA900, 0xA9FF), (0xC000, 0xCFFF))
_WILL_NOT_CHANGE = frozenset({0x0117, 0x0118, 0x0122, 0x0124, 0x0210, 0x0211, 0x0212})
"""Invalid instance, no such class, not supported, not authorized, and three program errors."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What follows from a peer's status; PENDING is tried again."""

    state: DeliveryState
    reason: str | None = None


def judge_status(status: int) -> Outcome:
    """Say what the status of a C-STORE response means for its instance."""
    if status == SUCCESS:
        return Outcome(state=DeliveryState.SENT)
    if status == DUPLICATE_INSTANCE:
        return Outcome(state=DeliveryState.WARNED, reason="the peer says that it has it already")
    if _WARNINGS[0] <= status <= _WARNINGS[1]:
        return Outcome(state=DeliveryState.WARNED, reason="the peer took it with a warning")
    if status in _WILL_NOT_CHANGE or any(low <= status <= high for low, high in _NOT_UNDERSTOOD):
        return Outcome(state=DeliveryState.PARKED, reason="the peer will not take it")
    if _OUT_OF_RESOURCES[0] <= status <= _OUT_OF_RESOURCES[1]:
        return Outcome(state=DeliveryState.PENDING, reason="the peer is out of resources")
    return Outcome(state=DeliveryState.PENDING, reason="the peer failed")


def sweep(
    ledger: Ledger,
    store: Store,
    settings: NodeSettings,
    clock: Callable[[], datetime],
    rng: random.Random | None = None,
) -> int:
    """Send what is due to every peer that takes results.

    Args:
        ledger: what is due, and what came of it.
        store: where the derived files are.
        settings: peers, and how patient to be with them.
        clock: gives aware UTC times.
        rng: varies the pauses, so that peers of one outage are not all called at once.

    Returns:
        How many instances the peers took.

    Raises:
        StorageError: the ledger does not answer; what was sent and not recorded is sent again.
    """
    overdue = ledger.park_overdue(clock() - settings.delivery.give_up_after)
    if overdue:
        logger.error("delivery.overdue instances=%d", overdue)
    rng = rng or random.SystemRandom()
    tasks = [
        _PeerSweep(ledger, store, settings, clock, alias, rng)
        for alias, peer in settings.peers.items()
        if "send" in peer.roles and ledger.due_deliveries(alias, clock(), 1)
    ]
    if not tasks:
        return 0
    with ThreadPoolExecutor(len(tasks), thread_name_prefix="delivery") as pool:
        return sum(pool.map(_PeerSweep.run, tasks))


class _PeerSweep:
    """One sweep of what is due to one peer."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        settings: NodeSettings,
        clock: Callable[[], datetime],
        alias: str,
        rng: random.Random,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._settings = settings
        self._clock = clock
        self._alias = alias
        self._taken = 0
        jitter = settings.delivery.jitter
        # One for all that is due: what failed together is tried again together.
        self._jitter = rng.uniform(1 - jitter, 1 + jitter)

    def run(self) -> int:
        """Send what is due, and return how many instances the peer took."""
        ahead = self._ledger.due_deliveries(self._alias, self._clock(), LOOK_AHEAD)
        if not ahead:
            return 0
        classes = sorted({delivery.instance.sop_class_uid for delivery in ahead})
        try:
            association = self._open(self._settings.peers[self._alias], classes)
        except DeliveryError as error:
            self._postpone_all(ahead, error)
            return 0
        try:
            with association:
                self._send_all(association, set(classes))
        except DeliveryError as error:
            logger.warning("delivery.broken_off peer=%s: %s", self._alias, error)
        if self._taken:
            logger.info("delivery.taken peer=%s instances=%d", self._alias, self._taken)
        return self._taken

    def _open(self, peer: Peer, classes: list[str]) -> Requestor:
        if peer.host is None or peer.port is None:  # settings refuse such a peer
            raise DeliveryError("the peer has no host and port", retry=False)
        return open_association(
            peer.host,
            peer.port,
            called_ae_title=peer.ae_title,
            calling_ae_title=self._settings.ae_title,
            sop_classes=classes,
            tls=self._tls(peer),
        )

    def _tls(self, peer: Peer) -> ssl.SSLContext | None:
        own = self._settings.receiver.tls
        if not peer.tls or own is None:
            return None
        try:
            return client_context(own.certificate, own.key, own.ca)
        except OSError as error:
            raise DeliveryError(
                f"the certificate cannot be used: {type(error).__name__}", retry=True
            ) from None

    def _send_all(self, association: Requestor, classes: set[str]) -> None:
        """Send until nothing is due that was not tried, or time is up.

        Raises:
            DeliveryError: the peer said nothing.
        """
        tried: set[int] = set()
        deadline = time.monotonic() + SWEEP_SECONDS
        while time.monotonic() < deadline:
            due = [
                delivery
                for delivery in self._ledger.due_deliveries(self._alias, self._clock(), BATCH)
                if delivery.instance.sop_class_uid in classes and delivery.delivery_id not in tried
            ]
            if not due:
                break
            for delivery in due:
                self._send(association, delivery)
            tried.update(delivery.delivery_id for delivery in due)

    def _send(self, association: Requestor, delivery: Delivery) -> None:
        """Send one instance and record what the peer said.

        Raises:
            DeliveryError: it said nothing; this instance is recorded as to be tried again.
        """
        instance = delivery.instance
        context = association.find_context(instance.sop_class_uid)
        if context is None:
            self._park(delivery, "the peer does not accept this SOP class")
            return
        try:
            file = self._store.read(instance.path)
        except StorageError as error:
            self._postpone(delivery, None, str(error))
            return
        if hashlib.sha256(file).hexdigest() != instance.sha256:
            self._park(delivery, "the file is not the one that was written")
            return
        data_set = _encode(file, context.transfer_syntax)
        try:
            status = association.store(
                context, instance.sop_class_uid, instance.sop_instance_uid, data_set
            )
        except DeliveryError as error:
            self._postpone(delivery, error.status, str(error))
            raise
        outcome = judge_status(status)
        if outcome.state is DeliveryState.PENDING:
            self._postpone(delivery, status, outcome.reason)
        elif outcome.state is DeliveryState.PARKED:
            self._park(delivery, outcome.reason, status)
        else:
            reach("delivery.sent")
            self._ledger.record_delivery(
                delivery.delivery_id, outcome.state, status, outcome.reason
            )
            self._taken += 1

    def _park(self, delivery: Delivery, reason: str | None, status: int | None = None) -> None:
        """Record that a person must look."""
        logger.error("delivery.parked peer=%s status=%s: %s", self._alias, status, reason)
        self._ledger.record_delivery(delivery.delivery_id, DeliveryState.PARKED, status, reason)

    def _postpone(
        self, delivery: Delivery, status: int | None, reason: str | None, *, longest: bool = False
    ) -> None:
        """Record a failure that may pass, and when to try again."""
        pause = self._settings.delivery.longest_retry
        if not longest:
            pause = find_pause(self._settings.delivery.first_retry, pause, delivery.attempts)
        self._ledger.record_delivery(
            delivery.delivery_id,
            DeliveryState.PENDING,
            status,
            reason,
            self._clock() + pause * self._jitter,
        )

    def _postpone_all(self, due: Sequence[Delivery], error: DeliveryError) -> None:
        """Record for all that is due that there was no association."""
        # A peer that refuses for good needs a change of its configuration: no hurry.
        permanent = isinstance(error, AssociationRejectedError) and error.permanent
        for delivery in due:
            self._postpone(delivery, None, str(error), longest=permanent)
        logger.warning("delivery.postponed peer=%s instances=%d: %s", self._alias, len(due), error)


def find_pause(first: timedelta, longest: timedelta, attempts: int) -> timedelta:
    """Return the pause after a failure: `first`, doubled by each earlier attempt, to `longest`."""
    doublings = min(attempts, 30)  # 2**30 seconds are longer than any longest pause
    return min(first * (1 << doublings), longest)


def _encode(file: bytes, transfer_syntax_uid: str) -> bytes:
    """Return a derived file's data set in the syntax that the peer accepted.

    Derived files are Explicit VR Little Endian, so that usually nothing has to be done.
    """
    meta = decode_file_meta(file)
    if meta.transfer_syntax_uid == transfer_syntax_uid:
        return file[meta.data_set_offset :]
    out = BytesIO()
    bare = Dataset()  # without preamble and file meta information, which do not go over the wire
    bare.update(dcmread(BytesIO(file)))
    implicit = transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
    dcmwrite(out, bare, implicit_vr=implicit, little_endian=True)
    return out.getvalue()
