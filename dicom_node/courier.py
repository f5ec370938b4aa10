"""Takes instances to a peer over one association: each read, checked, sent, judged, recorded.

A DICOMweb service that is called (`stow`) is one here, too.

    file → digest, transfer syntax → C-STORE → … → status → attempt → ledger, some at a time

While the peer stores one instance the next are read, their digests are compared in a thread beside,
and answers are recorded. Where the peer grants an asynchronous operations window several instances
are under way, and their answers come in any order. Two go alone: the first, whose answer shows that
the peer is there, and one that has failed before, so that an instance on which the peer chokes
takes no other with it.

The digest is compared each time that a file is sent: it may have been written days ago.

What is sent are the bytes of the file; the one exception is told in `_pack`.
"""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Protocol

from pydicom import Dataset, dcmread, dcmwrite

from dicom_node.association import Context
from dicom_node.crashpoints import reach
from dicom_node.domain import Delivery, DeliveryState, DerivedInstance
from dicom_node.errors import DeliveryError, StorageError
from dicom_node.ledger import TAKEN, Attempt, Ledger
from dicom_node.network import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MOST_CONTEXTS,
)
from dicom_node.node_settings import Delivery as Patience
from dicom_node.outcomes import Outcome, find_pause
from dicom_node.part10 import decode_file_meta
from dicom_node.store import Store
from dicom_node.wire import Piece

BATCH = 128
"""Answers recorded at a time: a crash sends no more than these, and what was under way, twice."""

RECORD_SECONDS = 1.0
"""Fewer are recorded when the first of them came so long ago."""

WORTH_A_THREAD = range(64 * 1024, 16 * 1024**2)
"""Sizes of files that are hashed in a thread beside: a smaller one takes no longer than to hand it
on, and a larger one is not kept in memory before its turn."""

PART_BYTES = 1024**2
"""Files are handed on together that have so many bytes, or are `MOST_IN_PART`."""

MOST_IN_PART = PART_BYTES // WORTH_A_THREAD[0]

PART_SECONDS = 0.01
"""Where so many take longer to go, each is handed on alone: other associations want some, too."""

READ_AHEAD = 2
"""Parts that are hashed before their turn."""

MOST_OPEN = BATCH + (READ_AHEAD + 1) * MOST_IN_PART
"""Deliveries that a courier has and whose answers are not recorded, beside those under way."""

REENCODED = "sent in Implicit VR Little Endian, for the peer takes no Explicit"

Kind = tuple[str, str]
"""SOP class and transfer syntax of an instance, as it lies in its file."""

logger = logging.getLogger(__name__)


