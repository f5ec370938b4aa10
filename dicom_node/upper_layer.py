"""The association PDUs as bytes: request, accept, reject, abort (PS3.8 section 9.3).

Pure functions of both roles; `association` puts them on a socket. Nothing here trusts a length
that a peer wrote, keeps more than the PDU it was given, or raises anything but `ProtocolError`.
Why not pynetdicom's codec: it answers a lie with seven kinds of exception and logs peer text, and
its import brings pydicom, which loads every installed native codec into the process.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dicom_node.errors import DicomNodeError
from dicom_node.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

FIXED_BODY = 4
"""Bytes after the header of every rejection, release and abort."""

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"

ACCEPTED = 0
ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED = 4

BY_USER = (0, 0)
UNRECOGNIZED_PDU = (2, 1)
UNEXPECTED_PDU = (2, 2)
INVALID_PARAMETER = (2, 6)
"""Source and reason of an A-ABORT (PS3.8 section 9.3.8)."""

_HEADER = struct.Struct(">BxI")
_FIXED_LENGTH = 68
_AE_TITLE = 16
_ITEM = struct.Struct(">BxH")
_APPLICATION_CONTEXT_ITEM = 0x10
_CONTEXT_RQ_ITEM = 0x20
_CONTEXT_AC_ITEM = 0x21
_ABSTRACT_SYNTAX_ITEM = 0x30
_TRANSFER_SYNTAX_ITEM = 0x40
_USER_INFORMATION_ITEM = 0x50
_MAXIMUM_LENGTH_ITEM = 0x51
_IMPLEMENTATION_CLASS_ITEM = 0x52
_OPERATIONS_WINDOW_ITEM = 0x53
_ROLE_SELECTION_ITEM = 0x54
_IMPLEMENTATION_VERSION_ITEM = 0x55
_USER_IDENTITY_ITEM = 0x58


class ProtocolError(DicomNodeError):
    """A peer broke the rules of the association, or its time is up; the association ends.

    Attributes:
        code: short stable word for the log line.
        abort: source and reason of the A-ABORT to send; None closes without a word.
    """

    def __init__(self, code: str, abort: tuple[int, int] | None = BY_USER) -> None:
        super().__init__(f"association ended: {code}")
        self.code = code
        self.abort = abort


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedContext:
    """One presentation context of a request; texts as the peer wrote them."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSelection:
    """Which roles the requestor of an association wants, or may have, for one SOP class.

    Source: PS3.7 section D.3.3.4. Without it the requestor is the SCU.
    """

    sop_class_uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationRequest:
    """An A-ASSOCIATE-RQ.

    Attributes:
        called_ae_title: without padding; Latin-1, so that no byte is lost and none raises.
        maximum_length: the longest P-DATA PDU that the requestor takes; 0 means any.
        operations: how many requests the requestor wants to have under way at a time, 0 means any:
            the asynchronous operations window (PS3.7 section D.3.3.3), asked for when it is not 1.
        user_identity_type: of the identity that is claimed (PS3.7 section D.3.3.7), or 0; no more
            of it is read, and none is sent.
    """

    protocol_version: int
    called_ae_title: str
    calling_ae_title: str
    application_context: str
    contexts: tuple[ProposedContext, ...]
    maximum_length: int = 0
    operations: int = 1
    roles: tuple[RoleSelection, ...] = ()
    user_identity_type: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextResult:
    """The acceptor's answer to one proposed context; `result` 0 is acceptance."""

    context_id: int
    result: int
    transfer_syntax: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationAccept:
    """An A-ASSOCIATE-AC.

    Attributes:
        operations: how many requests the requestor may have under way at a time; 0 means any.
    """

    contexts: tuple[ContextResult, ...]
    maximum_length: int
    operations: int = 1


def encode_pdu(pdu_type: int, body: bytes) -> bytes:
    """Return the PDU of `pdu_type` that holds `body`."""
    return _HEADER.pack(pdu_type, len(body)) + body


