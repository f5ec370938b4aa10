"""A PACS that grants an asynchronous operations window and answers late, in another order, or dies.

pynetdicom can negotiate a window and not keep one, so the data phase is written out here; requests
are read and acceptances written by pynetdicom's codec, which is not our own.
"""

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, AsynchronousOperationsWindowNegotiation

from dicom_node import command
from dicom_node.upper_layer import encode_pdu
from doubles.raw_peer import RELEASE_RP, RELEASE_RQ, p_data, pdv

_QUIET_SECONDS = 0.3
"""Who waits for more requests than come gives up after so long and answers those that came."""


@dataclass(frozen=True)
class Request:
    """One C-STORE that came."""

    context_id: int
    message_id: int
    sop_instance_uid: str
    data_set: bytes


class WindowPacs:
    """Listens on loopback inside a `with` block.

    Attributes:
        received: SOP Instance UIDs in the order in which they came.
        answered: in the order in which they were answered.
        proposed: each association's contexts, as SOP class and transfer syntaxes.
        asked: the window that each association asked for; None asks for none.
        most_under_way: requests that were unanswered at a time.
    """

    ae_title = "PACS"

    def __init__(
        self,
        grant: int | None = None,
        *,
        answers: Callable[[str], int] = lambda _: 0x0000,
        takes: Callable[[str], bool] = lambda _: True,
        dies_at: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Describe it.

        Args:
            grant: the window that it grants, 0 any; None does not speak of one.
            answers: the status for each instance. As many as the window allows are awaited, and
                answered last first.
            takes: which transfer syntaxes it accepts.
            dies_at: on which instance it closes the connection without a word.
        """
        self.port = 0
        self.received: list[str] = []
        self.answered: list[str] = []
        self.data_sets: dict[str, bytes] = {}
        self.proposed: list[list[tuple[str, tuple[str, ...]]]] = []
        self.asked: list[int | None] = []
        self.most_under_way = 0
        self._grant = grant
        self._answers = answers
        self._takes = takes
        self._dies_at = dies_at
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(30)
            try:
                window = self._associate(sock)
                self._answer_all(sock, window)
            except ConnectionError:
                pass

    def _associate(self, sock: socket.socket) -> int:
        """Accept the association and return how many requests are awaited before an answer."""
        _, body = _read_pdu(sock)
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(body)
        request = pdu.to_primitive()
        proposed = request.presentation_context_definition_list
        items = [
            item
            for item in request.user_information
            if isinstance(item, AsynchronousOperationsWindowNegotiation)
        ]
        with self._lock:
            self.proposed.append(
                [
                    (str(each.abstract_syntax), tuple(map(str, each.transfer_syntax)))
                    for each in proposed
                ]
            )
            self.asked.append(items[0].maximum_number_operations_invoked if items else None)
        answer = A_ASSOCIATE()
        answer.application_context_name = request.application_context_name
        answer.calling_ae_title = request.calling_ae_title
        answer.called_ae_title = request.called_ae_title
        answer.result = 0
        for context in proposed:
            taken = [each for each in context.transfer_syntax if self._takes(str(each))]
            context.result = 0 if taken else 4
            context.transfer_syntax = taken[:1] or context.transfer_syntax[:1]
        answer.presentation_context_definition_results_list = proposed
        information = [
            each
            for each in request.user_information
            if not isinstance(each, AsynchronousOperationsWindowNegotiation)
        ]
        if self._grant is not None:
            window = AsynchronousOperationsWindowNegotiation()
            window.maximum_number_operations_invoked = self._grant
            window.maximum_number_operations_performed = 1
            information.append(window)
        answer.user_information = information
        accept = A_ASSOCIATE_AC()
        accept.from_primitive(answer)
        sock.sendall(accept.encode())
        return 1 if self._grant is None else self._grant or 8

    def _answer_all(self, sock: socket.socket, window: int) -> None:
        held: list[Request] = []
        buffer = _Buffer(sock)
        while True:
            request = buffer.read_request(_QUIET_SECONDS if held else 30.0)
            if isinstance(request, Request):
                held.append(request)
                with self._lock:
                    self.received.append(request.sop_instance_uid)
                    self.data_sets[request.sop_instance_uid] = request.data_set
                    self.most_under_way = max(self.most_under_way, len(held))
                if self._dies_at(request.sop_instance_uid):
                    return
            if len(held) >= window or request is None:
                for each in reversed(held):
                    sock.sendall(self._respond(each))
                held.clear()
            if request == RELEASE_RQ:
                sock.sendall(encode_pdu(RELEASE_RP, bytes(4)))
                return

    def _respond(self, request: Request) -> bytes:
        with self._lock:
            self.answered.append(request.sop_instance_uid)
        response = command.encode_command(
            {
                command.COMMAND_FIELD: command.C_STORE_RQ | command.RESPONSE,
                command.MESSAGE_ID_BEING_RESPONDED_TO: request.message_id,
                command.COMMAND_DATA_SET_TYPE: command.NO_DATA_SET,
                command.STATUS: self._answers(request.sop_instance_uid),
            }
        )
        return p_data(pdv(request.context_id, response, is_command=True))


class _Buffer:
    """Messages of one connection; what came of a PDU before a pause is kept."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._data = b""

    def read_request(self, seconds: float) -> Request | int | None:
        """Return the next C-STORE, RELEASE_RQ, or None when nothing came for so long."""
        parts = {True: b"", False: b""}
        self._socket.settimeout(seconds)
        while True:
            try:
                while len(self._data) < 6 or len(self._data) < 6 + self._length():
                    more = self._socket.recv(1 << 20)
                    if not more:
                        raise ConnectionResetError
                    self._data += more
            except TimeoutError:
                if parts[True]:
                    continue
                return None
            end = 6 + self._length()
            kind, body, self._data = self._data[0], self._data[6:end], self._data[end:]
            if kind != 4:
                if kind != RELEASE_RQ:
                    raise ConnectionAbortedError
                return RELEASE_RQ
            context_id, control = body[4], body[5]
            parts[bool(control & 1)] += body[6:]
            if control == 2:
                elements = command.decode_command(parts[True])
                return Request(
                    context_id=context_id,
                    message_id=command.number(elements, command.MESSAGE_ID),
                    sop_instance_uid=elements[command.AFFECTED_SOP_INSTANCE_UID].decode(),  # type: ignore[union-attr]
                    data_set=parts[False],
                )

    def _length(self) -> int:
        return int.from_bytes(self._data[2:6], "big")


def _read_pdu(sock: socket.socket) -> tuple[int, bytes]:
    """Return type and all bytes of the next PDU."""
    header = _read(sock, 6)
    return header[0], header + _read(sock, int.from_bytes(header[2:], "big"))


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return data
