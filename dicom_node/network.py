"""The network: transfer syntaxes, addresses, and how to ask a peer for an association.

Both sides use it. A request here is one thread and one socket, so that no response can be taken by
anybody else (as in pynetdicom 3.0.4, whose own thread races its caller for it).
"""

import ipaddress
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dicom_node import command, upper_layer
from dicom_node.association import ANNOUNCED_BYTES, Association, Context
from dicom_node.errors import DeliveryError
from dicom_node.outcomes import Outcome, judge_status
from dicom_node.tls import ClientSide
from dicom_node.upper_layer import AssociationRequest, ProposedContext, ProtocolError
from dicom_node.wire import Limits, Piece, Wire

VERIFICATION = command.VERIFICATION
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
IMPLICIT_VR_LITTLE_ENDIAN = upper_layer.IMPLICIT_VR_LITTLE_ENDIAN
UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
LOSSLESS = (
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, first-order prediction
    "1.2.840.10008.1.2.4.57",  # JPEG Lossless, process 14
    "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.5",  # RLE Lossless
)
"""Compressed transfer syntaxes that the node can decode without loss. Deflated is never taken: a
small file of it may unpack to anything."""

SMALLEST_PDU = 1_024
"""A peer that takes only shorter P-DATA PDUs than this is broken or an attacker."""

MOST_CONTEXTS = 128
"""Presentation contexts that an association may have: the odd ids of a byte (PS3.8 9.3.2.2)."""