def encode_request(request: AssociationRequest) -> bytes:
    """Return the A-ASSOCIATE-RQ PDU of `request`."""
    contexts = b"".join(
        _item(
            _CONTEXT_RQ_ITEM,
            bytes((context.context_id, 0, 0, 0))
            + _item(_ABSTRACT_SYNTAX_ITEM, context.abstract_syntax.encode("ascii"))
            + b"".join(
                _item(_TRANSFER_SYNTAX_ITEM, syntax.encode("ascii"))
                for syntax in context.transfer_syntaxes
            ),
        )
        for context in request.contexts
    )
    fixed = struct.pack(
        ">HH16s16s32x",
        request.protocol_version,
        0,
        request.called_ae_title.encode("ascii").ljust(_AE_TITLE),
        request.calling_ae_title.encode("ascii").ljust(_AE_TITLE),
    )
    application = _item(_APPLICATION_CONTEXT_ITEM, request.application_context.encode("ascii"))
    return encode_pdu(
        ASSOCIATE_RQ,
        fixed
        + application
        + contexts
        + _user_information(request.maximum_length, request.roles, request.operations),
    )


def encode_accept(
    request_body: bytes,
    contexts: Sequence[ContextResult],
    maximum_length: int,
    roles: Sequence[RoleSelection] = (),
) -> bytes:
    """Return the A-ASSOCIATE-AC PDU that answers the request whose body is `request_body`.

    The titles go back as they came (PS3.8 table 9-17). `roles` are those that the requestor may
    have of those that it wanted.
    """
    results = b"".join(
        _item(
            _CONTEXT_AC_ITEM,
            bytes((context.context_id, 0, context.result, 0))
            + _item(_TRANSFER_SYNTAX_ITEM, context.transfer_syntax.encode("ascii")),
        )
        for context in contexts
    )
    return encode_pdu(
        ASSOCIATE_AC,
        struct.pack(">HH", 1, 0)
        + request_body[4:_FIXED_LENGTH]
        + _item(_APPLICATION_CONTEXT_ITEM, APPLICATION_CONTEXT.encode("ascii"))
        + results
        + _user_information(maximum_length, roles),
    )


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """Return an A-ASSOCIATE-RJ PDU (PS3.8 section 9.3.4)."""
    return encode_pdu(ASSOCIATE_RJ, bytes((0, result, source, reason)))


def encode_abort(source: int, reason: int) -> bytes:
    """Return an A-ABORT PDU (PS3.8 section 9.3.8)."""
    return encode_pdu(ABORT, bytes((0, 0, source, reason)))


def decode_request(body: bytes) -> AssociationRequest:
    """Return the request that `body` (a PDU without its six-byte header) holds.

    Raises:
        ProtocolError: a length lies, or the fixed part is missing.
    """
    if len(body) < _FIXED_LENGTH:
        raise ProtocolError("association_request")
    application_context = ""
    contexts: list[ProposedContext] = []
    maximum_length = 0
    operations = 1
    roles: tuple[RoleSelection, ...] = ()
    user_identity_type = 0
    for item_type, value in _items(body, _FIXED_LENGTH):
        if item_type == _APPLICATION_CONTEXT_ITEM:
            application_context = _text(value)
        elif item_type == _CONTEXT_RQ_ITEM:
            contexts.append(_proposed_context(value))
        elif item_type == _USER_INFORMATION_ITEM:
            maximum_length = _maximum_length(value)
            operations = _operations(value)
            roles = _roles(value)
            user_identity_type = _user_identity_type(value)
    return AssociationRequest(
        protocol_version=int.from_bytes(body[:2], "big"),
        called_ae_title=_text(body[4:20]),
        calling_ae_title=_text(body[20:36]),
        application_context=application_context,
        contexts=tuple(contexts),
        maximum_length=maximum_length,
        operations=operations,
        roles=roles,
        user_identity_type=user_identity_type,
    )


def decode_accept(body: bytes) -> AssociationAccept:
    """Return the acceptance that `body` (a PDU without its six-byte header) holds.

    Raises:
        ProtocolError: a length lies, or the fixed part is missing.
    """
    if len(body) < _FIXED_LENGTH:
        raise ProtocolError("association_accept")
    contexts: list[ContextResult] = []
    maximum_length = 0
    operations = 1
    for item_type, value in _items(body, _FIXED_LENGTH):
        if item_type == _CONTEXT_AC_ITEM:
            if len(value) < _CONTEXT_FIXED:
                raise ProtocolError("association_accept")
            syntaxes = _syntaxes(value, _TRANSFER_SYNTAX_ITEM)
            contexts.append(
                ContextResult(
                    context_id=value[0],
                    result=value[2],
                    transfer_syntax=syntaxes[0] if syntaxes else "",
                )
            )
        elif item_type == _USER_INFORMATION_ITEM:
            maximum_length = _maximum_length(value)
            operations = _operations(value)
    return AssociationAccept(
        contexts=tuple(contexts), maximum_length=maximum_length, operations=operations
    )


