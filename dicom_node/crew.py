"""The processes that serve connections for the receiver, and what they say to one another.

One interpreter runs one thread at a time, so that one process cannot use a second core. The
receiver listens, counts who is in, and writes the ledger; each connection is handed to one of these
processes, which talks to the peer and stores what comes. They are forked before the receiver opens
anything or starts a thread, and end with it. If one of them dies, the receiver does too: its node
starts it again, and `spool.rebuild` finds what had no row yet.

A message is one JSON array on a socket that keeps them apart; a connection travels beside its own.
"""

import contextlib
import gc
import itertools
import json
import logging
import operator
import os
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from dicom_node.admission import Admission, Entry
from dicom_node.complaints import Complaints
from dicom_node.domain import Instance, NoticeState
from dicom_node.hall import Hall
from dicom_node.lifeline import ORPHANED
from dicom_node.recorder import Outcome, Recorder, Rows
from dicom_node.records import Notice, Receipt, Report

_LONGEST = 65_536
_GATHER_SECONDS = 0.05
"""Rows that nobody waits for go to the receiver together: each message wakes it up."""
_MOST_ROWS = 64  # of one message; the longest row has some 600 bytes
_DIED = 1
_FIRST_DESCRIPTOR = 3
_PIECE = 32_768
"""Characters of a notice that go at a time: it may be longer than a message."""

_INSTANCE = (
    *("sop_instance_uid", "sop_class_uid", "series_instance_uid", "study_instance_uid"),
    *("transfer_syntax_uid", "sha256", "path"),
)
_read_instance = operator.attrgetter(*_INSTANCE)
_Row = tuple[object, ...]
"""Peer, association and what `_INSTANCE` names."""

_logger = logging.getLogger(__name__)


class Line(Rows):
    """A serving process's end: the receiver's recorder, counter and log, from afar."""

    def __init__(self, sock: socket.socket, *, waited_for: bool) -> None:
        super().__init__(waited_for=waited_for)
        self._socket = sock
        self._tickets = itertools.count()
        self._asked: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._rows: list[_Row] = []
        self._has_rows = threading.Event()

    def serve(self, hall: Hall) -> NoReturn:
        """Give the connections that come to `hall`, until the receiver has gone."""
        hall.start()
        threading.Thread(target=self._gather, name="rows", daemon=True).start()
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _LONGEST, 1)
            if not data:
                os._exit(ORPHANED)
            match json.loads(data):
                case ["serve", host] if not descriptors:
                    self.note("no_descriptor", who=host)
                    self.leave(host)
                case ["serve", host]:
                    hall.take(socket.socket(fileno=descriptors[0]), host)
                case ["answer", ticket, value]:
                    self._asked.pop(ticket).set_result(value)
                case ["obstacle", status]:
                    self.hear_of(status)
                case ["stop"]:
                    hall.stop()

    def submit(self, receipt: Receipt, outcome: Outcome | None) -> None:
        """See `Rows`."""
        row = (receipt.peer, receipt.association_id, *_read_instance(receipt.instance))
        if outcome is not None:
            self._say("record", self._keep(outcome), [row])
            return
        with self._lock:
            self._rows.append(row)
            if len(self._rows) == _MOST_ROWS:
                self._send_rows()
            elif len(self._rows) == 1:
                self._has_rows.set()

    def submit_end(self, association_id: str, outcome: Outcome) -> None:
        """See `Rows`."""
        with self._lock:
            self._send_rows()
        self._say("end", self._keep(outcome), association_id)

    def submit_report(self, peer: str, report: Report, outcome: Outcome) -> None:
        """See `Rows`."""
        lost = list(report.lost.items())
        self._say("report", self._keep(outcome), peer, report.transaction_uid, report.kept, lost)

    def submit_notice(self, peer: str, notice: Notice, outcome: Outcome) -> None:
        """See `Rows`."""
        ticket, text = self._keep(outcome), json.dumps(asdict(notice))
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE]
            self._say("notice", ticket, peer, piece, start + _PIECE >= len(text))

    def keep_alive(self, association_ids: tuple[str, ...]) -> None:
        """See `Rows`."""
        self._say("alive", association_ids)

    def associate(self, address: str, peer: str) -> Entry:
        """See `Admission.associate`."""
        answer = Future[str]()
        self._say("associate", self._keep(answer), address, peer)
        return Entry(answer.result())

    def part(self, address: str, peer: str) -> None:
        """See `Admission.part`."""
        self._say("part", address, peer)

    def leave(self, address: str) -> None:
        """See `Admission.leave`."""
        self._say("leave", address)

    def note(self, event: str, *, who: str, **numbers: int | str) -> None:
        """See `Complaints.note`."""
        self._say("note", event, who, numbers)

    def _gather(self) -> None:
        """Send rows soon after the first of them came."""
        while self._has_rows.wait():
            time.sleep(_GATHER_SECONDS)
            with self._lock:
                self._send_rows()

    def _send_rows(self) -> None:
        """Send the rows that were gathered; under the lock, so that an end comes after them."""
        self._has_rows.clear()
        if self._rows:
            rows, self._rows = self._rows, []
            self._say("record", None, rows)

    def _keep(self, future: Future[Any] | None) -> int | None:
        """Return the ticket under which the answer will come."""
        if future is None:
            return None
        ticket = next(self._tickets)
        self._asked[ticket] = future
        return ticket

    def _say(self, *message: object) -> None:
        self._socket.send(_encode(*message))