_PERMANENT = 1

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AssociationRejectedError(DeliveryError):
    """A peer said no to an association.

    Attributes:
        permanent: it says that it will say so again (its configuration does not know us).
    """

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message, retry=True)
        self.permanent = permanent


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a peer: its command set, and its data set where it has one."""

    context: Context
    elements: Mapping[int, int | bytes]
    data_set: bytes

    @property
    def is_explicit(self) -> bool:
        """Whether its data set is in Explicit VR."""
        return self.context.transfer_syntax != IMPLICIT_VR_LITTLE_ENDIAN

    def read_status(self, request: int, message_id: int) -> int:
        """Return the status of the response to a request with this command field and Message ID.

        Raises:
            DeliveryError: it is something else.
        """
        seen = (
            self.elements.get(command.COMMAND_FIELD),
            self.elements.get(command.MESSAGE_ID_BEING_RESPONDED_TO),
        )
        status = self.elements.get(command.STATUS)
        if seen != (request | command.RESPONSE, message_id) or not isinstance(status, int):
            raise DeliveryError("the peer answered something else", retry=True)
        return status


class Requestor:
    """An association that this node asked for; a context manager that releases it at the end.

    Attributes:
        takes_files: False: what is stored is a data set without its file meta information.
        window: how many requests may be under way at a time: as many as were asked for and the
            peer grants, else one.
    """

    takes_files = False

    def __init__(self, association: Association, limits: Limits, window: int = 1) -> None:
        self.window = window
        self._association = association
        self._limits = limits
        self._message_id = 0
        self._under_way: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.release()
        else:
            self.abort()

    def release(self, seconds: float | None = None) -> None:
        """Release the association, whatever the peer does about it.

        Args:
            seconds: for the peer to confirm; None: as long as a PDU may take.
        """
        self._association.release(seconds)

    def abort(self) -> None:
        """Abort the association."""
        self._association.abort()

    def has_input(self) -> bool:
        """Say whether the peer has said something unasked, or has gone."""
        return self._association.has_input()

    def find_context(
        self, abstract_syntax: str, transfer_syntax: str | None = None
    ) -> Context | None:
        """Return a context under which the peer takes `abstract_syntax`, or None.

        Args:
            abstract_syntax: a SOP class.
            transfer_syntax: None: any of those that were proposed.
        """
        return next(
            (
                context
                for context in self._association.contexts.values()
                if context.abstract_syntax == abstract_syntax
                and transfer_syntax in {None, context.transfer_syntax}
            ),
            None,
        )

    def echo(self) -> int:
        """Send a C-ECHO and return its status.

        Raises:
            DeliveryError: no response came, or the peer does not offer verification.
        """
        context = self.find_context(VERIFICATION)
        if context is None:
            raise DeliveryError("the peer does not offer verification", retry=False)
        elements: dict[int, int | str] = {
            command.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            command.COMMAND_FIELD: command.C_ECHO_RQ,
            command.COMMAND_DATA_SET_TYPE: command.NO_DATA_SET,
        }
        self._ask(context, elements, None)
        return self.read_status()[1]

    def store(
        self, context: Context, sop_class_uid: str, sop_instance_uid: str, data_set: Piece
    ) -> int:
        """Send a C-STORE and return its status; `data_set` is in the context's transfer syntax.

        Raises:
            DeliveryError: no response came; whether the peer has the instance is not known.
        """
        self.begin_store(context, sop_class_uid, sop_instance_uid, data_set)
        return self.read_status()[1]

    def begin_store(
        self, context: Context, sop_class_uid: str, sop_instance_uid: str, data_set: Piece
    ) -> int:
        """Send a C-STORE request and return its Message ID; the caller keeps to the window.

        Raises:
            DeliveryError: it was not sent; whether the peer has the instance is not known.
        """
        elements: dict[int, int | str] = {
            command.AFFECTED_SOP_CLASS_UID: sop_class_uid,
            command.COMMAND_FIELD: command.C_STORE_RQ,
            command.PRIORITY: 0,
            command.COMMAND_DATA_SET_TYPE: command.A_DATA_SET,
            command.AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
        }
        return self._ask(context, elements, data_set)

    def read_status(self) -> tuple[int, int]:
        """Return Message ID and status of the next response to any request that is under way.

        Raises:
            DeliveryError: none came.
        """
        try:
            answer = self._association.read_command(self._limits.message_seconds)
            if answer is None:
                raise ProtocolError("release_instead_of_response")
            response = command.decode_command(answer[1])
            message_id = command.number(response, command.MESSAGE_ID_BEING_RESPONDED_TO)
            wanted = self._under_way.pop(message_id, None)
            if wanted != command.number(response, command.COMMAND_FIELD) & ~command.RESPONSE:
                raise ProtocolError("other_response")
            return message_id, command.number(response, command.STATUS)
        except TimeoutError:
            raise DeliveryError("the peer sent no response in time", retry=True) from None
        except ProtocolError as error:
            raise DeliveryError(f"no response: {error.code}", retry=True) from None

    def read_outcome(self) -> tuple[int, Outcome]:
        """Return the Message ID of the next response to a C-STORE, and what its status means.

        Raises:
            DeliveryError: none came.
        """
        message_id, status = self.read_status()
        return message_id, judge_status(status)

    def write(
        self, context: Context, elements: Mapping[int, int | str], data_set: bytes | None = None
    ) -> int:
        """Send a message of any service, and return the Message ID that a request was given.

        Raises:
            DeliveryError: the peer does not read, or has gone.
        """
        message: dict[int, int | str] = {
            command.COMMAND_DATA_SET_TYPE: (
                command.NO_DATA_SET if data_set is None else command.A_DATA_SET
            ),
            **elements,
        }
        if not int(elements[command.COMMAND_FIELD]) & command.RESPONSE:
            self._message_id = self._message_id % 0xFFFF + 1
            message[command.MESSAGE_ID] = self._message_id
        try:
            self._association.send(context.context_id, command.encode_command(message), data_set)
        except ProtocolError as error:
            raise DeliveryError(f"not sent: {error.code}", retry=True) from None
        return self._message_id

    def ask(
        self,
        context: Context,
        elements: Mapping[int, int | str],
        data_set: bytes,
        *,
        longest: int,
        seconds: float | None = None,
    ) -> Iterator[tuple[int, Message]]:
        """Send a request that several responses may answer, and yield them with their statuses.

        The one that says success ends it and is not yielded; whoever gets a status that is not
        pending must not ask for more.

        Args:
            context: for the request.
            elements: of its command set.
            data_set: the identifier.
            longest: bytes that the data set of a response may have.
            seconds: for all of them; None: each may take as long as a response may.

        Raises:
            TimeoutError: nothing came in time.
            DeliveryError: the peer breaks off, or answers something else.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        message_id = self.write(context, elements, data_set)
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            message = self.read(longest, left)
            if message is None:
                raise DeliveryError("the peer left instead of answering", retry=True)
            status = message.read_status(int(elements[command.COMMAND_FIELD]), message_id)
            if status == command.SUCCESS:
                return
            yield status, message

    def read(self, longest: int, seconds: float | None = None) -> Message | None:
        """Read a message of any service, a response or a request of the peer's.

        Args:
            longest: bytes that its data set may have.
            seconds: until its first byte; None: as long as a response may take.

        Returns:
            None when the peer asked for the release instead, which is confirmed.

        Raises:
            TimeoutError: nothing came.
            DeliveryError: the peer broke the rules, or has gone.
        """
        try:
            found = self._association.read_command(
                self._limits.message_seconds if seconds is None else seconds
            )
            if found is None:
                self._association.confirm_release()
                return None
            context_id, elements = found[0], command.decode_command(found[1])
            data_set = b""
            if command.number(elements, command.COMMAND_DATA_SET_TYPE) != command.NO_DATA_SET:
                fragments = self._association.read_data_set(context_id, longest)
                data_set = b"".join(bytes(each) for some, _ in fragments for each in some)
        except ProtocolError as error:
            raise DeliveryError(f"no message: {error.code}", retry=True) from None
        context = self._association.contexts[context_id]
        return Message(context=context, elements=elements, data_set=data_set)

    def _ask(
        self, context: Context, elements: Mapping[int, int | str], data_set: Piece | None
    ) -> int:
        """Send one request and return its Message ID."""
        self._message_id = self._message_id % 0xFFFF + 1
        request = {**elements, command.MESSAGE_ID: self._message_id}
        try:
            self._association.send(context.context_id, command.encode_command(request), data_set)
        except ProtocolError as error:
            raise DeliveryError(f"no response: {error.code}", retry=True) from None
        self._under_way[self._message_id] = int(elements[command.COMMAND_FIELD])
        return self._message_id


