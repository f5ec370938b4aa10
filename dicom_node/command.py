"""DIMSE command sets as bytes: group 0000, Implicit VR Little Endian (PS3.7 annex E).

Written out by hand: a command set is ten elements, and `import pydicom` loads every installed
native codec into the process, where reception must have none.
"""

import functools
import re
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from dicom_node.upper_layer import ProtocolError

AFFECTED_SOP_CLASS_UID = 0x0002
REQUESTED_SOP_CLASS_UID = 0x0003
COMMAND_FIELD = 0x0100
MESSAGE_ID = 0x0110
MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
MOVE_DESTINATION = 0x0600
PRIORITY = 0x0700
COMMAND_DATA_SET_TYPE = 0x0800
STATUS = 0x0900
ERROR_COMMENT = 0x0902
ERROR_ID = 0x0903
AFFECTED_SOP_INSTANCE_UID = 0x1000
REQUESTED_SOP_INSTANCE_UID = 0x1001
EVENT_TYPE_ID = 0x1002
ACTION_TYPE_ID = 0x1008

C_STORE_RQ = 0x0001
C_FIND_RQ = 0x0020
C_MOVE_RQ = 0x0021
C_ECHO_RQ = 0x0030
N_EVENT_REPORT_RQ = 0x0100
N_GET_RQ = 0x0110
N_SET_RQ = 0x0120
N_ACTION_RQ = 0x0130
N_CREATE_RQ = 0x0140
C_CANCEL_RQ = 0x0FFF
RESPONSE = 0x8000
"""The bit that makes a response of a request (PS3.7 table E.1-1)."""

VERIFICATION = "1.2.840.10008.1.1"

NO_DATA_SET = 0x0101
A_DATA_SET = 0x0001

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)
"""Statuses of responses that others will follow (PS3.4 annex C.4)."""
LOW_PRIORITY = 0x0002

_ELEMENT = struct.Struct("<HHI")
_NUMBER = struct.Struct("<HHIH")
_GROUP = struct.Struct("<HHII")
_GROUP_LENGTH = 0x0000
_UNSIGNED_SHORT = struct.Struct("<H")
_AFTER_MESSAGE_ID = _NUMBER.pack(0x0000, COMMAND_DATA_SET_TYPE, 2, NO_DATA_SET) + _NUMBER.pack(
    0x0000, STATUS, 2, SUCCESS
)
_NUMBERS = frozenset(
    {
        COMMAND_FIELD,
        MESSAGE_ID,
        MESSAGE_ID_BEING_RESPONDED_TO,
        PRIORITY,
        COMMAND_DATA_SET_TYPE,
        STATUS,
        EVENT_TYPE_ID,
        ACTION_TYPE_ID,
    }
)


def encode_command(elements: Mapping[int, int | str]) -> bytes:
    """Return the command set of `elements` (element number to value), group length first."""
    body = b"".join([_encode_element(*each) for each in sorted(elements.items())])
    return _GROUP.pack(0x0000, _GROUP_LENGTH, 4, len(body)) + body


def _encode_element(element: int, value: int | str) -> bytes:
    if isinstance(value, int):
        return _NUMBER.pack(0x0000, element, 2, value)
    raw = value.encode("ascii")
    if len(raw) % 2:
        raw += b" " if element in (ERROR_COMMENT, MOVE_DESTINATION) else b"\0"
    return _ELEMENT.pack(0x0000, element, len(raw)) + raw


class StoreRequest(NamedTuple):
    """What a C-STORE request says; its UIDs as they came, without padding."""

    message_id: int
    sop_class_uid: bytes
    sop_instance_uid: bytes
    has_data_set: bool


def find_store_request(sop_class_uid: str, data: bytes) -> StoreRequest | None:
    """Return the C-STORE request in `data` if it is written as nearly every sender writes it.

    That is: for an instance of `sop_class_uid`, with the mandatory elements of PS3.7 table 9.3-1
    and no others. None says nothing; `decode_command` takes any command set, but takes its time.
    """
    found = _match_store_request(sop_class_uid)(data)
    if found is None:
        return None
    message_id, data_set_type, length, sop_instance_uid = found.groups()
    if int.from_bytes(length, "little") != len(sop_instance_uid):
        return None
    return StoreRequest(
        int.from_bytes(message_id, "little"),
        sop_class_uid.encode("ascii"),
        sop_instance_uid.rstrip(b"\0 "),
        int.from_bytes(data_set_type, "little") != NO_DATA_SET,
    )


def find_echo_request(data: bytes) -> int | None:
    """Return the message id of the C-ECHO request in `data` if it is written as nearly all are."""
    found = _match_echo_request()(data)
    return None if found is None else int.from_bytes(found[1], "little")