@dataclass(slots=True, eq=False)
class _Worker:
    """The receiver's end of one process, and how many connections it took and has left.

    Two counters, so that each is written by one thread only.
    """

    pid: int
    socket: socket.socket
    taken: int = 0
    left: int = 0


class Crew:
    """The serving processes, as the receiver sees them; made by `fork_crew`."""

    def __init__(self, workers: Sequence[_Worker]) -> None:
        self._workers = workers
        self._is_ending = False

    def start(self, admission: Admission, complaints: Complaints, recorder: Recorder) -> None:
        """Do from now on what they ask for, with these."""
        for worker in self._workers:
            desk = _Desk(worker, admission, complaints, recorder)
            threading.Thread(
                target=self._hear, args=(worker, desk), name="crew", daemon=True
            ).start()

    def take(self, sock: socket.socket, host: str) -> None:
        """Hand a connection that was counted in to the process that serves the fewest."""
        worker = min(self._workers, key=lambda each: each.taken - each.left)
        socket.send_fds(worker.socket, [_encode("serve", host)], [sock.fileno()])
        worker.taken += 1
        sock.close()

    def tell(self, obstacle: int | None) -> None:
        """See `Rows.hear_of`."""
        self._tell_all("obstacle", obstacle)

    def stop(self) -> None:
        """See `Hall.stop`."""
        self._tell_all("stop")

    def end(self) -> None:
        """End the processes, whatever they are at."""
        self._is_ending = True
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.socket.shutdown(socket.SHUT_RDWR)
        for worker in self._workers:
            os.waitpid(worker.pid, 0)
            worker.socket.close()

    def _tell_all(self, *message: object) -> None:
        for worker in self._workers:
            worker.socket.send(_encode(*message))

    def _hear(self, worker: _Worker, desk: "_Desk") -> None:
        """Do what one process asks for, message after message, until it ends."""
        with contextlib.suppress(ConnectionError):
            while data := worker.socket.recv(_LONGEST):
                desk.answer(json.loads(data))
        if not self._is_ending:
            _logger.critical("receiver.worker_died")
            os._exit(_DIED)