def open_association(
    host: str,
    port: int,
    *,
    called_ae_title: str,
    calling_ae_title: str,
    sop_classes: Sequence[str] = (),
    instances: Sequence[tuple[str, str]] = (),
    window: int = 1,
    tls: ClientSide | None = None,
    limits: Limits | None = None,
    connect_seconds: float = 10.0,
) -> Requestor:
    """Ask a peer for an association.

    Args:
        host: the peer's.
        port: the peer's.
        called_ae_title: the peer's.
        calling_ae_title: our own.
        sop_classes: each is proposed in Explicit and Implicit VR Little Endian, in one context, of
            which the peer chooses one.
        instances: SOP class and transfer syntax, each pair proposed in a context of its own, so
            that the peer may take both of two.
        window: requests that are to be under way at a time; the peer is asked when it is not 1.
        tls: None talks in plain DICOM.
        limits: what the peer may take of this node.
        connect_seconds: until there is a connection, and a TLS session.

    Raises:
        AssociationRejectedError: the peer said no.
        DeliveryError: nobody answers there, or not as a DICOM peer does.
    """
    limits = limits or Limits()
    pairs = [
        *((sop_class, UNCOMPRESSED) for sop_class in sop_classes),
        *((sop_class, (transfer_syntax,)) for sop_class, transfer_syntax in instances),
    ]
    proposed = tuple(
        ProposedContext(
            context_id=2 * index + 1,
            abstract_syntax=abstract_syntax,
            transfer_syntaxes=transfer_syntaxes,
        )
        for index, (abstract_syntax, transfer_syntaxes) in enumerate(pairs[:MOST_CONTEXTS])
    )
    request = AssociationRequest(
        protocol_version=1,
        called_ae_title=called_ae_title,
        calling_ae_title=calling_ae_title,
        application_context=upper_layer.APPLICATION_CONTEXT,
        contexts=proposed,
        maximum_length=ANNOUNCED_BYTES,
        operations=window,
    )
    wire = Wire(connect(host, port, tls, connect_seconds), limits)
    try:
        wire.send(upper_layer.encode_request(request))
        pdu_type, body = wire.read_pdu(
            {
                upper_layer.ASSOCIATE_AC: limits.request_bytes,
                upper_layer.ASSOCIATE_RJ: 4,
                upper_layer.ABORT: 4,
            },
            wait=limits.message_seconds,
            whole=limits.pdu_seconds,
        )
        if pdu_type == upper_layer.ASSOCIATE_RJ:
            raise AssociationRejectedError(
                f"the peer rejected the association: RJ({body[1]},{body[2]},{body[3]})",
                permanent=body[1] == _PERMANENT,
            )
        if pdu_type == upper_layer.ABORT:
            raise DeliveryError("the peer aborted instead of accepting", retry=True)
        accept = upper_layer.decode_accept(bytes(body))
        if 0 < accept.maximum_length < SMALLEST_PDU:
            raise ProtocolError("maximum_length")
    except TimeoutError:
        wire.close()
        raise DeliveryError("the peer did not answer the association request", retry=True) from None
    except ProtocolError as error:
        wire.close()
        raise DeliveryError(f"no association: {error.code}", retry=True) from None
    except DeliveryError:
        wire.close()
        raise
    by_id = {context.context_id: context for context in proposed}
    accepted = [
        Context(
            context_id=result.context_id,
            abstract_syntax=by_id[result.context_id].abstract_syntax,
            transfer_syntax=result.transfer_syntax,
        )
        for result in accept.contexts
        if result.result == upper_layer.ACCEPTED
        and result.context_id in by_id
        and result.transfer_syntax in by_id[result.context_id].transfer_syntaxes
    ]
    granted = min(window, accept.operations or window)
    return Requestor(Association(wire, accepted, accept.maximum_length), limits, granted)


def normalize_address(text: str) -> Address:
    """Return the address of a connection; IPv4 inside IPv6 is IPv4."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def connect(host: str, port: int, tls: ClientSide | None, connect_seconds: float) -> socket.socket:
    """Return a connected socket, after the TLS handshake where there is one.

    Raises:
        DeliveryError: nobody answers there, or not who should.
    """
    try:
        sock = socket.create_connection((host, port), timeout=connect_seconds)
    except OSError as error:
        raise DeliveryError(f"no connection: {type(error).__name__}", retry=True) from None
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tls.wrap(sock, host) if tls else sock
    except OSError as error:
        sock.close()
        raise DeliveryError(f"no connection: {type(error).__name__}", retry=True) from None
    except DeliveryError:
        sock.close()
        raise
