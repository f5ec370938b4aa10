"""DIMSE command sets as bytes: group 0000, Implicit VR Little Endian (PS3.7 annex E).

Written out by hand: a command set is ten elements, and `import pydicom` loads every installed
native codec into the process, where reception must have none.
"""

import struct
from collections.abc import Mapping

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
AFFECTED_SOP_INSTANCE_UID = 0x1000
REQUESTED_SOP_INSTANCE_UID = 0x1001
EVENT_TYPE_ID = 0x1002
ACTION_TYPE_ID = 0x1008

C_STORE_RQ = 0x0001
C_FIND_RQ = 0x0020
C_MOVE_RQ = 0x0021
C_ECHO_RQ = 0x0030
N_EVENT_REPORT_RQ = 0x0100
N_ACTION_RQ = 0x0130
C_CANCEL_RQ = 0x0FFF
RESPONSE = 0x8000
"""The bit that makes a response of a request (PS3.7 table E.1-1)."""

NO_DATA_SET = 0x0101
A_DATA_SET = 0x0001

SUCCESS = 0x0000
LOW_PRIORITY = 0x0002

_ELEMENT = struct.Struct("<HHI")
_GROUP_LENGTH = 0x0000
_UNSIGNED_SHORT = struct.Struct("<H")
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
    body = bytearray()
    for element, value in sorted(elements.items()):
        if isinstance(value, int):
            raw = _UNSIGNED_SHORT.pack(value)
        else:
            raw = value.encode("ascii")
            if len(raw) % 2:
                raw += b" " if element in (ERROR_COMMENT, MOVE_DESTINATION) else b"\0"
        body += _ELEMENT.pack(0x0000, element, len(raw)) + raw
    return _ELEMENT.pack(0x0000, _GROUP_LENGTH, 4) + struct.pack("<I", len(body)) + bytes(body)


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