class _Desk:
    """Does what one process asks for."""

    def __init__(
        self, worker: _Worker, admission: Admission, complaints: Complaints, recorder: Recorder
    ) -> None:
        self._worker = worker
        self._admission = admission
        self._complaints = complaints
        self._recorder = recorder
        self._pieces: defaultdict[int, list[str]] = defaultdict(list)

    def answer(self, message: list[Any]) -> None:
        match message:
            case ["record", ticket, rows]:
                self._record(None if ticket is None else self._promise(ticket), rows)
            case ["end", ticket, association_id]:
                self._recorder.submit_end(association_id, self._promise(ticket))
            case ["report", ticket, peer, transaction_uid, kept, lost]:
                report = Report(transaction_uid=transaction_uid, kept=tuple(kept), lost=dict(lost))
                self._recorder.submit_report(peer, report, self._promise(ticket))
            case ["notice", ticket, peer, piece, is_last]:
                self._take_piece(ticket, peer, piece, is_last=is_last)
            case ["alive", association_ids]:
                self._recorder.keep_alive(tuple(association_ids))
            case ["associate", ticket, address, peer]:
                self._reply(ticket, self._admission.associate(address, peer))
            case ["part", address, peer]:
                self._admission.part(address, peer)
            case ["leave", address]:
                self._admission.leave(address)
                self._worker.left += 1
            case ["note", event, who, numbers]:
                self._complaints.note(event, who=who, **numbers)

    def _record(self, outcome: Outcome | None, rows: list[Any]) -> None:
        for peer, association_id, *row in rows:
            instance = Instance(**dict(zip(_INSTANCE, row, strict=True)))
            receipt = Receipt(instance=instance, peer=peer, association_id=association_id)
            self._recorder.submit(receipt, outcome)

    def _take_piece(self, ticket: int, peer: str, piece: str, *, is_last: bool) -> None:
        self._pieces[ticket].append(piece)
        if is_last:
            notice = _read_notice("".join(self._pieces.pop(ticket)))
            self._recorder.submit_notice(peer, notice, self._promise(ticket))

    def _promise(self, ticket: int) -> Outcome:
        """Return what, when it is known, is told to the process."""
        outcome = Outcome()
        outcome.add_done_callback(lambda done: self._reply(ticket, done.result()))
        return outcome

    def _reply(self, ticket: int, value: object) -> None:
        with contextlib.suppress(OSError):  # it has died, which the thread that hears it notices
            self._worker.socket.send(_encode("answer", ticket, value))


@contextlib.contextmanager
def fork_crew(
    count: int, build_hall: Callable[[Line], Hall], *, waited_for: bool, keep: Sequence[int] = ()
) -> Iterator[Crew]:
    """Give so many serving processes for the length of a `with` block.

    Nothing may have started a thread before.

    Args:
        count: of processes.
        build_hall: called in each of them.
        waited_for: whether a row is waited for before an instance is acknowledged.
        keep: file descriptors that stay open in them; all others are closed.
    """
    gc.freeze()  # so that collecting garbage does not copy every page that is shared
    workers: list[_Worker] = []
    for _ in range(count):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            _become_worker(theirs, build_hall, waited_for, keep)
        theirs.close()
        workers.append(_Worker(pid, ours))
    crew = Crew(workers)
    try:
        yield crew
    finally:
        crew.end()


def _read_notice(text: str) -> Notice:
    said = json.loads(text)
    state, instances = said["state"], said["instances"]
    return Notice(
        sop_instance_uid=said["sop_instance_uid"],
        studies=tuple(said["studies"]),
        state=None if state is None else NoticeState(state),
        instances=None if instances is None else tuple(instances),
        reason=said["reason"],
    )


def _become_worker(
    sock: socket.socket, build_hall: Callable[[Line], Hall], waited_for: bool, keep: Sequence[int]
) -> NoReturn:
    """Serve; nothing of the receiver's is left but its settings."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the receiver is told, and tells us
        kept = sorted({_FIRST_DESCRIPTOR - 1, sock.fileno(), *keep})
        for before, after in itertools.pairwise([*kept, os.sysconf("SC_OPEN_MAX")]):
            os.closerange(before + 1, after)
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor, not a file
            os.dup2(nothing.fileno(), 0)
        line = Line(sock, waited_for=waited_for)
        line.serve(build_hall(line))
    except BaseException:
        _logger.critical("receiver.worker_failed", exc_info=True)
        raise
    finally:
        os._exit(_DIED)


def _encode(*message: object) -> bytes:
    return json.dumps(message).encode()
