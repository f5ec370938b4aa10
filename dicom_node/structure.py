"""Walk a data set's structure before it is kept: every length, every nesting, the four UIDs.

pydicom reads a lying length or a cut-off value without a word, so the door looks for itself. What
can be walked from end to end is kept verbatim, however odd; what cannot is refused, because no
later reader would see what its sender meant. No value is looked at but the UIDs.

Source: PS3.5 chapter 7 and annex A.4. The statuses are those of PS3.4 table B.2-1 and PS3.7
annex C, with sub-codes of our own.
"""

import functools
import mmap
import re
import struct
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from dicom_node.errors import RefusedInstance

NO_DATA_SET = 0xC101
UNDECODABLE = 0xC102
TRUNCATED = 0xC103
OVER_A_LIMIT = 0xC104
MISMATCH = 0xA900
INVALID_INSTANCE = 0x0117

_UID_BYTES = 64
_UID = re.compile(rb"[0-9]+(\.[0-9]+)*")

_SOP_CLASS_UID = 0x0008_0016
_SOP_INSTANCE_UID = 0x0008_0018
_STUDY_INSTANCE_UID = 0x0020_000D
_SERIES_INSTANCE_UID = 0x0020_000E
_IDENTITY = (_SOP_CLASS_UID, _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID)
_PIXEL_DATA = 0x7FE0_0010
_PIXEL_ATTRIBUTES = frozenset({0x7FE0_0008, 0x7FE0_0009, _PIXEL_DATA})
_NEVER_PLAIN = _PIXEL_ATTRIBUTES.union(_IDENTITY)
_MOST_REMEMBERED = 8_192
_MOST_LAYOUTS = 256
_LONGEST_LAYOUT = 16_384
_LONGEST_SEQUENCE = 1_024
_ITEM = 0xFFFE_E000
_ITEM_END = 0xFFFE_E00D
_SEQUENCE_END = 0xFFFE_E0DD
_ITEM_BYTES = b"\xfe\xff\x00\xe0"
_DELIMITER_GROUP = 0xFFFE
_META_GROUP = 0x0002
_UNDEFINED = 0xFFFF_FFFF
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"}
    | {b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
_TAG = struct.Struct("<HH")
_TAG_LENGTH = struct.Struct("<HHI")
_EXPLICIT = struct.Struct("<HH2sH")
_LONG_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureLimits:
    """How much structure one instance may have.

    Attributes:
        bytes_outside_pixels: of all values that are not Pixel Data.
    """

    depth: int = 32
    elements: int = 200_000
    bytes_outside_pixels: int = 64 * 1024 * 1024


class Identity(NamedTuple):
    """The UIDs that say what an instance is and where it belongs."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str


@functools.lru_cache(maxsize=1_024)
def check_uid(raw: bytes) -> str:
    """Return the UID that `raw` holds, without padding.

    Raises:
        RefusedInstance: it is empty, too long, or not digits and single points (0x0117).
    """
    text = raw.rstrip(b"\0 ")
    if len(text) > _UID_BYTES or not _UID.fullmatch(text):
        raise RefusedInstance("a UID is not valid", INVALID_INSTANCE)
    return text.decode("ascii")


class Layout(NamedTuple):
    """The structure of one whole data set, apart from the values of elements without any.

    Two data sets of one length with one layout differ in such values only, so that a walk through
    the second would come to the same end.

    Attributes:
        spans: where the bytes are that a walk looks at: headers, and elements with structure.
        content: those bytes.
        identity: where the values lie that `Identity` holds, in its order.
    """

    spans: struct.Struct
    content: tuple[bytes, ...]
    identity: tuple[slice, ...]


class Memory:
    """What walks have met before, so that the next one need not take it apart again.

    Scanners write the same headers and the same code sequences into one instance after another.
    Nothing is remembered that could be judged otherwise in another place: a header says how long
    an element without structure is, and a top-level sequence is remembered byte for byte. For one
    set of limits.

    Attributes:
        steps: by Explicit VR or not, the eight bytes of a header to the length of the element.
        sequences: the bytes of an element to how many elements and value bytes are in it.
        layouts: by the length of a data set in Explicit VR; None when it was met only once.
    """

    def __init__(self) -> None:
        self.steps: dict[bool, dict[bytes, int]] = {True: {}, False: {}}
        self.sequences: dict[bytes, tuple[int, int]] = {}
        self.layouts: dict[int, Layout | None] = {}


K = TypeVar("K")
V = TypeVar("V")


def _remember(table: dict[K, V], key: K, value: V, most: int = _MOST_REMEMBERED) -> None:
    if len(table) >= most:  # somebody makes them up
        table.clear()
    table[key] = value


class BeyondHeadError(Exception):
    """The structure goes on beyond the bytes at hand."""


def read_identity(
    data: bytes | memoryview | mmap.mmap,
    *,
    explicit: bool,
    limits: StructureLimits,
    start: int = 0,
    length: int | None = None,
    memory: Memory | None = None,
) -> Identity:
    """Walk a whole data set and return its identity.

    Args:
        data: a data set as it came, or its first bytes.
        explicit: Explicit VR Little Endian, or one of the encapsulated transfer syntaxes;
            otherwise Implicit VR Little Endian.
        limits: how much structure is walked.
        start: where in `data` the data set begins.
        length: of the whole data set; None: it ends with `data`.
        memory: of earlier walks with these limits.

    Raises:
        RefusedInstance: the walk does not end where the bytes end, the data set exceeds a limit,
            or a UID is missing or not valid; `status` says which.
        BeyondHeadError: more than the first bytes are needed to say so.
    """
    end = len(data) if length is None else start + length
    memory = memory or Memory()
    values = _recall(data, start, end, memory) if explicit else None
    if values is None:
        if isinstance(data, memoryview):
            data = bytes(data)
        walk = _Walk(data, start, end, explicit=explicit, limits=limits, memory=memory)
        walk.run()
        values = [walk.found.get(tag, b"") for tag in _IDENTITY]
    if not all(value.rstrip(b"\0 ") for value in values):
        raise RefusedInstance("a UID is missing in the data set", MISMATCH)
    sop_class, sop_instance, study, series = map(check_uid, values)
    return Identity(
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        series_instance_uid=series,
        study_instance_uid=study,
    )


def _recall(
    data: bytes | memoryview | mmap.mmap, start: int, end: int, memory: Memory
) -> list[bytes] | None:
    """Return the values of the identity where an earlier walk has met this layout."""
    layout = memory.layouts.get(end - start)
    if (
        layout is None
        or layout.spans.size > len(data) - start
        or layout.spans.unpack_from(data, start) != layout.content
    ):
        return None
    return [bytes(data[start + place.start : start + place.stop]) for place in layout.identity]


class _MalformedError(Exception):
    """The bytes at hand are no structure; inside a guessed sequence that only ends the guess."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Level(NamedTuple):
    """A data set or a sequence that the walk is inside of.

    Attributes:
        limit: no byte of it lies here or beyond.
        delimited: it is of undefined length and ends with a delimiter.
        guessed: Implicit VR says no VR; its first bytes look like a sequence's.
        begin: where the element of a sequence begins that may be remembered as a whole.
        counted: elements and bytes that were counted before it.
    """

    is_sequence: bool
    limit: int
    delimited: bool
    explicit: bool
    guessed: bool = False
    begin: int | None = None
    counted: tuple[int, int] = (0, 0)


class _Walk:
    """One walk through one data set, without recursion."""

    def __init__(
        self,
        data: bytes | mmap.mmap,
        start: int,
        end: int,
        *,
        explicit: bool,
        limits: StructureLimits,
        memory: Memory,
    ) -> None:
        self.found: dict[int, bytes] = {}
        self._data = data
        self._readable = len(data)
        self._limits = limits
        self._memory = memory
        self._position = start
        self._elements = 0
        self._bytes = 0
        self._start = start
        self._places: dict[int, slice] = {}
        self._spans: list[tuple[int, int]] = []  # of structure, so far, between these positions
        self._begin: int | None = None  # of the top-level element with structure we are in
        self._levels = [_Level(is_sequence=False, limit=end, delimited=False, explicit=explicit)]

    def run(self) -> None:
        """Walk to the end."""
        explicit, end = self._levels[0].explicit, self._levels[0].limit
        self._walk()
        last = self._spans[-1][1] if self._spans else self._start
        fits = last <= min(self._readable, self._start + _LONGEST_LAYOUT)
        if explicit and fits and len(self._places) == len(_IDENTITY):
            layouts, length = self._memory.layouts, end - self._start
            _remember(layouts, length, self._layout() if length in layouts else None, _MOST_LAYOUTS)

    def _layout(self) -> Layout:
        position, parts = self._start, []
        for begin, end in self._spans:
            parts.append(f"{begin - position}x{end - begin}s")
            position = end
        spans = struct.Struct("".join(parts))
        return Layout(
            spans=spans,
            content=spans.unpack_from(self._data, self._start),
            identity=tuple(self._places[tag] for tag in _IDENTITY),
        )

    def _walk(self) -> None:
        while self._levels:
            level = self._levels[-1]
            if self._begin is not None and len(self._levels) == 1:
                self._spans.append((self._begin, self._position))
                self._begin = None
            if self._position == level.limit and not level.delimited:
                self._levels.pop()
                if level.begin is not None:
                    self._remember_sequence(level)
                continue
            try:
                if level.is_sequence:
                    self._read_item(level)
                else:
                    self._skip_plain(level)
                    if self._position < level.limit or level.delimited:
                        self._read_element(level)
            except _MalformedError as error:
                self._end_guess(error.status)

    def _end_guess(self, status: int) -> None:
        """Take the innermost guessed sequence for a plain value, or refuse when there is none."""
        while self._levels:
            level = self._levels.pop()
            if level.guessed:
                self._position = level.limit
                return
        text = "the data set is cut off" if status == TRUNCATED else "the data set is not decodable"
        raise RefusedInstance(text, status)

    def _skip_plain(self, level: _Level) -> None:
        """Skip elements whose headers are remembered."""
        data, steps, limit = self._data, self._memory.steps[level.explicit], level.limit
        position = start = self._position
        count = 0
        met: list[tuple[int, int]] = []
        while position < limit and (step := steps.get(data[position : position + 8])) is not None:
            if not level.explicit:
                value = data[position + 8 : position + 12]
                if value == _ITEM_BYTES or len(value) < len(_ITEM_BYTES):
                    break  # perhaps a sequence, which Implicit VR does not tell from a value
            met.append((position, position + 8))
            position += step
            count += 1
        if len(self._levels) == 1:
            self._spans += met
        if position > level.limit:
            raise _MalformedError(TRUNCATED)
        self._position = position
        self._count(count)
        self._count_bytes(position - start - count * _TAG_LENGTH.size)

    def _read_item(self, level: _Level) -> None:
        tag, length = self._tag_and_length(level)
        if tag == _SEQUENCE_END and level.delimited and not length:
            self._levels.pop()
        elif tag == _ITEM:
            self._count()
            self._enter(level, length, is_sequence=False, explicit=level.explicit)
        else:
            raise _MalformedError(UNDECODABLE)

    def _read_element(self, level: _Level) -> None:
        self._need(level, _TAG_LENGTH.size)
        begin = self._position
        group, element = _TAG.unpack_from(self._data, begin)
        tag = group << 16 | element
        if tag == _ITEM_END and level.delimited:
            self._tag_and_length(level)
            self._levels.pop()
            return
        if group == _DELIMITER_GROUP or group <= _META_GROUP:
            # A stray delimiter hides what follows it; group 0002 here would replace our own.
            raise _MalformedError(UNDECODABLE)
        self._count()
        is_top = len(self._levels) == 1
        vr, length = self._vr_and_length(level)
        if is_top:
            self._begin = begin
        if length == _UNDEFINED:
            self._read_undefined(level, tag, vr)
        elif length > level.limit - self._position:
            raise _MalformedError(TRUNCATED)
        elif vr == b"SQ":
            self._read_sequence(level, begin, length)
        elif vr == b"" and self._looks_like_sequence(tag, length):
            self._enter(level, length, is_sequence=True, explicit=False, guessed=True)
        else:
            header = self._position - begin
            if header == _TAG_LENGTH.size and tag not in _NEVER_PLAIN:
                steps = self._memory.steps[level.explicit]
                _remember(steps, self._data[begin : self._position], header + length)
            if is_top:
                self._begin = None
                self._spans.append((begin, self._position))
            self._read_value(tag, length)

    def _read_sequence(self, level: _Level, begin: int, length: int) -> None:
        """Skip a sequence of which every byte was walked before, or enter it."""
        end = self._position + length
        is_short = length <= _LONGEST_SEQUENCE and end <= self._readable and len(self._levels) == 1
        known = self._memory.sequences.get(self._data[begin:end]) if is_short else None
        if known is None:
            counted = (self._elements, self._bytes)
            self._enter(level, length, is_sequence=True, explicit=True)
            if is_short:
                self._levels[-1] = self._levels[-1]._replace(begin=begin, counted=counted)
            return
        self._position = end
        self._count(known[0])
        self._count_bytes(known[1])

    def _remember_sequence(self, level: _Level) -> None:
        elements, size = level.counted
        whole = self._data[level.begin : self._position]
        _remember(self._memory.sequences, whole, (self._elements - elements, self._bytes - size))

    def _vr_and_length(self, level: _Level) -> tuple[bytes, int]:
        """Read an element's header; the VR is empty in Implicit VR."""
        if not level.explicit:
            return b"", self._tag_and_length(level)[1]
        _, _, vr, length = _EXPLICIT.unpack_from(self._data, self._position)
        self._position += _EXPLICIT.size
        if vr in _SHORT_VRS:
            return vr, length
        if not (vr.isalpha() and vr.isupper()):
            raise _MalformedError(UNDECODABLE)
        # Every VR of the future has the long form (PS3.5 section 6.2).
        self._need(level, _LONG_LENGTH.size)
        (length,) = _LONG_LENGTH.unpack_from(self._data, self._position)
        self._position += _LONG_LENGTH.size
        return vr, length

    def _read_undefined(self, level: _Level, tag: int, vr: bytes) -> None:
        if tag == _PIXEL_DATA and vr in (b"OB", b"OW", b"UN"):
            self._skip_encapsulated(level)
        elif vr in (b"SQ", b""):
            self._enter(level, _UNDEFINED, is_sequence=True, explicit=level.explicit)
        elif vr == b"UN":  # its content is Implicit VR, whatever is around it (PS3.5 6.2.2)
            self._enter(level, _UNDEFINED, is_sequence=True, explicit=False)
        else:
            raise _MalformedError(UNDECODABLE)

    def _read_value(self, tag: int, length: int) -> None:
        if tag not in _PIXEL_ATTRIBUTES:
            self._count_bytes(length)
        if tag in _IDENTITY and len(self._levels) == 1:
            if tag in self.found:
                raise _MalformedError(UNDECODABLE)  # readers differ in which of two they take
            self._need(self._levels[0], length)
            place = slice(self._position, self._position + length)
            self.found[tag] = self._data[place]
            self._places[tag] = slice(place.start - self._start, place.stop - self._start)
        self._position += length

    def _count_bytes(self, length: int) -> None:
        self._bytes += length
        if self._bytes > self._limits.bytes_outside_pixels:
            raise RefusedInstance("too many bytes outside Pixel Data", OVER_A_LIMIT)

    def _skip_encapsulated(self, level: _Level) -> None:
        while True:
            tag, length = self._tag_and_length(level)
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                raise _MalformedError(UNDECODABLE)
            if length > level.limit - self._position:
                raise _MalformedError(TRUNCATED)
            self._count()
            self._position += length

    def _enter(
        self,
        level: _Level,
        length: int,
        *,
        is_sequence: bool,
        explicit: bool,
        guessed: bool = False,
    ) -> None:
        delimited = length == _UNDEFINED
        if not delimited and length > level.limit - self._position:
            raise _MalformedError(TRUNCATED)
        self._levels.append(
            _Level(
                is_sequence=is_sequence,
                limit=level.limit if delimited else self._position + length,
                delimited=delimited,
                explicit=explicit,
                guessed=guessed,
            )
        )
        if len(self._levels) > 2 * self._limits.depth + 1:  # sequence and item are two levels
            raise RefusedInstance("sequences are nested too deeply", OVER_A_LIMIT)

    def _looks_like_sequence(self, tag: int, length: int) -> bool:
        if tag in _PIXEL_ATTRIBUTES or length < _TAG_LENGTH.size:
            return False
        self._need(self._levels[-1], _TAG_LENGTH.size)
        return self._data[self._position : self._position + 4] == _ITEM_BYTES

    def _tag_and_length(self, level: _Level) -> tuple[int, int]:
        self._need(level, _TAG_LENGTH.size)
        group, element, length = _TAG_LENGTH.unpack_from(self._data, self._position)
        self._position += _TAG_LENGTH.size
        return group << 16 | element, length

    def _need(self, level: _Level, size: int) -> None:
        if size > level.limit - self._position:
            raise _MalformedError(TRUNCATED)
        if self._position + size > self._readable:
            raise BeyondHeadError

    def _count(self, number: int = 1) -> None:
        self._elements += number
        if self._elements > self._limits.elements:
            raise RefusedInstance("too many elements", OVER_A_LIMIT)
