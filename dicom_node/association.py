"""One association, for both roles: messages in and messages out, release and abort.

One thread has it at a time: nothing runs beside it, so a response cannot be taken by somebody else,
as happens in pynetdicom 3.0.4's requestor, and an idle association costs nothing. Who has many of
them for one thread (`hall`) takes what lies there whole, and never waits: `read_now`.

`acceptor` accepts with it, `network` requests with it. Source: PS3.8 section 9.3.5 and annex E.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dicom_node import upper_layer
from dicom_node.upper_layer import ProtocolError
from dicom_node.wire import (
    IS_LAST,
    MOST_PENDING,
    P_DATA_HEADER,
    PDV_HEADER,
    PDV_LENGTH_BYTES,
    Piece,
    Wire,
)

ANNOUNCED_BYTES = 65_536
"""The longest P-DATA PDU that this node asks for; larger ones gain nothing (measured)."""

_PDV_OVERHEAD = 2  # context id and control header count in the length of a PDV (PS3.8 9.3.5.1)
_IS_COMMAND = 0x01
_WHOLE_COMMAND = _IS_COMMAND | IS_LAST
_MAXIMUM_PDVS = 4_096
_MAXIMUM_EMPTY_PDUS = 16
_SENT_BYTES = 131_072  # the longest PDU sent, also to a peer that takes any
_WRITE_BYTES = 1_048_576  # most messages are one write; each write has its deadline
_MOST_PIECES = 1_000  # of one write; systems take 1,024 (IOV_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One accepted presentation context."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str


class Association:
    """An established association: DIMSE messages, release and abort."""

    def __init__(self, wire: Wire, contexts: Iterable[Context], maximum_length: int) -> None:
        self.contexts = {context.context_id: context for context in contexts}
        self._wire = wire
        room = min(maximum_length or _SENT_BYTES, _SENT_BYTES) - PDV_HEADER.size
        self._room = room - room % 2  # fragments of even length (PS3.8 annex E.1)
        self._pending: deque[tuple[int, int, memoryview]] = deque()
        self._longest = {
            upper_layer.P_DATA_TF: wire.limits.pdu_bytes,
            upper_layer.RELEASE_RQ: upper_layer.FIXED_BODY,
            upper_layer.ABORT: upper_layer.FIXED_BODY,
        }

    @property
    def wire(self) -> Wire:
        """What it goes over."""
        return self._wire

    @property
    def has_begun(self) -> bool:
        """Whether a part of a message has been read that is not answered yet."""
        return bool(self._pending) or not self._wire.is_empty

    def read_now(self) -> None:
        """Read what has come, without waiting and beside the message that has begun.

        Raises:
            ProtocolError: the peer has gone.
        """
        self._wire.read_now(keep=bool(self._pending))

    def see_command(self) -> tuple[int, bytes] | None:
        """Return context id and command set of the next message if it is in one fragment."""
        self._wire.take_fragments(self.contexts, self._pending)
        if not self._pending or self._pending[0][1] != _WHOLE_COMMAND:
            return None
        context_id, _, payload = self._pending[0]
        return context_id, bytes(payload)

    def is_for_later(self) -> bool:
        """Say whether the rest of the message may be waited for; or it is for `read_command`."""
        is_full = self._wire.is_full or len(self._pending) >= MOST_PENDING
        is_odd = self._wire.is_odd or (self._pending and self._pending[0][1] != _WHOLE_COMMAND)
        return not (is_full or is_odd)

    def take_command(self) -> None:
        """Take the command set that was seen."""
        self._pending.popleft()

    def take_message(self, longest: int) -> list[memoryview] | None:
        """Take the command set that was seen with its data set, if all of it lies there.

        Args:
            longest: bytes that the data set may have.

        Returns:
            The fragments of the data set, which are valid until the next read; None: it is not
            whole, or `read_data_set` has something to say of it.
        """
        pending = self._pending
        if pending[-1][1] != IS_LAST:
            return None
        ids, controls, payloads = zip(*pending, strict=True)
        fragments = list(payloads[1:])
        if len({*ids}) > 1 or any(controls[1:-1]) or sum(map(len, fragments)) > longest:
            return None
        pending.clear()
        return fragments

    def read_command(self, wait: float) -> tuple[int, bytes] | None:
        """Read the command set of the next message.

        Args:
            wait: seconds until its first byte.

        Returns:
            Context id and command set, encoded; or None when the peer asked for the release.

        Raises:
            TimeoutError: nothing came.
            ProtocolError: the peer broke the rules, aborted or has gone.
        """
        command = b""
        fragments = 0
        fragment = self._next_fragment(wait, stoppable=True)
        if fragment is None:
            return None
        context_id = fragment[0]
        while True:
            if fragment is None or fragment[0] != context_id or not fragment[1] & _IS_COMMAND:
                raise ProtocolError("message_order")
            command += fragment[2]
            fragments += 1  # which may be empty, without end
            if max(len(command), fragments) > self._wire.limits.command_bytes:
                raise ProtocolError("command_length")
            if fragment[1] & IS_LAST:
                return context_id, bytes(command)
            fragment = self._next_fragment_in_message()

    def read_data_set(
        self, context_id: int, longest: int
    ) -> Iterator[tuple[list[memoryview], bool]]:
        """Yield the fragments of the data set that follows a command, about 1 MiB at a time.

        With them comes whether they are the last. They are valid until the next are asked for.

        Args:
            context_id: the command's.
            longest: bytes that it may have.

        Raises:
            ProtocolError: the peer broke the rules, aborted or has gone.
        """
        fragments: list[memoryview] = []
        is_last = False
        size = 0
        while not is_last:
            fragment = self._next_fragment_in_message(keep=bool(fragments))
            if fragment is None or fragment[0] != context_id or fragment[1] & _IS_COMMAND:
                raise ProtocolError("message_order")
            size += len(fragment[2])
            if size > longest:
                raise ProtocolError("instance_too_large")
            fragments.append(fragment[2])
            is_last = bool(fragment[1] & IS_LAST)
            if is_last or not (self._pending or self._wire.has_room()):
                yield fragments, is_last
                fragments = []

    def send(self, context_id: int, command: bytes, data_set: Piece | None = None) -> None:
        """Send one message, in as few writes as can be; the data set is not copied.

        Raises:
            ProtocolError: the peer does not read, or has gone.
        """
        if data_set is None and len(command) <= self._room:
            control = _IS_COMMAND | IS_LAST
            self._wire.send(_encode_header(len(command), context_id, control) + command)
            return
        pieces: list[Piece] = []
        size = 0
        for control, part in ((_IS_COMMAND, command), (0, data_set)):
            for header, fragment in self._fragments(context_id, control, part):
                pieces += (header, fragment)
                size += len(fragment)
                if size >= _WRITE_BYTES or len(pieces) >= _MOST_PIECES:
                    self._wire.send(*pieces)
                    pieces.clear()
                    size = 0
        if pieces:
            self._wire.send(*pieces)

    def has_input(self) -> bool:
        """Say whether the peer has said something, or has gone, since the last message."""
        return self._wire.has_input()

    def confirm_release(self) -> None:
        """Answer the peer's release request and close."""
        self._wire.finish(
            upper_layer.encode_pdu(upper_layer.RELEASE_RP, bytes(upper_layer.FIXED_BODY))
        )

    def release(self, seconds: float | None = None) -> None:
        """Ask for the release, wait for the confirmation and close, whatever the peer does.

        A peer that has asked for it already is given its confirmation, and not asked again.

        Args:
            seconds: for the confirmation; None: as long as a PDU may take.
        """
        seconds = self._wire.limits.pdu_seconds if seconds is None else seconds
        answers = {**self._longest, upper_layer.RELEASE_RP: upper_layer.FIXED_BODY}
        is_asked = False
        try:
            while True:
                if not is_asked and not self.has_input():
                    self._wire.send(
                        upper_layer.encode_pdu(
                            upper_layer.RELEASE_RQ, bytes(upper_layer.FIXED_BODY)
                        )
                    )
                    is_asked = True
                pdu_type, _ = self._wire.read_pdu(answers, wait=seconds, whole=seconds)
                if pdu_type == upper_layer.RELEASE_RQ:  # or both at once (PS3.8 9.2.3, AR-8)
                    self.confirm_release()
                if pdu_type != upper_layer.P_DATA_TF:
                    break
        except (ProtocolError, TimeoutError):
            pass  # every message was answered before; how the peer leaves changes nothing
        self._wire.close()

    def abort(self, source_and_reason: tuple[int, int] = upper_layer.BY_USER) -> None:
        """End the association now."""
        self._wire.finish(upper_layer.encode_abort(*source_and_reason))

    def _fragments(
        self, context_id: int, control: int, part: Piece | None
    ) -> Iterator[tuple[bytes, memoryview]]:
        """Yield header (of PDU and PDV) and payload of each P-DATA PDU of `part`."""
        if part is None:
            return
        payload = memoryview(part)
        room = self._room
        last = max(len(payload) - 1, 0) // room * room
        header = _encode_header(room, context_id, control)
        for start in range(0, last, room):
            yield header, payload[start : start + room]
        yield (
            _encode_header(len(payload) - last, context_id, control | IS_LAST),
            payload[last:],
        )

    def _next_fragment_in_message(
        self, *, keep: bool = False
    ) -> tuple[int, int, memoryview] | None:
        try:
            return self._next_fragment(self._wire.limits.message_seconds, keep=keep)
        except TimeoutError:
            raise ProtocolError("message_timeout") from None

    def _next_fragment(
        self, wait: float, *, stoppable: bool = False, keep: bool = False
    ) -> tuple[int, int, memoryview] | None:
        """Return context id, control byte and payload of the next PDV; None for a release."""
        empty = 0
        while not (self._pending or self._wire.take_fragments(self.contexts, self._pending)):
            pdu_type, body = self._wire.read_pdu(
                self._longest,
                wait=wait,
                whole=self._wire.limits.pdu_seconds,
                stoppable=stoppable,
                keep=keep,
            )
            if pdu_type == upper_layer.RELEASE_RQ:
                return None
            if pdu_type == upper_layer.ABORT:
                raise ProtocolError("peer_aborted", None)
            self._split(body)
            empty += 1
            if not self._pending and empty > _MAXIMUM_EMPTY_PDUS:
                raise ProtocolError("empty_pdus", upper_layer.INVALID_PARAMETER)
        return self._pending.popleft()

    def _split(self, body: memoryview) -> None:
        """Put the PDVs of one P-DATA PDU behind what is pending."""
        count = position = 0
        while position < len(body):
            if len(body) - position < PDV_HEADER.size:
                raise ProtocolError("pdv_length", upper_layer.INVALID_PARAMETER)
            length, context_id, control = PDV_HEADER.unpack_from(body, position)
            end = position + 4 + length
            if length < _PDV_OVERHEAD or end > len(body) or count == _MAXIMUM_PDVS:
                raise ProtocolError("pdv_length", upper_layer.INVALID_PARAMETER)
            if context_id not in self.contexts:
                raise ProtocolError("context_id")
            self._pending.append((context_id, control, body[position + PDV_HEADER.size : end]))
            position = end
            count += 1


def _encode_header(size: int, context_id: int, control: int) -> bytes:
    """Return what stands in front of a fragment that has a P-DATA PDU of its own."""
    length = size + _PDV_OVERHEAD
    return P_DATA_HEADER.pack(
        upper_layer.P_DATA_TF, length + PDV_LENGTH_BYTES, length, context_id, control
    )
