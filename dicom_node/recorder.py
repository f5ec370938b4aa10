"""Write what was received into the ledger: one thread, many rows in one commit.

Step 2 of the walk. A commit costs much and a row little, so that rows of all associations go
together. Whoever waits is told when the commit is on the disk. Whoever does not wait has a file
that says of itself all that the row would say: should the process die first, `spool.rebuild` makes
the row before anything looks for it.

A sync of the ledger that failed is not tried again: the receiver ends at once, its node starts it
anew, and `spool.rebuild` makes the rows that were under way from their files. Any other failure
leaves the ledger as it was, so that the whole commit may be tried again.

A content whose UID another content has already goes into the quarantine of the store before its row
is committed: the order in which they came decides, and no crash turns it round.
"""

import logging
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from dicom_node import crashpoints
from dicom_node.complaints import Alert, Complaints
from dicom_node.domain import UID_CONFLICT, UID_NONCONFORMANT
from dicom_node.errors import StorageError, UnsyncedLedger
from dicom_node.notices import take_notice
from dicom_node.records import Notice, Receipt, Report
from dicom_node.store import Store

if TYPE_CHECKING:
    from dicom_node.ledger import Ledger

LINGER_SECONDS = 1.0
"""Rows that nobody waits for are collected for so long."""

PATIENCE_SECONDS = 30.0
"""So long an instance waits for the ledger."""

UNSYNCED = 74
"""Exit code of a receiver whose ledger could not be synced (EX_IOERR of sysexits.h)."""

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
OVERLOADED = 0xA702
UNWELL = 0xA701

_ENOUGH_ROWS = 4_000
"""So many rows go at once: a burst of fewer is over before its rows cost anything."""

_MOST_ROWS = 5_000
"""More do not wait in memory: then the ledger sets the pace."""

_MOST_ALERTS = 10
"""In one commit: whoever is not let in must not fill the ledger. The log has the others, too."""

_PAUSE_SECONDS = 0.5
_NICENESS = 5  # of one thread; more would also slow down those that wait for the interpreter
_TEXTS = {OVERLOADED: "the ledger is behind", UNWELL: "the ledger does not answer"}

Outcome = Future[int | None]
"""None when the commit is on the disk, or the status that says why it is not."""

_logger = logging.getLogger(__name__)


class Rows(ABC):
    """What reception asks of a recorder, in whatever process that is.

    Args of the constructor: whether the row of an instance is waited for. If it is not, nothing is
    let in while the ledger does not answer or is behind.
    """

    def __init__(self, *, waited_for: bool) -> None:
        self._waited_for = waited_for
        self._obstacle: int | None = None
        self._cleared = threading.Condition()

    def record(self, receipt: Receipt) -> None:
        """Record one instance; when this returns, its row is committed or will be.

        Raises:
            StorageError: the ledger does not answer, or is too far behind.
        """
        if self._waited_for:
            outcome = Outcome()
            self.submit(receipt, outcome)
            _wait(outcome)
            return
        if self._obstacle is not None:
            with self._cleared:
                self._cleared.wait_for(lambda: self._obstacle != OVERLOADED, PATIENCE_SECONDS)
                if self._obstacle is not None:
                    raise StorageError(_TEXTS[self._obstacle], self._obstacle)
        self.submit(receipt, None)

    def close_association(self, association_id: str) -> None:
        """Say that an association is over; when this returns, all that came over it has its row.

        Raises:
            StorageError: the ledger does not answer.
        """
        outcome = Outcome()
        self.submit_end(association_id, outcome)
        _wait(outcome)

    def hear_of(self, obstacle: int | None) -> None:
        """Learn why nothing can be let in now: the status to answer with, or None."""
        with self._cleared:
            self._obstacle = obstacle
            self._cleared.notify_all()

    def take_report(self, peer: str, report: Report) -> int:
        """Record what a peer says that it keeps, and return the status to answer with."""
        outcome = Outcome()
        self.submit_report(peer, report, outcome)
        return _wait_for_status(outcome)

    def take_notice(self, peer: str, notice: Notice) -> int:
        """Record what a peer tells of studies, and return the status to answer with."""
        outcome = Outcome()
        self.submit_notice(peer, notice, outcome)
        return _wait_for_status(outcome)

    @property
    def is_hindered(self) -> bool:
        """Whether `record` would have to wait for more than its own row."""
        return self._obstacle is not None

    @property
    def is_shut(self) -> bool:
        """Whether the ledger does not answer, so that whoever comes now comes in vain.

        Not where rows are waited for: there it is tried with the next instance, and not before.
        """
        return not self._waited_for and self._obstacle == UNWELL

    @abstractmethod
    def submit(self, receipt: Receipt, outcome: Outcome | None) -> None:
        """Put an instance into the next commit, and let `outcome` say how that went."""

    @abstractmethod
    def submit_end(self, association_id: str, outcome: Outcome) -> None:
        """Put the end of an association into the next commit."""

    @abstractmethod
    def submit_report(self, peer: str, report: Report, outcome: Outcome) -> None:
        """Record what a peer says that it keeps, and let `outcome` say how that went."""

    @abstractmethod
    def submit_notice(self, peer: str, notice: Notice, outcome: Outcome) -> None:
        """Record what a peer tells of studies, and let `outcome` say how that went."""

    @abstractmethod
    def keep_alive(self, association_ids: tuple[str, ...]) -> None:
        """Say that these associations are alive."""


