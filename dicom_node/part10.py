"""DICOM files as bytes: preamble and file meta information before a data set (PS3.10 section 7).

Received data sets are stored verbatim behind a header of our own, whose bytes depend on nothing but
class, instance and transfer syntax: the same instance from two peers is the same file.
"""

import functools
import struct
from dataclasses import dataclass

from dicom_node.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_PREFIX = bytes(128) + b"DICM"
_GROUP = 0x0002
_LENGTH, _VERSION, _CLASS, _INSTANCE, _SYNTAX, _IMPLEMENTATION, _VERSION_NAME = (
    0x0000,
    0x0001,
    0x0002,
    0x0003,
    0x0010,
    0x0012,
    0x0013,
)
_SHORT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<HH2s2xI")
_GROUP_LENGTH = struct.Struct("<HH2sHI")
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMeta:
    """What the file meta information says, and where the data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_offset: int


def encode_file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return what stands in front of the data set in a DICOM file."""
    before, after = _surround_instance(sop_class_uid, transfer_syntax_uid)
    body = before + _text(_INSTANCE, b"UI", sop_instance_uid) + after
    return _PREFIX + _GROUP_LENGTH.pack(_GROUP, _LENGTH, b"UL", 4, len(body)) + body


@functools.lru_cache
def _surround_instance(sop_class_uid: str, transfer_syntax_uid: str) -> tuple[bytes, bytes]:
    """Return the elements before and after that of the instance: the same for many instances."""
    before = _LONG.pack(_GROUP, _VERSION, b"OB", 2) + b"\0\1" + _text(_CLASS, b"UI", sop_class_uid)
    after = (
        _text(_SYNTAX, b"UI", transfer_syntax_uid)
        + _text(_IMPLEMENTATION, b"UI", IMPLEMENTATION_CLASS_UID)
        + _text(_VERSION_NAME, b"SH", IMPLEMENTATION_VERSION_NAME)
    )
    return before, after


def decode_file_meta(data: bytes | memoryview) -> FileMeta:
    """Return what the beginning of a DICOM file says.

    Raises:
        ValueError: `data` does not begin as a DICOM file does.
    """
    if bytes(data[128:132]) != b"DICM":
        raise ValueError("not a DICOM file: wanted DICM at offset 128")
    values: dict[int, str] = {}
    position = len(_PREFIX)
    try:
        while _SHORT.unpack_from(data, position)[0] == _GROUP:
            _, element, vr, length = _SHORT.unpack_from(data, position)
            position += _SHORT.size
            if vr in _LONG_VRS:
                length = _LONG.unpack_from(data, position - _SHORT.size)[3]
                position += _LONG.size - _SHORT.size
            values[element] = bytes(data[position : position + length]).decode("latin-1")
            position += length
        return FileMeta(
            sop_class_uid=values[_CLASS].rstrip("\0 "),
            sop_instance_uid=values[_INSTANCE].rstrip("\0 "),
            transfer_syntax_uid=values[_SYNTAX].rstrip("\0 "),
            data_set_offset=position,
        )
    except (struct.error, KeyError):
        raise ValueError("the file meta information is not complete") from None


def _text(element: int, vr: bytes, value: str) -> bytes:
    raw = value.encode("ascii")
    if len(raw) % 2:
        raw += b"\0" if vr == b"UI" else b" "
    return _SHORT.pack(_GROUP, element, vr, len(raw)) + raw
