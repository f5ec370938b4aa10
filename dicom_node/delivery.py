"""Step 12 of the walk: a worker for each destination sends it instances, and records what it said.

    due deliveries → associations that stay open → C-STORE → status (`courier`) → ledger

Nothing is called sent that the peer did not take. A crash between its answers and their rows sends
those few once more, the same bytes under the same UID. What may succeed later is tried later, ever
more rarely; what will not is parked for a person; nothing is deleted.

Before anything of a job goes out its patient is compared with what has come since (`misfiling`).

No worker waits for another, so that a destination that is dead, slow or silent delays nobody else.
An association that comes to nothing is the destination's failure and not that of the instances:
they stay due, and the ledger keeps one outage for all of them. After each pause one association is
tried and one instance in it; its answer, whatever it says, lets all the others go.

Associations outlive a sweep: the next one goes on over them, until nothing was due for a while.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice

from dicom_node.complaints import Alert, raise_alert
from dicom_node.courier import MOST_OPEN, Carrier, Courier, Kind, find_contexts
from dicom_node.dicomweb import Service
from dicom_node.domain import Delivery, Role
from dicom_node.door_settings import Peer
from dicom_node.errors import DeliveryError, StorageError
from dicom_node.ledger import Backlog, Ledger, Outage
from dicom_node.misfiling import hold_misfiled
from dicom_node.network import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    AssociationRejectedError,
    Requestor,
    open_association,
)
from dicom_node.node_settings import NodeSettings
from dicom_node.outcomes import find_pause
from dicom_node.part10 import decode_file_meta
from dicom_node.store import Store
from dicom_node.stow import open_stow
from dicom_node.tls import InsecurePeerError, call_with_tls

SWEEP_SECONDS = 15.0
"""After so long a sweep leaves the rest to the next, so that what has become due is looked at."""

LOOK_AHEAD = range(32, 1_025)
"""Deliveries read at a time, as many as go out in about `LOOK_AHEAD_SECONDS`: what the study has
outgrown meanwhile is not sent any more."""

LOOK_AHEAD_SECONDS = 0.5

WORTH_AN_ASSOCIATION = 8
"""Instances that must be due for each association beyond the first."""

FAREWELL_SECONDS = 1.0
"""How long a peer may take to confirm a release: nothing depends on it."""

_HEAD_BYTES = 1_024  # of a file, in which its file meta information lies

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
        self._stopping = threading.Event()
        self._busy = threading.Lock()
        self._lines = [_Line(settings, alias) for _ in range(self._peer.associations)]
        self._strangers: set[Kind] = set()

    def sweep(self) -> int:
        """Send what is due, for `SWEEP_SECONDS` at most, and return how many the peer took.

        Raises:
            StorageError: the ledger does not answer; what was sent and not recorded is sent again.
        """
        with self._busy:
            outage = self._ledger.outages().get(self.alias)
            is_early = outage is not None and self._clock() < outage.next_call
            if is_early or self._stopping.is_set():
                return 0
            kinds = self._find_kinds()
            if not kinds:
                for line in self._lines:
                    line.hang_up(unless_used_within=self._peer.keep_open.total_seconds())
                return 0
            return self._deliver(kinds, outage)

    def stop(self) -> None:
        """Let a sweep that runs end as soon as what is under way is answered."""
        self._stopping.set()

    def close(self) -> None:
        """Release the associations, once no sweep runs any more; none is opened again."""
        self.stop()
        with self._busy:
            for line in self._lines:
                line.hang_up()

    def _deliver(self, kinds: frozenset[Kind], outage: Outage | None) -> int:
        """Send over as many associations as are worth it, and say how it went."""
        supply = _Supply(
            self._ledger, self._store, self.alias, self._peer, self._clock, self._stopping
        )
        run = _Run(supply, kinds)
        failure: DeliveryError | None = None
        try:
            if len(self._lines) > 1:
                # One first: its answer shows that the peer is there.
                self._work(self._lines[0], run, most=1)
            self._work_together(run)
        except DeliveryError as error:
            failure = error
        self._strangers |= run.strangers
        if failure is not None and not run.answered:
            self._fail(failure, 1 if outage is None else outage.failures + 1)
            return 0
        if failure is not None:
            logger.warning("delivery.broken_off peer=%s: %s", self.alias, failure)
        if outage is not None:
            self._ledger.end_outage(self.alias)
            logger.info("destination.answers peer=%s failures=%d", self.alias, outage.failures)
        if run.reencoded:
            logger.warning("delivery.implicit_vr peer=%s instances=%d", self.alias, run.reencoded)
        if run.taken:
            logger.info("delivery.taken peer=%s instances=%d", self.alias, run.taken)
        return run.taken

    def _work_together(self, run: "_Run") -> None:
        """Send what is due over all associations that are worth it.

        Raises:
            DeliveryError: the first of them came to nothing; what the others do is in the log.
        """
        helpers = self._lines[1 : 1 + run.supply.count() // WORTH_AN_ASSOCIATION]
        if not helpers:
            self._work(self._lines[0], run)
            return
        with ThreadPoolExecutor(len(helpers), thread_name_prefix="delivery") as pool:
            works = [pool.submit(self._help, line, run) for line in helpers]
            self._work(self._lines[0], run)
            for work in works:
                work.result()

    def _help(self, line: "_Line", run: "_Run") -> None:
        """Send over one more association; without it there is one less, and no harm is done."""
        try:
            self._work(line, run)
        except DeliveryError as error:
            logger.warning("delivery.association_lost peer=%s: %s", self.alias, error)

    def _work(self, line: "_Line", run: "_Run", most: int | None = None) -> None:
        """Send over one association until nothing is due, or `most` instances have gone.

        An association that was kept open may have ended without a word meanwhile, which is no
        failure of anybody: what it did not answer at all goes over a new one.

        Raises:
            DeliveryError: there is no association, or the peer fell silent.
        """
        was_kept = True
        while was_kept:
            was_kept = line.call(run.kinds)
            courier = self._hire(line, run)
            try:
                courier.carry(islice(run.supply, most))
            except DeliveryError as error:
                line.drop()
                # Who refuses all this node asks for has not looked at what was under way.
                is_refusal = isinstance(error, AssociationRejectedError)
                is_stale = was_kept and not courier.answered and not is_refusal
                is_untried = is_stale or is_refusal
                run.supply.give_back((courier.unanswered if is_untried else []) + courier.unsent)
                if not is_untried:
                    courier.give_up(error)
                if not is_stale:
                    raise
            except BaseException:
                line.drop()
                raise
            else:
                return
            finally:
                run.add(courier)

    def _hire(self, line: "_Line", run: "_Run") -> Courier:
        patience = self._settings.delivery
        return Courier(
            line.association,
            line.proposed,
            self._ledger,
            self._store,
            patience,
            self._clock,
            self._rng.uniform(1 - patience.jitter, 1 + patience.jitter),
            run.supply.is_open,
        )

    def _find_kinds(self) -> frozenset[Kind]:
        """Return SOP classes and transfer syntaxes of what is due: those that are proposed."""
        samples = self._ledger.find_due_samples(self.alias, self._clock())
        kinds = {(sop_class, self._read_syntax(path)) for sop_class, path in samples}
        if kinds:
            kinds |= self._strangers
            self._strangers.clear()
        return frozenset(kinds)

    def _read_syntax(self, path: str) -> str:
        try:
            return decode_file_meta(self._store.read(path, _HEAD_BYTES)).transfer_syntax_uid
        except (StorageError, ValueError):
            # Whoever is to send it will find the same, and say so of this one instance.
            return EXPLICIT_VR_LITTLE_ENDIAN

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
            facts = {"reason": error.reason}
            self._ledger.note_alert(Alert(event="tls_failed", who=self.alias, facts=facts))
        park_overdue(self._ledger, self._settings, self._clock, self.alias)


class _Line:
    """An association with a peer, which is kept open while there is work.

    Attributes:
        proposed: kinds of instances for which it was asked.
    """

    def __init__(self, settings: NodeSettings, alias: str) -> None:
        self.proposed: frozenset[Kind] = frozenset()
        self._settings = settings
        self._alias = alias
        self._association: Carrier | None = None
        self._used_at = 0.0

    @property
    def association(self) -> Carrier:
        """The association that `call` has seen to."""
        if self._association is None:
            raise DeliveryError("the association is over", retry=True)
        return self._association

    def call(self, kinds: frozenset[Kind]) -> bool:
        """See to an association for instances of `kinds`; True when it was open already.

        Raises:
            DeliveryError: there is none.
        """
        self._used_at = time.monotonic()
        if self._association is not None:
            # A peer that says anything unasked wants to part, or has.
            if kinds <= self.proposed and not self._association.has_input():
                return True
            self.hang_up()
        contexts, self.proposed = find_contexts(kinds)
        self._association = self._open(contexts)
        return False

    def _open(self, contexts: Sequence[Kind]) -> Carrier:
        peer = self._settings.peers[self._alias]
        if peer.dicomweb is not None:
            return open_stow(Service(self._alias, peer), peer.window)
        return open_peer(self._settings, peer, instances=contexts, window=peer.window)

    def hang_up(self, *, unless_used_within: float = 0.0) -> None:
        """Release the association, if there is one that was not used for so many seconds."""
        if self._association is None or time.monotonic() - self._used_at < unless_used_within:
            return
        association, self._association = self._association, None
        association.release(FAREWELL_SECONDS)

    def drop(self) -> None:
        """Abort the association."""
        if self._association is not None:
            association, self._association = self._association, None
            association.abort()


class _Supply:
    """What is due to one peer, for several threads: each delivery is given out once in a sweep."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        alias: str,
        peer: Peer,
        clock: Callable[[], datetime],
        stopping: threading.Event,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._alias = alias
        self._clock = clock
        self._stopping = stopping
        self._deadline = time.monotonic() + SWEEP_SECONDS
        # What was given out stays due in the ledger until it is recorded.
        self._open = peer.associations * (MOST_OPEN + peer.window)
        self._least = max(LOOK_AHEAD[0], peer.associations * WORTH_AN_ASSOCIATION)
        self._size = self._least
        self._filled_at = time.monotonic()
        self._lock = threading.Lock()
        self._tried: set[int] = set()
        self._looked_at: set[str] = set()
        self._ready: deque[Delivery] = deque()

    def __iter__(self) -> Iterator[Delivery]:
        while self.is_open():
            with self._lock:
                self._fill()
                if not self._ready:
                    return
                delivery = self._ready.popleft()
            yield delivery

    def is_open(self) -> bool:
        """Say whether this sweep may go on."""
        return not self._stopping.is_set() and time.monotonic() < self._deadline

    def count(self) -> int:
        """Return how many are due, or some of them when there are very many."""
        with self._lock:
            self._fill()
            return len(self._ready)

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Take back what was given out and has gone nowhere."""
        with self._lock:
            self._ready.extendleft(reversed(deliveries))

    def _fill(self) -> None:
        if self._ready:
            return
        is_fast = time.monotonic() < self._filled_at + LOOK_AHEAD_SECONDS
        self._size = min(2 * self._size, LOOK_AHEAD[-1]) if is_fast else self._least
        self._filled_at = time.monotonic()
        limit = self._size + self._open
        due = self._ledger.due_deliveries(self._alias, self._clock(), limit)
        new = {each.plan_id for each in due if each.instance.role is not Role.WITHDRAWAL}
        new -= self._looked_at
        held = hold_misfiled(sorted(new), self._ledger, self._store)
        self._looked_at |= new - held
        self._ready.extend(
            each
            for each in due
            if each.delivery_id not in self._tried
            and (each.plan_id not in held or each.instance.role is Role.WITHDRAWAL)
        )
        self._tried.update(each.delivery_id for each in self._ready)


class _Run:
    """What one sweep does over all associations.

    Attributes:
        kinds: of instances that are due.
    """

    def __init__(self, supply: _Supply, kinds: frozenset[Kind]) -> None:
        self.supply = supply
        self.kinds = kinds
        self.answered = self.taken = self.reencoded = 0
        self.strangers: set[Kind] = set()
        self._lock = threading.Lock()

    def add(self, courier: Courier) -> None:
        """Count what has gone over one association."""
        with self._lock:
            self.answered += courier.answered
            self.taken += courier.taken
            self.reencoded += courier.reencoded
            self.strangers |= courier.strangers


def find_destinations(settings: NodeSettings) -> list[str]:
    """Return the aliases of the peers that take results."""
    return [alias for alias, peer in settings.peers.items() if "send" in peer.roles]


def find_confirming(settings: NodeSettings) -> list[str]:
    """Return the aliases of the peers that are asked whether they keep what they took."""
    return [alias for alias, peer in settings.peers.items() if peer.commitment != "none"]


def open_peer(
    settings: NodeSettings,
    peer: Peer,
    classes: Sequence[str] = (),
    *,
    instances: Sequence[Kind] = (),
    window: int = 1,
) -> Requestor:
    """Ask a peer for an association; `classes`, `instances`, `window`: see `open_association`.

    Raises:
        DeliveryError: there is none.
    """
    if peer.host is None or peer.port is None or peer.ae_title is None:  # settings refuse that
        raise DeliveryError("the peer has no AE title, host and port", retry=False)
    return open_association(
        peer.host,
        peer.port,
        called_ae_title=peer.ae_title,
        calling_ae_title=settings.ae_title,
        sop_classes=classes,
        instances=instances,
        window=window,
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