@dataclass(slots=True)
class _Batch:
    """What goes into one commit, and who waits for it."""

    receipts: list[Receipt] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    closed: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    told: list[tuple[str, Report | Notice, Outcome]] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)

    def is_empty(self) -> bool:
        return not (self.receipts or self.alive or self.closed or self.told or self.alerts)


class Recorder(Rows):
    """The only writer of the receiving process; a context manager that writes all at its end.

    Where rows are not waited for, a batch that the ledger refused is tried again until it is taken.
    """

    def __init__(
        self,
        ledger: "Ledger",
        store: Store,
        *,
        waited_for: bool,
        tell: Callable[[int | None], None] | None = None,
        record_report: Callable[[str, Report], int | None] | None = None,
    ) -> None:
        """Describe it.

        Args:
            ledger: what is written.
            store: where what is quarantined is moved.
            waited_for: see `Rows`.
            tell: hears what `hear_of` does, for those who ask from afar.
            record_report: records what a peer reports, and returns the status of a refusal.
        """
        super().__init__(waited_for=waited_for)
        self._ledger = ledger
        self._store = store
        self._complaints = Complaints()
        self._tell = tell
        self._record_report = record_report
        self._changed = threading.Condition()
        self._batch = _Batch()
        self._is_urgent = False
        self._is_unwell = False
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        self._thread.join()

    def submit(self, receipt: Receipt, outcome: Outcome | None) -> None:
        """See `Rows`."""
        with self._changed:
            receipts = self._batch.receipts
            receipts.append(receipt)
            if outcome is not None:
                self._batch.outcomes.append(outcome)
            if len(receipts) == 1:
                self._changed.notify_all()
            elif len(receipts) == _ENOUGH_ROWS:
                self._is_urgent = True
                self._changed.notify_all()
            elif len(receipts) == _MOST_ROWS:
                self._look_around()

    def submit_end(self, association_id: str, outcome: Outcome) -> None:
        """See `Rows`."""
        with self._changed:
            self._batch.closed.append(association_id)
            self._batch.outcomes.append(outcome)
            self._is_urgent = True
            self._changed.notify_all()

    def submit_report(self, peer: str, report: Report, outcome: Outcome) -> None:
        """See `Rows`."""
        self._submit_told(peer, report, outcome)

    def submit_notice(self, peer: str, notice: Notice, outcome: Outcome) -> None:
        """See `Rows`."""
        self._submit_told(peer, notice, outcome)

    def _submit_told(self, peer: str, told: Report | Notice, outcome: Outcome) -> None:
        with self._changed:
            self._batch.told.append((peer, told, outcome))
            self._is_urgent = True
            self._changed.notify_all()

    def keep_alive(self, association_ids: tuple[str, ...]) -> None:
        """See `Rows`."""
        with self._changed:
            self._batch.alive.update(association_ids)
            self._changed.notify_all()

    def keep_alert(self, alert: Alert) -> None:
        """Put an alert into one of the next commits, unless there are too many already."""
        with self._changed:
            if len(self._batch.alerts) < _MOST_ALERTS:
                self._batch.alerts.append(alert)
                self._changed.notify_all()

    def _look_around(self) -> None:
        """Say what stands in the way now, if that has changed."""
        obstacle = None
        if self._is_unwell:
            obstacle = UNWELL
        elif len(self._batch.receipts) >= _MOST_ROWS:
            obstacle = OVERLOADED
        if obstacle != self._obstacle:
            self.hear_of(obstacle)
            if self._tell is not None:
                self._tell(obstacle)

    def _run(self) -> None:
        if not self._waited_for and sys.platform == "linux":
            # Whoever talks to peers goes first: a study comes in a burst, and its rows can wait.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (batch := self._collect()) is not None:
            self._commit(batch)

    def _collect(self) -> _Batch | None:
        """Return what waits to be committed, or None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ending or not self._batch.is_empty())
            if not self._waited_for:
                self._changed.wait_for(lambda: self._is_ending or self._is_urgent, LINGER_SECONDS)
            batch, self._batch, self._is_urgent = self._batch, _Batch(), False
            self._look_around()
            return None if batch.is_empty() else batch

    def _commit(self, batch: _Batch) -> None:
        status: int | None = None
        while True:
            # The end itself is worth one more attempt.
            is_last = self._waited_for or self._is_ending
            try:
                self._give_names(batch.receipts)
                contested = self._ledger.record_receipts(
                    batch.receipts,
                    alive=batch.alive,
                    closed=batch.closed,
                    alerts=batch.alerts,
                    quarantine=self._quarantine,
                )
            except UnsyncedLedger:
                _logger.critical("recorder.sync_failed", extra={"rows": len(batch.receipts)})
                os._exit(UNSYNCED)
            except StorageError as error:
                self._note_health(is_unwell=True)
                _logger.error("recorder.failed", extra={"rows": len(batch.receipts)})
                if is_last:
                    status = error.status
                    break
                time.sleep(_PAUSE_SECONDS)
            else:
                self._note_health(is_unwell=False)
                crashpoints.reach("receive.recorded")
                self._alert(contested)
                self._flag(batch.receipts)
                break
        for outcome in batch.outcomes:
            outcome.set_result(status)
        for peer, told, outcome in batch.told:
            outcome.set_result(self._take(peer, told))

    def _give_names(self, receipts: list[Receipt]) -> None:
        """Do for instances what was put off until they were acknowledged (`Durability.NONE`).

        What has its name is replaced at once, so that it is not asked for twice.
        """
        for index, receipt in enumerate(receipts):
            if not receipt.instance.sha256:
                path, sha256 = self._store.give_name(receipt.instance.path)
                crashpoints.reach("receive.named")
                instance = replace(receipt.instance, path=path, sha256=sha256)
                receipts[index] = replace(receipt, instance=instance)

    def _take(self, peer: str, told: Report | Notice) -> int | None:
        """Record what was told; the peer of what the ledger refuses tells it again, or is asked."""
        try:
            if isinstance(told, Notice):
                return take_notice(self._ledger, peer, told)
            return None if self._record_report is None else self._record_report(peer, told)
        except StorageError:
            _logger.error("recorder.report_failed", extra={"peer": peer})
            return PROCESSING_FAILURE

    def _note_health(self, *, is_unwell: bool) -> None:
        with self._changed:
            self._is_unwell = is_unwell
            self._look_around()

    def _quarantine(self, path: str) -> str:
        moved = self._store.quarantine(path)
        crashpoints.reach("receive.quarantined")
        return moved

    def _alert(self, contested: Iterable[Receipt]) -> None:
        """Alert somebody: the studies of these receipts will be held."""
        studies = Counter((each.peer, each.instance.study_instance_uid) for each in contested)
        for (peer, study), instances in studies.items():
            self._complaints.note(
                UID_CONFLICT, who=peer, level=logging.ERROR, study=study, instances=instances
            )

    def _flag(self, receipts: Iterable[Receipt]) -> None:
        """Tell who sends UIDs that the Standard does not allow."""
        peers = Counter(each.peer for each in receipts if not each.instance.has_conformant_uids)
        for peer, instances in peers.items():
            self._complaints.note(UID_NONCONFORMANT, who=peer, instances=instances)


def _wait_for_status(outcome: Outcome) -> int:
    try:
        return outcome.result(PATIENCE_SECONDS) or SUCCESS
    except TimeoutError:
        return PROCESSING_FAILURE


def _wait(outcome: Outcome) -> None:
    try:
        status = outcome.result(PATIENCE_SECONDS)
    except TimeoutError:
        status = OVERLOADED
    if status is not None:
        raise StorageError(_TEXTS.get(status, _TEXTS[UNWELL]), status)
