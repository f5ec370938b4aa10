"""Write what was received into the ledger: one thread, many rows in one commit.

Step 2 of the walk. A commit costs much and a row little, so that rows of all associations go
together. Whoever waits is told when the commit is on the disk. Whoever does not wait has a file
that says of itself all that the row would say: should the process die first, `spool.rebuild` makes
the row before anything looks for it.
"""

import logging
import threading
import time
from dataclasses import dataclass, field

from dicom_node import crashpoints
from dicom_node.errors import StorageError
from dicom_node.ledger import Ledger, Receipt

LINGER_SECONDS = 0.25
"""Rows that nobody waits for are collected for so long."""

_MOST_ROWS = 5_000
"""More do not wait in memory: then the ledger sets the pace."""

_PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.5
_OVERLOADED = 0xA702
_UNWELL = 0xA701

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Batch:
    """What goes into one commit, and how it went."""

    receipts: list[Receipt] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    closed: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    error: StorageError | None = None

    def is_empty(self) -> bool:
        return not (self.receipts or self.alive or self.closed)


class Recorder:
    """The only writer of the receiving process; a context manager that writes all at its end.

    Args of the constructor: the ledger, and whether rows are waited for. If they are not, a batch
    that the ledger refused is tried again until it is taken, and nothing new is let in meanwhile.
    """

    def __init__(self, ledger: Ledger, *, waited_for: bool) -> None:
        self._ledger = ledger
        self._waited_for = waited_for
        self._changed = threading.Condition()
        self._batch = _Batch()
        self._is_urgent = False
        self._is_unwell = False
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        self._thread.join()

    def record(self, receipt: Receipt) -> None:
        """Record one instance; when this returns, its row is committed or will be.

        Raises:
            StorageError: the ledger does not answer, or is too far behind.
        """
        with self._changed:
            if self._is_unwell and not self._waited_for:
                raise StorageError("the ledger does not answer", _UNWELL)
            if not self._changed.wait_for(self._has_room, _PATIENCE_SECONDS):
                raise StorageError("the ledger is behind", _OVERLOADED)
            batch = self._batch
            batch.receipts.append(receipt)
            if len(batch.receipts) == 1:
                self._changed.notify_all()
        if self._waited_for:
            self._wait(batch)

    def keep_alive(self, association_ids: tuple[str, ...]) -> None:
        """Say that these associations are alive."""
        with self._changed:
            self._batch.alive.update(association_ids)
            self._changed.notify_all()

    def close_association(self, association_id: str) -> None:
        """Say that an association is over; when this returns, all that came over it has its row.

        Raises:
            StorageError: the ledger does not answer.
        """
        with self._changed:
            batch = self._batch
            batch.closed.append(association_id)
            self._is_urgent = True
            self._changed.notify_all()
        self._wait(batch)

    def _has_room(self) -> bool:
        return len(self._batch.receipts) < _MOST_ROWS

    @staticmethod
    def _wait(batch: _Batch) -> None:
        if not batch.done.wait(_PATIENCE_SECONDS):
            raise StorageError("the ledger is behind", _OVERLOADED)
        if batch.error is not None:
            raise batch.error

    def _run(self) -> None:
        while (batch := self._collect()) is not None:
            self._commit(batch)

    def _collect(self) -> _Batch | None:
        """Return what waits to be committed, or None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ending or not self._batch.is_empty())
            if not self._waited_for:
                self._changed.wait_for(lambda: self._is_ending or self._is_urgent, LINGER_SECONDS)
            batch, self._batch, self._is_urgent = self._batch, _Batch(), False
            self._changed.notify_all()
            return None if batch.is_empty() else batch

    def _commit(self, batch: _Batch) -> None:
        while True:
            try:
                self._ledger.record_receipts(batch.receipts, alive=batch.alive, closed=batch.closed)
            except StorageError as error:
                self._is_unwell = True
                _logger.error("recorder.failed", extra={"rows": len(batch.receipts)})
                if self._waited_for or self._is_ending:
                    batch.error = error
                    break
                time.sleep(_PAUSE_SECONDS)
            else:
                self._is_unwell = False
                crashpoints.reach("receive.recorded")
                break
        batch.done.set()