_CONTEXT_FIXED = 4
_MAXIMUM_LENGTH_BYTES = 4
_OPERATIONS = struct.Struct(">HH")  # invoked and performed by the requestor


def _item(item_type: int, value: bytes) -> bytes:
    return _ITEM.pack(item_type, len(value)) + value


def _items(data: bytes, position: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each item of `data`; a length that lies is a protocol error."""
    while position < len(data):
        if len(data) - position < _ITEM.size:
            raise ProtocolError("item_length")
        item_type, length = _ITEM.unpack_from(data, position)
        position += _ITEM.size
        if length > len(data) - position:
            raise ProtocolError("item_length")
        yield item_type, data[position : position + length]
        position += length


def _proposed_context(value: bytes) -> ProposedContext:
    if len(value) < _CONTEXT_FIXED:
        raise ProtocolError("item_length")
    abstract = _syntaxes(value, _ABSTRACT_SYNTAX_ITEM)
    return ProposedContext(
        context_id=value[0],
        abstract_syntax=abstract[0] if abstract else "",
        transfer_syntaxes=_syntaxes(value, _TRANSFER_SYNTAX_ITEM),
    )


def _syntaxes(context: bytes, wanted: int) -> tuple[str, ...]:
    return tuple(
        _text(value) for item_type, value in _items(context, _CONTEXT_FIXED) if item_type == wanted
    )


def _maximum_length(user_information: bytes) -> int:
    for item_type, value in _items(user_information):
        if item_type == _MAXIMUM_LENGTH_ITEM and len(value) == _MAXIMUM_LENGTH_BYTES:
            return int.from_bytes(value, "big")
    return 0


def _operations(user_information: bytes) -> int:
    for item_type, value in _items(user_information):
        if item_type == _OPERATIONS_WINDOW_ITEM and len(value) == _OPERATIONS.size:
            return int(_OPERATIONS.unpack(value)[0])
    return 1


def _user_identity_type(user_information: bytes) -> int:
    for item_type, value in _items(user_information):
        if item_type == _USER_IDENTITY_ITEM and value:
            return value[0]
    return 0


def _roles(user_information: bytes) -> tuple[RoleSelection, ...]:
    roles: list[RoleSelection] = []
    for item_type, value in _items(user_information):
        if item_type == _ROLE_SELECTION_ITEM:
            end = 2 + int.from_bytes(value[:2], "big")
            if len(value) != end + 2:
                raise ProtocolError("item_length")
            uid = _text(value[2:end])
            roles.append(
                RoleSelection(sop_class_uid=uid, scu=value[end] == 1, scp=value[end + 1] == 1)
            )
    return tuple(roles)


def _encode_role(role: RoleSelection) -> bytes:
    uid = role.sop_class_uid.encode("ascii")
    return _item(
        _ROLE_SELECTION_ITEM, len(uid).to_bytes(2, "big") + uid + bytes((role.scu, role.scp))
    )


def _user_information(
    maximum_length: int, roles: Sequence[RoleSelection] = (), operations: int = 1
) -> bytes:
    window = b""
    if operations != 1:  # without the item it is one at a time
        window = _item(_OPERATIONS_WINDOW_ITEM, _OPERATIONS.pack(operations, 1))
    return _item(
        _USER_INFORMATION_ITEM,
        _item(_MAXIMUM_LENGTH_ITEM, maximum_length.to_bytes(_MAXIMUM_LENGTH_BYTES, "big"))
        + _item(_IMPLEMENTATION_CLASS_ITEM, IMPLEMENTATION_CLASS_UID.encode("ascii"))
        + window
        + b"".join(map(_encode_role, roles))
        + _item(_IMPLEMENTATION_VERSION_ITEM, IMPLEMENTATION_VERSION_NAME.encode("ascii")),
    )


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip("\0 ")
