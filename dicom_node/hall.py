"""Where connections are served: one thread for all that come whole, one each for what takes time.

Step 1 of the walk, between the listening socket (`receiver`) and one connection (`acceptor`). The
interpreter runs one thread at a time, and sixteen that each serve a peer wrestle for it at every
system call. So one thread waits for all associations and answers what lies there whole. What would
make it wait goes to other threads: handshakes, a peer that is slow or odd, a sync of the disk.
"""

import contextlib
import functools
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from dicom_node.acceptor import Acceptor, Door, Doorkeeper
from dicom_node.complaints import Complains
from dicom_node.hands import Hands
from dicom_node.services import Progress
from dicom_node.session import Session
from dicom_node.spool import Spool

_LOOK_SECONDS = 0.5
"""So often all associations are looked at: who is silent, who is slow, is there an end."""


class Hall:
    """Serves the connections that it is given, until it is told to stop."""

    def __init__(
        self,
        door: Door,
        spool: Spool,
        admission: Doorkeeper,
        complaints: Complains,
        beat_seconds: float,
    ) -> None:
        """Describe it: every `beat_seconds` the ledger hears which associations deliver."""
        self._admission = admission
        self._complaints = complaints
        self._beat_seconds = beat_seconds
        self._stopping = threading.Event()
        self._acceptor = Acceptor(door, spool, admission, complaints, self._stopping.is_set)
        self._hands = Hands("connection")
        self._round = _Round(self._hands, self._serve, self._stopping.is_set)

    def start(self) -> None:
        """Begin to serve, and to give signs of life."""
        self._round.start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def take(self, sock: socket.socket, host: str) -> None:
        """Serve a connection that was counted in; it is closed and counted out at its end."""
        try:
            self._hands.do(functools.partial(self._admit, sock, host))
        except RuntimeError:
            self._complaints.note("no_thread", who=host)
            self._admission.leave(host)
            sock.close()

    def stop(self) -> None:
        """Let associations end where nothing is on its way; what is coming in comes in."""
        self._stopping.set()
        self._round.wake()

    def _admit(self, sock: socket.socket, host: str) -> None:
        session: Session | None = None
        try:
            session = self._acceptor.admit(sock, host)
        finally:
            if session is None:
                self._admission.leave(host)
        if session is not None and not self._round.take(session, host):
            self._serve(session, host)

    def _serve(self, session: Session, host: str) -> None:
        """Serve an association on this thread, until it can go back to the others or is over."""
        is_over = True
        try:
            while session.answer_next():
                if self._round.take(session, host):
                    is_over = False
                    return
        finally:
            if is_over:
                self._admission.leave(host)

    def _beat(self) -> None:
        while not self._stopping.wait(self._beat_seconds):
            self._acceptor.beat()


class _Round:
    """The thread that answers whatever lies there whole, of all associations."""

    def __init__(
        self,
        hands: Hands,
        serve: Callable[[Session, str], None],
        is_stopping: Callable[[], bool],
    ) -> None:
        """Describe it: what takes time is done by `hands`, with `serve`."""
        self._hands = hands
        self._serve = serve
        self._is_stopping = is_stopping
        self._sessions: dict[int, tuple[Session, str]] = {}
        self._muted: set[int] = set()  # their peers went on before they had their answer
        self._coming: deque[tuple[int, Session, str]] = deque()
        self._ready: deque[int] = deque()
        self._lock = threading.Lock()
        self._is_open = False

    def start(self) -> None:
        """Begin."""
        self._poll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._bell, select.EPOLLIN)
        self._is_open = True
        threading.Thread(target=self._run, name="round", daemon=True).start()

    def take(self, session: Session, host: str) -> bool:
        """Serve an association from now on, or say that it needs a thread of its own."""
        descriptor = session.descriptor
        if descriptor is None:
            return False
        with self._lock:
            if not self._is_open or self._is_stopping():
                return False
            self._coming.append((descriptor, session, host))
            self._ring()
        return True

    def wake(self) -> None:
        """Look at all of them now."""
        with self._lock:
            if self._is_open:
                self._ring()

    def _ring(self) -> None:
        """Wake the thread; if that fails, it looks by itself within a moment."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._bell, 1)

    def _run(self) -> None:
        looked = time.monotonic()
        while True:
            events = self._poll.poll(_LOOK_SECONDS)
            now = time.monotonic()
            for descriptor, _ in events:
                if descriptor == self._bell:
                    with contextlib.suppress(OSError):
                        os.eventfd_read(self._bell)
                    self._serve_who_came(now)
                elif descriptor in self._sessions:
                    self._answer(descriptor, now, read=True)
            if self._is_stopping() or now - looked >= _LOOK_SECONDS:
                looked = now
                self._serve_who_came(now)
                self._look_at_all(now)
                if self._is_stopping() and self._close():
                    return

    def _close(self) -> bool:
        """End, if nobody is left."""
        with self._lock:
            if self._sessions or self._coming:
                return False
            self._is_open = False
            self._poll.close()
            os.close(self._bell)
            return True

    def _serve_who_came(self, now: float) -> None:
        while self._coming:
            descriptor, session, host = self._coming.popleft()
            self._sessions[descriptor] = (session, host)
            self._poll.register(descriptor, select.EPOLLIN)
            if session.has_begun:
                self._answer(descriptor, now, read=False)
        while self._ready:
            descriptor = self._ready.popleft()
            if descriptor in self._sessions:
                self._answer(descriptor, now, read=False)

    def _answer(self, descriptor: int, now: float, *, read: bool) -> None:
        """Answer what lies there; give the association away if that takes time."""
        session, _ = self._sessions[descriptor]
        if session.is_busy:
            self._mute(descriptor)
            if session.is_busy:  # whoever is done with it now will ring
                return
        self._unmute(descriptor)
        later = None if len(self._sessions) == 1 else functools.partial(self._do_later, descriptor)
        if session.answer_now(now, later, read=read) is Progress.SLOWLY:
            self._give_away(descriptor)

    def _do_later(self, descriptor: int, work: Callable[[], None]) -> None:
        session, _ = self._sessions[descriptor]

        def do() -> None:
            work()
            if descriptor in self._muted or session.has_begun:
                self._ready.append(descriptor)
                self.wake()

        try:
            self._hands.do(do)
        except RuntimeError:  # no thread is to be had: all wait for this one
            do()

    def _mute(self, descriptor: int) -> None:
        if descriptor not in self._muted:
            self._muted.add(descriptor)
            self._poll.unregister(descriptor)

    def _unmute(self, descriptor: int) -> None:
        if descriptor in self._muted:
            self._muted.discard(descriptor)
            self._poll.register(descriptor, select.EPOLLIN)

    def _give_away(self, descriptor: int) -> None:
        """Let an association have a thread of its own, until it comes back; once."""
        if descriptor not in self._sessions:
            return
        self._unmute(descriptor)
        self._poll.unregister(descriptor)
        session, host = self._sessions.pop(descriptor)
        work = functools.partial(self._serve, session, host)
        try:
            self._hands.do(work)
        except RuntimeError:  # no thread is to be had: all wait for this one
            work()

    def _look_at_all(self, now: float) -> None:
        for descriptor, (session, _) in list(self._sessions.items()):
            if session.is_busy:
                continue
            is_slow = session.has_begun and now - session.begun >= _LOOK_SECONDS
            is_last = self._is_stopping()
            if is_last:  # what has come has come, and who has gone has gone
                self._answer(descriptor, now, read=True)
            if is_slow or session.is_silent(now) or (is_last and not session.is_busy):
                self._give_away(descriptor)
