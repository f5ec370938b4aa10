"""Step 12 of the walk: a worker for each destination sends it instances, and records what it said.

    due deliveries → one association → C-STORE → status (`outcomes`) → ledger, some at a time

Nothing is called sent that the peer did not take. A crash between its answers and their rows sends
those few once more, the same bytes under the same UID. What may succeed later is tried later, ever
more rarely; what will not is parked for a person; nothing is deleted.

No worker waits for another, so that a destination that is dead, slow or silent delays nobody else.
An association that comes to nothing is the destination's failure and not that of the instances:
they stay due, and the ledger keeps one outage for all of them. After each pause one association is
tried and one instance in it; its answer, whatever it says, lets all the others go.
"""

import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from io import BytesIO

from pydicom import Dataset, dcmread, dcmwrite

from dicom_node.complaints import raise_alert
from dicom_node.crashpoints import reach
from dicom_node.domain import Delivery, DeliveryState
from dicom_node.errors import DeliveryError, StorageError
from dicom_node.ledger import TAKEN, Attempt, Backlog, Ledger, Outage
from dicom_node.network import (
    IMPLICIT_VR_LITTLE_ENDIAN,
    AssociationRejectedError,
    Requestor,
    open_association,
)
from dicom_node.node_settings import NodeSettings, Peer
from dicom_node.outcomes import find_pause, judge_status
from dicom_node.part10 import decode_file_meta
from dicom_node.store import Store
from dicom_node.tls import InsecurePeerError, call_with_tls

SWEEP_SECONDS = 15.0
"""After so long a sweep leaves the rest to the next: a stop is soon."""

BATCH = 32
"""Deliveries read, and answers recorded, at a time: what the study has outgrown meanwhile is not
sent any more, and a crash sends no more than these twice."""

logger = logging.getLogger(__name__)


class Destination:
    """One peer that takes results, as its worker sees it: `sweep` is called again and again."""

    def __init__(
        self,
        alias: str,
        ledger: Ledger,
        store: Store,
        settings: NodeSettings,
        clock: Callable[[], datetime],
        rng: random.Random | None = None,
    ) -> None:
        """Describe it.

        Args:
            alias: of one of the peers.
            ledger: what is due, and what came of it.
            store: where the derived files are.
            settings: peers, and how patient to be with them.
            clock: gives aware UTC times.
            rng: varies the pauses, so that peers of one outage are not all called at once.
        """
        self.alias = alias
        self._peer = settings.peers[alias]
        self._ledger = ledger
        self._store = store
        self._settings = settings
        self._clock = clock
        self._rng = rng or random.SystemRandom()

    def sweep(self) -> int:
        """Send what is due, for `SWEEP_SECONDS` at most, and return how many the peer took.

        Raises:
            StorageError: the ledger does not answer; what was sent and not recorded is sent again.
        """
        outage = self._ledger.outages().get(self.alias)
        if outage is not None and self._clock() < outage.next_call:
            return 0
        classes = self._ledger.find_due_classes(self.alias, self._clock())
        if not classes:
            return 0
        sending = _Sending(self._ledger, self._store, self._settings, self._clock, self._rng)
        try:
            with open_peer(self._settings, self._peer, classes) as association:
                sending.run(self.alias, association, set(classes), probe=outage is not None)
        except DeliveryError as error:
            if not sending.answered:
                self._fail(error, 1 if outage is None else outage.failures + 1)
                return 0
            logger.warning("delivery.broken_off peer=%s: %s", self.alias, error)
        if outage is not None:
            self._ledger.end_outage(self.alias)
            logger.info("destination.answers peer=%s failures=%d", self.alias, outage.failures)
        if sending.taken:
            logger.info("delivery.taken peer=%s instances=%d", self.alias, sending.taken)
        return sending.taken

    def _fail(self, error: DeliveryError, failures: int) -> None:
        """Record that the association came to nothing, and park what has no time left."""
        patience = self._settings.delivery
        # A peer that refuses for good needs a change of its configuration: no hurry.
        is_refusal = isinstance(error, AssociationRejectedError) and error.permanent
        pause = patience.longest_retry
        if not is_refusal:
            pause = find_pause(patience.first_retry, pause, failures - 1)
        pause *= self._rng.uniform(1 - patience.jitter, 1 + patience.jitter)
        self._ledger.record_outage(self.alias, str(error), self._clock() + pause)
        is_alarm = failures == (1 if is_refusal else patience.alarm_after)
        logger.log(
            logging.ERROR if is_alarm else logging.WARNING,
            "destination.%s peer=%s failures=%d: %s",
            "refuses" if is_refusal else "does_not_answer",
            self.alias,
            failures,
            error,
        )
        if isinstance(error, InsecurePeerError):
            raise_alert("tls_failed", who=self.alias, reason=error.reason)
        park_overdue(self._ledger, self._settings, self._clock, self.alias)


