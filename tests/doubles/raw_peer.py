"""A peer that says exactly the bytes it is told to, good or bad, on a real socket."""

import socket
import struct
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from dicom_node import command
from dicom_node.upper_layer import (
    APPLICATION_CONTEXT,
    AssociationRequest,
    ProposedContext,
    decode_accept,
    encode_pdu,
    encode_request,
)

VERIFICATION = "1.2.840.10008.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

REJECT, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 3, 4, 5, 6, 7
Proposal = tuple[str, Sequence[str]]


def associate_request(
    contexts: Sequence[Proposal] = ((VERIFICATION, (IMPLICIT,)), (MR, (EXPLICIT, IMPLICIT))),
    *,
    called: str = "NODE",
    calling: str = "SCANNER",
    application_context: str = APPLICATION_CONTEXT,
    protocol_version: int = 1,
    maximum_length: int = 16_384,
) -> bytes:
    """Return an A-ASSOCIATE-RQ; context ids are 1, 3, 5 … in the order given."""
    return encode_request(
        AssociationRequest(
            protocol_version=protocol_version,
            called_ae_title=called,
            calling_ae_title=calling,
            application_context=application_context,
            contexts=tuple(
                ProposedContext(
                    context_id=2 * index + 1,
                    abstract_syntax=abstract_syntax,
                    transfer_syntaxes=tuple(transfer_syntaxes),
                )
                for index, (abstract_syntax, transfer_syntaxes) in enumerate(contexts)
            ),
            maximum_length=maximum_length,
        )
    )


def pdv(context_id: int, payload: bytes, *, is_command: bool, is_last: bool = True) -> bytes:
    """Return one presentation data value."""
    control = (1 if is_command else 0) | (2 if is_last else 0)
    return struct.pack(">IBB", len(payload) + 2, context_id, control) + payload


def p_data(*pdvs: bytes) -> bytes:
    """Return a P-DATA PDU."""
    return encode_pdu(P_DATA, b"".join(pdvs))


def echo_command(message_id: int = 1) -> bytes:
    """Return the command set of a C-ECHO."""
    return command.encode_command(
        {
            command.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            command.COMMAND_FIELD: command.C_ECHO_RQ,
            command.MESSAGE_ID: message_id,
            command.COMMAND_DATA_SET_TYPE: command.NO_DATA_SET,
        }
    )


def store_command(
    sop_instance_uid: str, sop_class_uid: str = MR, *, message_id: int = 1, has_data: bool = True
) -> bytes:
    """Return the command set of a C-STORE."""
    return command.encode_command(
        {
            command.AFFECTED_SOP_CLASS_UID: sop_class_uid,
            command.COMMAND_FIELD: command.C_STORE_RQ,
            command.MESSAGE_ID: message_id,
            command.PRIORITY: 0,
            command.COMMAND_DATA_SET_TYPE: (
                command.A_DATA_SET if has_data else command.NO_DATA_SET
            ),
            command.AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
        }
    )


PATIENT = "CANARY^PATIENT"


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """Return an Explicit VR element with a short length."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set(
    sop_instance_uid: str, pixel: bytes = b"\1\2", more: bytes = b"", **uids: str
) -> bytes:
    """Return an Explicit VR data set that says a patient's name; `more` comes before the pixels."""
    return b"".join(
        (
            element(0x0008, 0x0016, b"UI", uids.get("sop_class", MR).encode()),
            element(0x0008, 0x0018, b"UI", sop_instance_uid.encode()),
            element(0x0010, 0x0010, b"PN", PATIENT.encode()),
            element(0x0020, 0x000D, b"UI", uids.get("study", "1.2.3").encode()),
            element(0x0020, 0x000E, b"UI", uids.get("series", "1.2.3.4").encode()),
            more,
            struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(pixel)) + pixel,
        )
    )


class RawPeer:
    """One connection; a context manager.

    Attributes:
        heard: every byte that came.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, source: str | None = None) -> None:
        self.socket = socket.create_connection(
            (host, port), timeout=15, source_address=(source, 0) if source else None
        )
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Write the bytes as they are."""
        self.socket.sendall(data)

    def read_pdu(self) -> tuple[int, bytes] | None:
        """Return type and body of the next PDU, or None when the connection is closed."""
        header = self._read(6)
        if header is None:
            return None
        body = self._read(int.from_bytes(header[2:6], "big"))
        return None if body is None else (header[0], body)

    def read_abort(self) -> tuple[int, int] | None:
        """Return source and reason of the A-ABORT that comes next; None when it is none."""
        pdu = self.read_pdu()
        return (pdu[1][2], pdu[1][3]) if pdu is not None and pdu[0] == ABORT else None

    def read_rejection(self) -> tuple[int, int, int] | None:
        """Return result, source and reason of the A-ASSOCIATE-RJ that comes next."""
        pdu = self.read_pdu()
        return tuple(pdu[1][1:4]) if pdu is not None and pdu[0] == REJECT else None  # type: ignore[return-value]

    def associate(self, request: bytes | None = None) -> list[int]:
        """Ask for an association and return the result of each context."""
        self.send(request or associate_request())
        pdu = self.read_pdu()
        assert pdu is not None
        assert pdu[0] == 2, pdu
        return [each.result for each in decode_accept(pdu[1]).contexts]

    def read_response(self) -> dict[int, int | bytes]:
        """Return the command set of the next message."""
        pdu = self.read_pdu()
        assert pdu is not None
        assert pdu[0] == P_DATA, pdu
        return command.decode_command(pdu[1][6:])

    def echo(self, context_id: int = 1) -> int:
        """Send a C-ECHO and return its status."""
        self.send(p_data(pdv(context_id, echo_command(), is_command=True)))
        return command.number(self.read_response(), command.STATUS)

    def store(
        self,
        sop_instance_uid: str,
        data_set: bytes,
        *,
        sop_class_uid: str = MR,
        context_id: int = 3,
        fragment: int = 16_000,
    ) -> int:
        """Send a C-STORE and return its status."""
        request = store_command(sop_instance_uid, sop_class_uid)
        self.send(p_data(pdv(context_id, request, is_command=True)))
        for start in range(0, max(len(data_set), 1), fragment):
            payload = data_set[start : start + fragment]
            is_last = start + fragment >= len(data_set)
            self.send(p_data(pdv(context_id, payload, is_command=False, is_last=is_last)))
        return command.number(self.read_response(), command.STATUS)

    def seconds_until_closed(self) -> float:
        """Return how long it takes the other side to close, whatever it says before."""
        began = time.monotonic()
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionError:
            pass
        return time.monotonic() - began

    def _read(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except ConnectionError:
                return None
            if not more:
                return None
            data += more
        self.heard += data
        return data