@functools.cache
def _match_echo_request() -> Callable[[bytes], re.Match[bytes] | None]:
    pattern = re.escape(_ELEMENT.pack(0x0000, _GROUP_LENGTH, 4)) + b"...."
    pattern += re.escape(_encode_element(AFFECTED_SOP_CLASS_UID, VERIFICATION))
    pattern += re.escape(_encode_element(COMMAND_FIELD, C_ECHO_RQ))
    pattern += re.escape(_ELEMENT.pack(0x0000, MESSAGE_ID, _UNSIGNED_SHORT.size)) + b"(..)"
    pattern += re.escape(_encode_element(COMMAND_DATA_SET_TYPE, NO_DATA_SET))
    return re.compile(pattern, re.DOTALL).fullmatch


@functools.lru_cache
def encode_echo_success(message_id: int) -> bytes:
    """Return the command set that answers a C-ECHO request (PS3.7 table 9.3-13)."""
    return encode_command(
        {
            AFFECTED_SOP_CLASS_UID: VERIFICATION,
            COMMAND_FIELD: C_ECHO_RQ | RESPONSE,
            MESSAGE_ID_BEING_RESPONDED_TO: message_id,
            COMMAND_DATA_SET_TYPE: NO_DATA_SET,
            STATUS: SUCCESS,
        }
    )


@functools.lru_cache
def _match_store_request(sop_class_uid: str) -> Callable[[bytes], re.Match[bytes] | None]:
    pattern = re.escape(_ELEMENT.pack(0x0000, _GROUP_LENGTH, 4)) + b"...."
    pattern += re.escape(_encode_element(AFFECTED_SOP_CLASS_UID, sop_class_uid))
    pattern += re.escape(_encode_element(COMMAND_FIELD, C_STORE_RQ))
    for element, value in (
        (MESSAGE_ID, b"(..)"),
        (PRIORITY, b".."),
        (COMMAND_DATA_SET_TYPE, b"(..)"),
    ):
        pattern += re.escape(_ELEMENT.pack(0x0000, element, _UNSIGNED_SHORT.size)) + value
    pattern += re.escape(struct.pack("<HH", 0x0000, AFFECTED_SOP_INSTANCE_UID)) + b"(.{4})(.*)"
    return re.compile(pattern, re.DOTALL).fullmatch


def encode_store_success(sop_class_uid: str, message_id: int, sop_instance_uid: bytes) -> bytes:
    """Return the command set that answers a C-STORE request with success (PS3.7 table 9.3-2).

    It is what `encode_command` returns, in less time.
    """
    uid = sop_instance_uid + b"\0" * (len(sop_instance_uid) % 2)
    body = (
        _begin_store_response(sop_class_uid)
        + _NUMBER.pack(0x0000, MESSAGE_ID_BEING_RESPONDED_TO, 2, message_id)
        + _AFTER_MESSAGE_ID
        + _ELEMENT.pack(0x0000, AFFECTED_SOP_INSTANCE_UID, len(uid))
        + uid
    )
    return _GROUP.pack(0x0000, _GROUP_LENGTH, 4, len(body)) + body


@functools.lru_cache
def _begin_store_response(sop_class_uid: str) -> bytes:
    class_uid = _encode_element(AFFECTED_SOP_CLASS_UID, sop_class_uid)
    return class_uid + _encode_element(COMMAND_FIELD, C_STORE_RQ | RESPONSE)


def decode_command(data: bytes) -> dict[int, int | bytes]:
    """Return the elements of a command set: numbers as int, the rest as bytes without padding.

    Raises:
        ProtocolError: `data` is not a command set; the association is aborted.
    """
    elements: dict[int, int | bytes] = {}
    position = 0
    while position < len(data):
        if len(data) - position < _ELEMENT.size:
            raise ProtocolError("command_set")
        group, element, length = _ELEMENT.unpack_from(data, position)
        position += _ELEMENT.size
        value = data[position : position + length]
        if group != 0x0000 or len(value) != length:
            raise ProtocolError("command_set")
        position += length
        if element not in _NUMBERS:
            elements[element] = value.rstrip(b"\0 ")
        elif length == _UNSIGNED_SHORT.size:
            elements[element] = _UNSIGNED_SHORT.unpack(value)[0]
        else:
            raise ProtocolError("command_set")
    return elements


def number(elements: Mapping[int, int | bytes], element: int) -> int:
    """Return the number that `element` holds.

    Raises:
        ProtocolError: the command set lacks it; the association is aborted.
    """
    value = elements.get(element)
    if not isinstance(value, int):
        raise ProtocolError("command_set")
    return value
