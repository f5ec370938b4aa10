"""PDUs on one socket: deadlines, bounds before use, large reads, gathered writes.

A peer can hold the thread that reads for the times of `Limits` and this process for one PDU of
memory, never more. Who serves many with one thread never waits: `read_now`, `hasten`.

`association` makes messages of them. Source: PS3.8 sections 9.2 and 9.3.
"""

import contextlib
import mmap
import select
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from dicom_node import upper_layer
from dicom_node.upper_layer import ProtocolError

Piece = bytes | bytearray | memoryview
"""Bytes to be written, which are not copied on their way to the system."""

PDV_HEADER = struct.Struct(">IBB")  # length, context id, control
PDV_LENGTH_BYTES = 4
P_DATA_HEADER = struct.Struct(">BxIIBB")  # of a PDU and of the PDV with which it begins
IS_LAST = 0x02
MOST_PENDING = 256
"""Fragments taken apart before they are asked for: memory stays small."""

_HEADER_BYTES = 6
_FIXED = dict.fromkeys(
    (
        upper_layer.ASSOCIATE_RJ,
        upper_layer.RELEASE_RQ,
        upper_layer.RELEASE_RP,
        upper_layer.ABORT,
    ),
    upper_layer.FIXED_BODY,
)
_BUFFER_BYTES = 1_048_576  # most instances lie in it whole, and go to their file in one write
_FLUSH_BYTES = 1_048_576  # garbage read after an end, before the socket is closed all the same
_WAKE_SECONDS = 0.5  # how soon an idle association notices that the node is stopping
_TIMEVAL = struct.Struct("@ll")
_QUICK_ACKNOWLEDGE = getattr(socket, "TCP_QUICKACK", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a peer may take of this node: seconds and bytes.

    Attributes:
        pdu_seconds: from the first byte of a PDU to its last.
        message_seconds: between two PDUs of one message, and until a response comes.
        idle_seconds: between two messages.
        send_seconds: for a write, of 1 MiB at most, to be taken.
        flush_seconds: for a peer that does not close after the end of the association.
    """

    pdu_seconds: float = 10.0
    message_seconds: float = 30.0
    idle_seconds: float = 60.0
    send_seconds: float = 30.0
    flush_seconds: float = 5.0
    request_bytes: int = 65_536
    pdu_bytes: int = 131_072
    command_bytes: int = 16_384


class Wire:
    """PDUs on one socket, which it owns."""

    def __init__(
        self, sock: socket.socket, limits: Limits, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.limits = limits
        self._socket = sock
        self._stopping = stopping
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        self._room = _HEADER_BYTES + max(limits.pdu_bytes, limits.request_bytes)
        # A mapping and no bytearray: pages that are never read into cost no memory.
        self._buffer = mmap.mmap(-1, self._room + _BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._is_hasty = False
        self._unsent = memoryview(b"")
        self._set_timeouts()

    def read_pdu(
        self,
        longest: Mapping[int, int],
        *,
        wait: float,
        whole: float | None,
        stoppable: bool = False,
        keep: bool = False,
    ) -> tuple[int, memoryview]:
        """Read one PDU of a type in `longest`, which gives the most bytes its body may have.

        Args:
            longest: acceptable PDU types; any other ends the association at its first byte.
            wait: seconds until its first byte.
            whole: seconds from its first byte to its last; None: `wait` is the time for all of it.
            stoppable: give up waiting when the node is stopping.
            keep: what was read before stays valid; only while `has_room`.

        Returns:
            Its type and its body, which is valid until the next read that does not keep it.

        Raises:
            TimeoutError: not one byte came.
            ProtocolError: anything else than such a PDU came, or the node is stopping.
        """
        if not keep:
            self._make_room()
        pdu = self._take_pdu(longest)
        return self._await_pdu(longest, wait, whole, stoppable) if pdu is None else pdu

    def _await_pdu(
        self, longest: Mapping[int, int], wait: float, whole: float | None, stoppable: bool
    ) -> tuple[int, memoryview]:
        """Read until a whole PDU lies in the buffer."""
        deadline = time.monotonic() + wait
        while self._start == self._end:
            if stoppable and self._stopping():
                raise ProtocolError("stopping")
            if not self._receive() and time.monotonic() >= deadline:
                raise TimeoutError
        if whole is not None:
            deadline = time.monotonic() + whole
        while (pdu := self._take_pdu(longest)) is None:
            if time.monotonic() >= deadline:
                raise ProtocolError("pdu_timeout", None)
            self._receive()
        return pdu

    def _take_pdu(self, longest: Mapping[int, int]) -> tuple[int, memoryview] | None:
        """Return type and body of the PDU that begins the buffer; None when more must come."""
        buffer, start = self._buffer, self._start
        there = self._end - start
        if not there:
            return None
        pdu_type = buffer[start]
        if pdu_type not in longest:
            known = upper_layer.ASSOCIATE_RQ <= pdu_type <= upper_layer.ABORT
            raise ProtocolError(
                "unexpected_pdu" if known else "unrecognized_pdu",
                upper_layer.UNEXPECTED_PDU if known else upper_layer.UNRECOGNIZED_PDU,
            )
        if there < _HEADER_BYTES:
            return None
        length = int.from_bytes(buffer[start + 2 : start + 6], "big")
        if length > longest[pdu_type] or length != _FIXED.get(pdu_type, length):
            raise ProtocolError("pdu_length", upper_layer.INVALID_PARAMETER)
        if there < _HEADER_BYTES + length:
            return None
        first = start + _HEADER_BYTES
        self._start = first + length
        return pdu_type, self._view[first : first + length]

    @property
    def is_tls(self) -> bool:
        """Whether what is read was encrypted: then the socket does not tell what lies there."""
        return self._is_tls

    @property
    def descriptor(self) -> int:
        """The socket's, to wait for."""
        return self._socket.fileno()

    @property
    def is_empty(self) -> bool:
        """Whether nothing lies in the buffer that was not taken."""
        return self._start == self._end

    @property
    def has_unsent(self) -> bool:
        """Whether the peer has not taken all that was sent without waiting."""
        return bool(self._unsent)

    def hasten(self, *, is_hasty: bool) -> None:
        """Let `send` keep what the peer does not take at once, or send that now, and wait again."""
        self._is_hasty = is_hasty
        if not is_hasty and self._unsent:
            rest, self._unsent = self._unsent, memoryview(b"")
            self.send(rest)

    def read_now(self, *, keep: bool) -> None:
        """Read what there is, without waiting.

        Args:
            keep: what was read before stays valid; only while `is_full` says no.

        Raises:
            ProtocolError: the peer has gone.
        """
        if not keep:
            self._make_room()
        self._receive(socket.MSG_DONTWAIT)

    @property
    def is_full(self) -> bool:
        """Whether nothing more can be read beside what was read before."""
        return self._end == len(self._buffer)

    @property
    def is_odd(self) -> bool:
        """Whether what `take_fragments` has left is not just the beginning of a P-DATA PDU."""
        start, there = self._start, self._end - self._start
        if not there:
            return False
        if self._buffer[start] != upper_layer.P_DATA_TF:
            return True
        if there < _HEADER_BYTES:
            return False
        length = int.from_bytes(self._buffer[start + 2 : start + 6], "big")
        return length > self.limits.pdu_bytes or there >= _HEADER_BYTES + length

    @property
    def has_read(self) -> bool:
        """Whether the peer has said anything yet; asked before its first PDU was read."""
        return self._end > 0

    def take_fragments(
        self, contexts: Container[int], fragments: deque[tuple[int, int, memoryview]]
    ) -> bool:
        """Take P-DATA PDUs that lie in the buffer whole, of one PDV each, as nearly all are.

        Puts context id, control byte and payload of each into `fragments`, up to the end of a data
        set, and says whether there was any. Whatever is not such a PDU stays where it is, for
        `read_pdu` to judge.
        """
        buffer, view, start, longest = self._buffer, self._view, self._start, self.limits.pdu_bytes
        while self._end - start >= P_DATA_HEADER.size and len(fragments) < MOST_PENDING:
            pdu_type, length, pdv_length, context_id, control = P_DATA_HEADER.unpack_from(
                buffer, start
            )
            end = start + _HEADER_BYTES + length
            if (
                pdu_type != upper_layer.P_DATA_TF
                or not PDV_HEADER.size <= length <= longest
                or pdv_length != length - PDV_LENGTH_BYTES
                or end > self._end
                or context_id not in contexts
            ):
                break
            fragments.append((context_id, control, view[start + P_DATA_HEADER.size : end]))
            start = end
            if control == IS_LAST:
                break
        found = start != self._start
        self._start = start
        return found

    def has_room(self) -> bool:
        """Say whether one more PDU fits beside those that were read."""
        return len(self._buffer) - self._start >= self._room

    def send(self, *pieces: Piece) -> None:
        """Write all bytes of `pieces`, in one system call where the system takes them at once.

        Raises:
            ProtocolError: the peer does not read, or has gone.
        """
        deadline = time.monotonic() + self.limits.send_seconds
        try:
            # OpenSSL has no gathering write; it copies what it encrypts anyway.
            rest = memoryview(b"".join(pieces)) if self._is_tls else self._send_gathered(pieces)
            if self._is_hasty:
                self._unsent = rest
                return
            while rest:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if self._is_tls:
                    self._socket.settimeout(left)
                rest = rest[self._socket.send(rest) :]
            if self._is_tls:
                self._socket.settimeout(_WAKE_SECONDS)
        except (TimeoutError, BlockingIOError):
            raise ProtocolError("send_timeout", None) from None
        except OSError:
            raise ProtocolError("connection_lost", None) from None

    def _send_gathered(self, pieces: Sequence[Piece]) -> memoryview:
        """Write `pieces` without joining them, and return what the system did not take."""
        if not self._is_hasty:
            sent = self._socket.sendmsg(pieces)
        else:
            try:
                sent = self._socket.sendmsg(pieces, (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
        if sent == sum(map(len, pieces)):
            return memoryview(b"")
        return memoryview(b"".join(pieces))[sent:]

    def has_input(self) -> bool:
        """Say whether the peer has sent something, or has gone, since the last read."""
        if self._start != self._end:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def finish(self, last_words: bytes = b"", *, flush_seconds: float | None = None) -> None:
        """Send `last_words`, let the peer close first (Sta13), then close.

        What still comes is thrown away unread, up to a bound: closing on unread bytes would reset
        the connection under the last words.
        """
        deadline = time.monotonic() + (
            self.limits.flush_seconds if flush_seconds is None else flush_seconds
        )
        try:
            if last_words:
                self.send(last_words)
            self._socket.shutdown(socket.SHUT_WR)
            flushed = 0
            while flushed < _FLUSH_BYTES and (left := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left)
                received = self._socket.recv_into(self._buffer)
                if not received:
                    break
                flushed += received
        except (ProtocolError, OSError):
            pass  # the peer has gone already, which is what this waits for
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket without a word."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _set_timeouts(self) -> None:
        """Bound how long one system call waits; the deadlines proper are kept by the callers.

        A socket with a timeout of Python's own polls before each call. The kernel's timeouts cost
        nothing, but OpenSSL takes them for a reason to go on, so that TLS has Python's.
        """
        if self._is_tls:
            self._socket.settimeout(_WAKE_SECONDS)
            return
        self._socket.settimeout(None)
        for option, seconds in (
            (socket.SO_RCVTIMEO, _WAKE_SECONDS),
            (socket.SO_SNDTIMEO, self.limits.send_seconds),
        ):
            whole = int(seconds)
            microseconds = int((seconds - whole) * 1_000_000)
            self._socket.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(whole, microseconds))

    def _make_room(self) -> None:
        """Let the next PDU begin where a whole one fits; what was read before is overwritten."""
        if self._start == self._end:
            self._start = self._end = 0
        elif not self.has_room():
            kept = self._end - self._start
            self._buffer.move(0, self._start, kept)
            self._start, self._end = 0, kept

    def _receive(self, flags: int = 0) -> bool:
        """Read what there is; say whether there was anything within a moment.

        The acknowledgement is asked for anew before each read: a sender with Nagle's algorithm
        on, which is every DCMTK as shipped, waits for it 40 ms per message otherwise.
        """
        try:
            if _QUICK_ACKNOWLEDGE is not None:
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACKNOWLEDGE, 1)
            received = self._socket.recv_into(self._view[self._end :], 0, flags)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError:
            raise ProtocolError("connection_lost", None) from None
        if not received:
            raise ProtocolError("connection_closed", None)
        self._end += received
        return True