class _Sending:
    """What goes to one peer over one association.

    Attributes:
        answered: instances to which the peer said anything.
        taken: of them, those that it took.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        settings: NodeSettings,
        clock: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        self.answered = 0
        self.taken = 0
        self._ledger = ledger
        self._store = store
        self._patience = settings.delivery
        self._clock = clock
        jitter = settings.delivery.jitter
        # One for all: what failed together is tried again together.
        self._jitter = rng.uniform(1 - jitter, 1 + jitter)

    def run(self, alias: str, association: Requestor, classes: set[str], *, probe: bool) -> None:
        """Send until nothing is due that was not tried, or time is up.

        Args:
            alias: whose deliveries.
            association: with it.
            classes: those that were proposed.
            probe: send one instance, and the others only when there was an answer.

        Raises:
            DeliveryError: the peer said nothing.
        """
        tried: set[int] = set()
        deadline = time.monotonic() + SWEEP_SECONDS
        limit = 1 if probe else BATCH
        while time.monotonic() < deadline:
            due = [
                delivery
                for delivery in self._ledger.due_deliveries(alias, self._clock(), limit)
                if delivery.instance.sop_class_uid in classes and delivery.delivery_id not in tried
            ]
            if not due:
                break
            self._send_batch(association, due)
            tried.update(delivery.delivery_id for delivery in due)
            limit = BATCH

    def _send_batch(self, association: Requestor, due: list[Delivery]) -> None:
        """Send some instances and record what the peer said, also when it falls silent."""
        attempts: list[Attempt] = []
        try:
            for attempt in self._send(association, due):
                attempts.append(attempt)
        finally:
            taken = sum(attempt.state in TAKEN for attempt in attempts)
            if taken:
                reach("delivery.sent")
            self._ledger.record_attempts(attempts)
            self.taken += taken

    def _send(self, association: Requestor, due: list[Delivery]) -> Iterator[Attempt]:
        """Send instances and yield how each attempt went.

        Raises:
            DeliveryError: the peer said nothing; the instance that it got was yielded before.
        """
        for delivery in due:
            instance = delivery.instance
            context = association.find_context(instance.sop_class_uid)
            if context is None:
                yield self._park(delivery, "the peer does not accept this SOP class")
                continue
            try:
                file = self._store.read(instance.path)
            except StorageError as error:
                yield self._postpone(delivery, None, str(error))
                continue
            if hashlib.sha256(file).hexdigest() != instance.sha256:
                yield self._park(delivery, "the file is not the one that was written")
                continue
            data_set = _encode(file, context.transfer_syntax)
            try:
                status = association.store(
                    context, instance.sop_class_uid, instance.sop_instance_uid, data_set
                )
            except DeliveryError as error:
                yield self._postpone(delivery, error.status, str(error))
                raise
            self.answered += 1
            yield self._judge(delivery, status)

    def _judge(self, delivery: Delivery, status: int) -> Attempt:
        outcome = judge_status(status)
        if outcome.state is DeliveryState.PENDING:
            return self._postpone(delivery, status, outcome.reason)
        if outcome.state is DeliveryState.PARKED:
            return self._park(delivery, outcome.reason, status)
        return Attempt(
            delivery_id=delivery.delivery_id,
            state=outcome.state,
            status=status,
            reason=outcome.reason,
        )

    def _park(self, delivery: Delivery, reason: str | None, status: int | None = None) -> Attempt:
        """Say that a person must look."""
        told = None if status is None else f"0x{status:04X}"
        logger.error("delivery.parked peer=%s status=%s: %s", delivery.peer, told, reason)
        return Attempt(
            delivery_id=delivery.delivery_id,
            state=DeliveryState.PARKED,
            status=status,
            reason=reason,
        )

    def _postpone(self, delivery: Delivery, status: int | None, reason: str | None) -> Attempt:
        """Say when to try again, unless the time is up and it has failed before."""
        patience, now = self._patience, self._clock()
        if delivery.attempts and delivery.queued_at < now - patience.give_up_after:
            return self._park(delivery, f"not taken in time: {reason}", status)
        pause = find_pause(patience.first_retry, patience.longest_retry, delivery.attempts)
        return Attempt(
            delivery_id=delivery.delivery_id,
            state=DeliveryState.PENDING,
            status=status,
            reason=reason,
            next_attempt=now + pause * self._jitter,
        )


def find_destinations(settings: NodeSettings) -> list[str]:
    """Return the aliases of the peers that take results."""
    return [alias for alias, peer in settings.peers.items() if "send" in peer.roles]


def find_confirming(settings: NodeSettings) -> list[str]:
    """Return the aliases of the peers that are asked whether they keep what they took."""
    return [alias for alias, peer in settings.peers.items() if peer.commitment != "none"]


def open_peer(settings: NodeSettings, peer: Peer, classes: Sequence[str]) -> Requestor:
    """Ask a peer for an association under `classes`.

    Raises:
        DeliveryError: there is none.
    """
    if peer.host is None or peer.port is None:  # settings refuse such a peer
        raise DeliveryError("the peer has no host and port", retry=False)
    return open_association(
        peer.host,
        peer.port,
        called_ae_title=peer.ae_title,
        calling_ae_title=settings.ae_title,
        sop_classes=classes,
        tls=call_with_tls(settings, peer),
    )


def park_overdue(
    ledger: Ledger, settings: NodeSettings, clock: Callable[[], datetime], alias: str
) -> None:
    """Park what a peer has not taken in all its time, for a person to look."""
    parked = ledger.park_overdue(alias, clock() - settings.delivery.give_up_after)
    if parked:
        logger.error("delivery.overdue peer=%s instances=%d", alias, parked)


def park_unserved(ledger: Ledger, settings: NodeSettings, clock: Callable[[], datetime]) -> None:
    """Park in time what waits for peers that the configuration does not name any more."""
    for alias, backlog in ledger.backlogs().items():
        if backlog.pending and alias not in find_destinations(settings):
            park_overdue(ledger, settings, clock, alias)


def find_alerts(
    backlogs: Mapping[str, Backlog],
    outages: Mapping[str, Outage],
    settings: NodeSettings,
    now: datetime,
) -> Iterator[str]:
    """Yield one sentence for each thing that a person should look at."""
    destinations = find_destinations(settings)
    for alias, outage in outages.items():
        waiting = backlogs[alias].pending if alias in backlogs else 0
        if alias in destinations and outage.failures >= settings.delivery.alarm_after:
            hours = (now - outage.since).total_seconds() / 3600
            yield (
                f"peer {alias}: no association for {hours:.1f} h, {waiting} instances wait "
                f"({outage.reason})"
            )
    for alias, backlog in backlogs.items():
        if backlog.parked:
            yield (
                f"peer {alias}: {backlog.parked} instances are parked: see `dicom-node status`, "
                "then `dicom-node requeue`"
            )
        since = backlog.unconfirmed_since
        late = now - settings.delivery.give_up_after
        if since is not None and since < late and alias in find_confirming(settings):
            yield (
                f"peer {alias}: {backlog.unconfirmed} instances were taken, and it does not say "
                "that it keeps them"
            )
        if backlog.pending and alias not in destinations:
            yield f"peer {alias}: {backlog.pending} instances wait, and no such peer is configured"


def find_oldest_pending(backlogs: Mapping[str, Backlog], now: datetime) -> float:
    """Return how many seconds the instance has waited that waits longest; 0 when none does."""
    since = [each.pending_since for each in backlogs.values() if each.pending_since]
    return (now - min(since)).total_seconds() if since else 0.0


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
