"""Small data sets as bytes: what storage commitment, queries and notices say, in and out.

Both uncompressed transfer syntaxes (PS3.5 section 7 and annex A). pydicom would do, but its import
loads every installed native codec into the process, where reception must have none. Nothing here
trusts a length, follows a nesting beyond `_DEPTH`, or raises anything but `ValueError`.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

QUERY_RETRIEVE_LEVEL = 0x0008_0052
SOP_INSTANCE_UID = 0x0008_0018
INSTANCE_AVAILABILITY = 0x0008_0056
CODE_VALUE = 0x0008_0100
CODING_SCHEME_DESIGNATOR = 0x0008_0102
REFERENCED_SERIES_SEQUENCE = 0x0008_1115
REFERENCED_IMAGE_SEQUENCE = 0x0008_1140
REFERENCED_SOP_CLASS_UID = 0x0008_1150
REFERENCED_SOP_INSTANCE_UID = 0x0008_1155
TRANSACTION_UID = 0x0008_1195
FAILURE_REASON = 0x0008_1197
FAILED_SOP_SEQUENCE = 0x0008_1198
REFERENCED_SOP_SEQUENCE = 0x0008_1199
STUDY_INSTANCE_UID = 0x0020_000D
SERIES_INSTANCE_UID = 0x0020_000E
NUMBER_OF_SERIES_RELATED_INSTANCES = 0x0020_1209
REFERENCED_NON_IMAGE_SEQUENCE = 0x0040_0220
PERFORMED_PROCEDURE_STEP_STATUS = 0x0040_0252
SCHEDULED_STEP_ATTRIBUTES_SEQUENCE = 0x0040_0270
DISCONTINUATION_REASON_CODE_SEQUENCE = 0x0040_0281
PERFORMED_SERIES_SEQUENCE = 0x0040_0340

Value: TypeAlias = "bytes | list[Attributes]"
Attributes: TypeAlias = dict[int, Value]
"""Tag to the value without its padding, or to the items of a sequence."""

Given: TypeAlias = "Mapping[int, str | Sequence[Given]]"
"""What is to be encoded: tag to text, or to the items of a sequence."""

_VRS = {
    QUERY_RETRIEVE_LEVEL: b"CS",
    FAILURE_REASON: b"US",
    NUMBER_OF_SERIES_RELATED_INSTANCES: b"IS",
}
"""Of what is encoded here; all else is a UID or a sequence."""

_SEQUENCES = frozenset(
    {
        FAILED_SOP_SEQUENCE,
        REFERENCED_SOP_SEQUENCE,
        REFERENCED_SERIES_SEQUENCE,
        REFERENCED_IMAGE_SEQUENCE,
        REFERENCED_NON_IMAGE_SEQUENCE,
        SCHEDULED_STEP_ATTRIBUTES_SEQUENCE,
        DISCONTINUATION_REASON_CODE_SEQUENCE,
        PERFORMED_SERIES_SEQUENCE,
    }
)
"""Those that Implicit VR cannot tell from text, because it names no VR."""

_LONG_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
_ITEM = 0xFFFE_E000
_ITEM_END = 0xFFFE_E00D
_SEQUENCE_END = 0xFFFE_E0DD
_UNDEFINED = 0xFFFF_FFFF
_DEPTH = 8
_TAG = struct.Struct("<HH")
_LONG = struct.Struct("<I")
_SHORT = struct.Struct("<H")


def encode_attributes(attributes: Given, *, explicit: bool) -> bytes:
    """Return `attributes` as a data set, in Explicit or Implicit VR Little Endian."""
    return b"".join(
        _encode(tag, value, explicit=explicit) for tag, value in sorted(attributes.items())
    )


def decode_attributes(data: bytes, *, explicit: bool) -> Attributes:
    """Return the attributes of a data set in Explicit or Implicit VR Little Endian.

    Raises:
        ValueError: a length lies, the nesting is too deep, or the data set is cut off.
    """
    return _Reader(data, explicit=explicit).read(len(data), 0)


def read_text(attributes: Attributes, tag: int) -> str:
    """Return the text of an attribute, empty when it is absent.

    Raises:
        ValueError: it is a sequence, or no ASCII.
    """
    value = attributes.get(tag, b"")
    if not isinstance(value, bytes):
        raise ValueError(f"({tag:08X}) is a sequence")
    return value.decode("ascii").strip(" \0")


def read_items(attributes: Attributes, tag: int) -> list[Attributes]:
    """Return the items of a sequence, none when it is absent.

    Raises:
        ValueError: it is no sequence.
    """
    value = attributes.get(tag, [])
    if not isinstance(value, list):
        raise ValueError(f"({tag:08X}) is no sequence")
    return value


def _encode(tag: int, value: str | Sequence[Given], *, explicit: bool) -> bytes:
    if isinstance(value, str):
        vr = _VRS.get(tag, b"UI")
        raw = _SHORT.pack(int(value)) if vr == b"US" else value.encode("ascii")
        raw += (b"\0" if vr == b"UI" else b" ") * (len(raw) % 2)
    else:
        vr = b"SQ"
        items = (encode_attributes(item, explicit=explicit) for item in value)
        raw = b"".join(_pack_tag(_ITEM) + _LONG.pack(len(item)) + item for item in items)
    if not explicit:
        return _pack_tag(tag) + _LONG.pack(len(raw)) + raw
    if vr in _LONG_VRS:
        return _pack_tag(tag) + vr + b"\0\0" + _LONG.pack(len(raw)) + raw
    return _pack_tag(tag) + vr + _SHORT.pack(len(raw)) + raw


def _pack_tag(tag: int) -> bytes:
    return _TAG.pack(tag >> 16, tag & 0xFFFF)


class _Reader:
    """Reads a data set from its beginning to its end."""

    def __init__(self, data: bytes, *, explicit: bool) -> None:
        self._data = data
        self._explicit = explicit
        self._position = 0

    def read(self, end: int, depth: int) -> Attributes:
        """Read the attributes up to `end`, or up to the end of an item of undefined length."""
        if depth > _DEPTH:
            raise ValueError("sequences are nested too deep")
        attributes: Attributes = {}
        while self._position < end:
            tag = self._read_tag()
            if tag == _ITEM_END:
                self._take(4)
                break
            vr, length = self._read_length(tag)
            is_sequence = vr == b"SQ" or length == _UNDEFINED or tag in _SEQUENCES
            if is_sequence:
                attributes[tag] = list(self._read_items(length, end, depth))
            else:
                value = self._take(length)
                attributes[tag] = value if vr == b"US" else value.rstrip(b"\0 ")
        if self._position > end:
            raise ValueError("a value is longer than what holds it")
        return attributes

    def _read_items(self, length: int, end: int, depth: int) -> Iterator[Attributes]:
        last = end if length == _UNDEFINED else self._position + length
        if last > end:
            raise ValueError("a sequence is longer than what holds it")
        while self._position < last:
            tag = self._read_tag()
            size = _LONG.unpack(self._take(4))[0]
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                raise ValueError("a sequence holds what is no item")
            until = last if size == _UNDEFINED else self._position + size
            if until > last:
                raise ValueError("an item is longer than its sequence")
            yield self.read(until, depth + 1)

    def _read_tag(self) -> int:
        group, element = _TAG.unpack(self._take(4))
        return int(group << 16 | element)

    def _read_length(self, tag: int) -> tuple[bytes, int]:
        """Return the VR, as far as there is one, and the length of the value."""
        if not self._explicit:
            vr = b"US" if tag == FAILURE_REASON else b""
            return vr, int(_LONG.unpack(self._take(4))[0])
        vr = self._take(2)
        if vr not in _LONG_VRS:
            return vr, int(_SHORT.unpack(self._take(2))[0])
        self._take(2)
        return vr, int(_LONG.unpack(self._take(4))[0])

    def _take(self, length: int) -> bytes:
        taken = self._data[self._position : self._position + length]
        if len(taken) < length:
            raise ValueError("a value is longer than the data set")
        self._position += length
        return taken