class Carrier(Protocol):
    """What instances go over: an association (`network`), or a DICOMweb service (`stow`).

    Attributes:
        window: how many instances may be under way at a time.
        takes_files: whether it is given whole files, or data sets without file meta information.
    """

    window: int
    takes_files: bool

    def find_context(
        self, abstract_syntax: str, transfer_syntax: str | None = None
    ) -> Context | None:
        """Return a context under which the peer takes instances of this kind, or None."""

    def begin_store(
        self, context: Context, sop_class_uid: str, sop_instance_uid: str, data_set: Piece
    ) -> int:
        """Send an instance and return a number for it; raises DeliveryError."""

    def read_outcome(self) -> tuple[int, Outcome]:
        """Return the number of an instance under way and its outcome; raises DeliveryError."""

    def has_input(self) -> bool:
        """Say whether the peer has said something unasked, or has gone."""

    def release(self, seconds: float | None = None) -> None:
        """End it, and let the peer confirm that within `seconds`."""

    def abort(self) -> None:
        """End it now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parcel:
    """An instance that is ready to be sent; `note` says what was done to it, if anything."""

    delivery: Delivery
    context: Context
    data_set: memoryview | bytes
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unreadable:
    """Why the file of an instance cannot be sent, and whether that may pass."""

    reason: str
    may_pass: bool


_File = tuple[Delivery, bytes | _Unreadable]


def _check(file: _File) -> _File:
    """Return a file unless it is not the one that was written."""
    delivery, content = file
    if not isinstance(content, bytes):
        return file
    if hashlib.sha256(content).hexdigest() == delivery.instance.sha256:
        return file
    return delivery, _Unreadable(reason="the file is not the one that was written", may_pass=False)


def _check_all(part: list[_File]) -> list[_File]:
    return list(map(_check, part))


def _is_worth_a_thread(part: list[_File]) -> bool:
    last = part[-1][1]
    return isinstance(last, bytes) and len(last) in WORTH_A_THREAD


class Courier:
    """One association, and what goes over it.

    Attributes:
        answered: instances to which the peer said anything.
        taken: of them, those that it took.
        reencoded: of them, those that went out in Implicit VR.
        strangers: kinds of instances that were passed over, because they were not proposed.
    """

    def __init__(
        self,
        association: Carrier,
        proposed: Collection[Kind],
        ledger: Ledger,
        store: Store,
        patience: Patience,
        clock: Callable[[], datetime],
        jitter: float,
        may_go_on: Callable[[], bool],
    ) -> None:
        """Describe it.

        Args:
            association: with the peer; the courier does not end it.
            proposed: kinds of instances for which it was asked.
            ledger: where attempts are recorded.
            store: where the files are.
            patience: how soon what failed is tried again.
            clock: gives aware UTC times.
            jitter: factor for pauses. One for all: what failed together is tried together again.
            may_go_on: says whether anything more is to be sent.
        """
        self.answered = 0
        self.taken = 0
        self.reencoded = 0
        self.strangers: set[Kind] = set()
        self._unsent: deque[Delivery] = deque()
        self._association = association
        self._proposed = proposed
        self._ledger = ledger
        self._store = store
        self._patience = patience
        self._clock = clock
        self._jitter = jitter
        self._may_go_on = may_go_on
        self._under_way: dict[int, _Parcel] = {}
        self._asked: dict[int, int] = {}
        self._heard: list[tuple[_Parcel, Outcome]] = []
        self._attempts: list[Attempt] = []
        self._begun: set[str] = set()
        self._record_at = 0.0

    def carry(self, deliveries: Iterable[Delivery]) -> None:
        """Send instances until `deliveries` gives no more, and record what the peer says.

        What was read when nothing more may go stays as it is.

        Raises:
            DeliveryError: the peer fell silent or broke a rule; `unanswered` are under way.
            StorageError: the ledger does not answer; what was not recorded is sent again.
        """
        try:
            with closing(self._read_ahead(deliveries)) as files:
                for delivery, file in files:
                    if not self._may_go_on():
                        break
                    parcel = self._pack(delivery, file)
                    if parcel is not None:
                        is_alone = delivery.attempts or not self.answered
                        room = 1 if is_alone else self._association.window
                        while len(self._under_way) >= room:
                            self._hear()
                        self._announce(parcel.delivery)
                        self._send(parcel)
                    self._unsent.popleft()
                    self._judge_heard()  # now that the peer has something to do again
                    if len(self._attempts) >= BATCH or (
                        self._attempts and time.monotonic() >= self._record_at
                    ):
                        self._record()
            while self._under_way:
                self._hear()
        finally:
            self._judge_heard()
            self._record()

    @property
    def unsent(self) -> list[Delivery]:
        """What was read ahead and had not gone when `carry` failed."""
        return [each for each in self._unsent if each.delivery_id not in self._under_way]

    @property
    def unanswered(self) -> list[Delivery]:
        """What was under way when the peer fell silent; nobody knows whether it arrived."""
        return [parcel.delivery for parcel in self._under_way.values()]

    def give_up(self, error: DeliveryError) -> None:
        """Record that what was under way was not answered, so that it is tried again."""
        for delivery in self.unanswered:
            self._note(self._postpone(delivery, str(error), error.status))
        self._under_way.clear()
        self._record()

    def _read_ahead(self, deliveries: Iterable[Delivery]) -> Generator[_File, None, None]:
        """Yield each delivery with its file; those that come next are checked meanwhile."""
        rest = iter(deliveries)
        ahead: deque[Callable[[], list[_File]]] = deque()
        most, depth, began = 1, READ_AHEAD, time.monotonic()
        with ThreadPoolExecutor(1, thread_name_prefix="courier") as helper:
            while True:
                while len(ahead) <= depth and (part := self._read_part(islice(rest, most))):
                    is_handed_on = _is_worth_a_thread(part)
                    depth = READ_AHEAD if is_handed_on else 0
                    ahead.append(
                        helper.submit(_check_all, part).result
                        if is_handed_on
                        else partial(_check_all, part)
                    )
                if not ahead:
                    return
                yield from ahead.popleft()()
                began, before = time.monotonic(), began
                is_fast = began < before + PART_SECONDS
                most = min(2 * most, MOST_IN_PART) if is_fast and depth else 1

    def _read_part(self, deliveries: Iterable[Delivery]) -> list[_File]:
        """Read the files of a part, not in the thread beside.

        Each system call would contend for Python's lock there.
        """
        part: list[_File] = []
        size = 0
        for delivery in deliveries:
            self._unsent.append(delivery)
            file = self._read(delivery.instance)
            part.append((delivery, file))
            size += len(file) if isinstance(file, bytes) else 0
            if size >= PART_BYTES:
                break
        return part

    def _read(self, instance: DerivedInstance) -> bytes | _Unreadable:
        try:
            return self._store.read(instance.path)
        except StorageError as error:
            return _Unreadable(reason=str(error), may_pass=True)

    def _pack(self, delivery: Delivery, file: bytes | _Unreadable) -> _Parcel | None:
        """Choose the context of an instance; None when it cannot be sent, which is noted.

        The bytes of the file go out as they are. A peer that takes no Explicit VR gets the same
        values in Implicit VR, the default that every peer takes (PS3.5 section 10.1), and the
        attempt says so. Nothing is decompressed.
        """
        instance = delivery.instance
        if isinstance(file, _Unreadable):
            judge = self._postpone if file.may_pass else self._park
            self._note(judge(delivery, file.reason))
            return None
        meta = decode_file_meta(file)
        kind = (instance.sop_class_uid, meta.transfer_syntax_uid)
        if kind not in self._proposed:
            self.strangers.add(kind)
            return None
        context = self._association.find_context(*kind)
        if context is not None:
            start = 0 if self._association.takes_files else meta.data_set_offset
            data_set = memoryview(file)[start:]
            return _Parcel(delivery=delivery, context=context, data_set=data_set, note=None)
        if meta.transfer_syntax_uid == EXPLICIT_VR_LITTLE_ENDIAN:
            context = self._association.find_context(
                instance.sop_class_uid, IMPLICIT_VR_LITTLE_ENDIAN
            )
        if context is None:
            reason = f"the peer does not accept its SOP class in {meta.transfer_syntax_uid}"
            self._note(self._park(delivery, reason))
            return None
        return _Parcel(
            delivery=delivery, context=context, data_set=encode_implicit(file), note=REENCODED
        )

    def _announce(self, delivery: Delivery) -> None:
        """Record that a job begins to go over this association (PS3.15 section A.5.3.3)."""
        if delivery.plan_id not in self._begun:
            self._ledger.begin_sending(delivery.plan_id, delivery.peer)
            self._begun.add(delivery.plan_id)

    def _send(self, parcel: _Parcel) -> None:
        delivery_id, instance = parcel.delivery.delivery_id, parcel.delivery.instance
        self._under_way[delivery_id] = parcel
        message_id = self._association.begin_store(
            parcel.context, instance.sop_class_uid, instance.sop_instance_uid, parcel.data_set
        )
        self._asked[message_id] = delivery_id

    def _hear(self) -> None:
        """Wait for one answer, to whichever instance."""
        message_id, outcome = self._association.read_outcome()
        self._heard.append((self._under_way.pop(self._asked.pop(message_id)), outcome))
        self.answered += 1

    def _judge_heard(self) -> None:
        for parcel, outcome in self._heard:
            self.reencoded += parcel.note is not None
            self._note(self._judge(parcel, outcome))
        self._heard.clear()

    def _note(self, attempt: Attempt) -> None:
        if not self._attempts:
            self._record_at = time.monotonic() + RECORD_SECONDS
        self._attempts.append(attempt)

    def _record(self) -> None:
        attempts, self._attempts = self._attempts, []
        if not attempts:
            return
        taken = sum(attempt.state in TAKEN for attempt in attempts)
        if taken:
            reach("delivery.sent")
        self._ledger.record_attempts(attempts)
        self.taken += taken

    def _judge(self, parcel: _Parcel, outcome: Outcome) -> Attempt:
        reason = "; ".join(filter(None, (outcome.reason, parcel.note))) or None
        if outcome.state is DeliveryState.PENDING:
            return self._postpone(parcel.delivery, reason, outcome.status)
        if outcome.state is DeliveryState.PARKED:
            return self._park(parcel.delivery, reason, outcome.status)
        return Attempt(
            delivery_id=parcel.delivery.delivery_id,
            state=outcome.state,
            status=outcome.status,
            reason=reason,
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

    def _postpone(
        self, delivery: Delivery, reason: str | None, status: int | None = None
    ) -> Attempt:
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


def find_contexts(kinds: Iterable[Kind]) -> tuple[list[Kind], frozenset[Kind]]:
    """Return the contexts to propose for instances of `kinds`, and the kinds that they are for.

    Each kind has a context of its own, and one in Explicit VR another in Implicit, so that a peer
    may take both. What an association has no room for is left for the next.
    """
    contexts: dict[Kind, None] = {}
    served = set()
    for sop_class, syntax in sorted(kinds):
        wanted = {(sop_class, syntax): None}
        if syntax == EXPLICIT_VR_LITTLE_ENDIAN:
            wanted[sop_class, IMPLICIT_VR_LITTLE_ENDIAN] = None
        if len(contexts | wanted) > MOST_CONTEXTS:
            break
        contexts |= wanted
        served.add((sop_class, syntax))
    return list(contexts), frozenset(served)


def encode_implicit(file: bytes) -> bytes:
    """Return the data set of a file in Implicit VR Little Endian, all values as they are."""
    bare = Dataset()  # without preamble and file meta information, which do not go over the wire
    bare.update(dcmread(BytesIO(file)))
    out = BytesIO()
    dcmwrite(out, bare, implicit_vr=True, little_endian=True)
    return out.getvalue()
