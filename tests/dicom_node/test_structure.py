import contextlib
import struct
from io import BytesIO

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node.errors import RefusedInstance
from dicom_node.structure import (
    INVALID_INSTANCE,
    MISMATCH,
    OVER_A_LIMIT,
    TRUNCATED,
    UNDECODABLE,
    Identity,
    Memory,
    StructureLimits,
    check_uid,
    read_identity,
)

MR = "1.2.840.10008.5.1.4.1.1.4"
LIMITS = StructureLimits()


def build_dataset() -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = MR
    dataset.SOPInstanceUID = "1.2.3.1"
    dataset.StudyInstanceUID = "1.2.3.2"
    dataset.SeriesInstanceUID = "1.2.3.3"
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3.9"
    dataset.ReferencedImageSequence = Sequence([item, item])
    dataset.add_new("PixelData", "OW", b"\1\2\3\4")
    return dataset


def encode(dataset: Dataset, *, explicit: bool = True, undefined: bool = False) -> bytes:
    if undefined:
        for element in dataset:
            if element.VR == "SQ":
                element.is_undefined_length = True
                for item in element.value:
                    item.is_undefined_length_sequence_item = True
    out = BytesIO()
    pydicom.dcmwrite(out, dataset, implicit_vr=not explicit, little_endian=True)
    return out.getvalue()


def walk(data: bytes, *, explicit: bool = True, limits: StructureLimits = LIMITS):
    return read_identity(data, explicit=explicit, limits=limits)


def refused(data: bytes, *, explicit: bool = True, limits: StructureLimits = LIMITS) -> int:
    with pytest.raises(RefusedInstance) as error:
        walk(data, explicit=explicit, limits=limits)
    return error.value.status


def nest(depth: int) -> Dataset:
    dataset = build_dataset()
    inner = Dataset()
    for _ in range(depth):
        outer = Dataset()
        outer.ContentSequence = Sequence([inner])
        inner = outer
    dataset.update(inner)
    return dataset


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("undefined", [True, False])
def test_a_sound_data_set_gives_its_identity(explicit, undefined):
    identity = walk(
        encode(build_dataset(), explicit=explicit, undefined=undefined), explicit=explicit
    )

    assert identity.sop_class_uid == MR
    assert identity.sop_instance_uid == "1.2.3.1"
    assert identity.study_instance_uid == "1.2.3.2"
    assert identity.series_instance_uid == "1.2.3.3"


@pytest.mark.parametrize("explicit", [True, False])
def test_a_data_set_cut_anywhere_inside_an_element_is_refused(explicit):
    data = encode(build_dataset(), explicit=explicit)
    borders = element_borders(data, explicit=explicit)

    for cut in range(1, len(data)):
        if cut not in borders:
            assert refused(data[:cut], explicit=explicit) in {TRUNCATED, UNDECODABLE}


def element_borders(data: bytes, *, explicit: bool) -> set[int]:
    stream = pydicom.dcmread(
        BytesIO(pydicom_file(data, explicit=explicit)), defer_size=None, force=True
    )
    borders, position = set(), 0
    for element in stream:
        out = BytesIO()
        one = Dataset()
        one.add(element)
        pydicom.dcmwrite(out, one, implicit_vr=not explicit, little_endian=True)
        position += len(out.getvalue())
        borders.add(position)
    return borders


def pydicom_file(data: bytes, *, explicit: bool) -> bytes:
    from dicom_node.part10 import encode_file_meta

    syntax = "1.2.840.10008.1.2.1" if explicit else "1.2.840.10008.1.2"
    return encode_file_meta(MR, "1.2.3.1", syntax) + data


def test_a_pixel_data_length_beyond_the_end_is_truncation():
    data = encode(build_dataset()).replace(
        b"\xe0\x7f\x10\x00OW\0\0\x04\0\0\0", b"\xe0\x7f\x10\x00OW\0\0\0\0\0\xf0"
    )

    assert refused(data) == TRUNCATED


@pytest.mark.parametrize("explicit", [True, False])
def test_fifty_bytes_of_ff_are_not_decodable(explicit):
    assert refused(b"\xff" * 50, explicit=explicit) == UNDECODABLE


def test_implicit_bytes_in_an_explicit_context_are_not_decodable():
    assert refused(encode(build_dataset(), explicit=False)) == UNDECODABLE


@pytest.mark.parametrize("group", [0x0000, 0x0002])
def test_a_command_or_file_meta_group_inside_the_data_set_is_refused(group):
    stray = struct.pack("<HH2sH", group, 0x0010, b"UI", 18) + b"1.2.840.10008.1.2\0"

    assert refused(stray + encode(build_dataset())) == UNDECODABLE


def test_a_second_sop_instance_uid_is_refused():
    element = struct.pack("<HH2sH", 0x0008, 0x0018, b"UI", 8) + b"1.2.3.4\0"

    assert refused(encode(build_dataset()) + element) == UNDECODABLE


def test_a_stray_delimiter_is_refused():
    assert refused(encode(build_dataset()) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)) == UNDECODABLE


@pytest.mark.parametrize("explicit", [True, False])
def test_nesting_is_accepted_to_its_limit_and_refused_beyond(explicit):
    walk(encode(nest(32), explicit=explicit), explicit=explicit)

    assert refused(encode(nest(33), explicit=explicit), explicit=explicit) == OVER_A_LIMIT


def test_nesting_of_undefined_length_is_refused_beyond_the_limit():
    head = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)

    assert refused(encode(build_dataset()) + (head + item) * 500) == OVER_A_LIMIT


def test_too_many_elements_are_refused():
    assert refused(encode(build_dataset()), limits=StructureLimits(elements=5)) == OVER_A_LIMIT


def test_too_many_bytes_outside_pixel_data_are_refused():
    limits = StructureLimits(bytes_outside_pixels=100)
    dataset = build_dataset()
    walk(encode(dataset), limits=limits)
    dataset.ImageComments = "x" * 100

    assert refused(encode(dataset), limits=limits) == OVER_A_LIMIT


def test_a_blob_that_only_begins_like_a_sequence_is_kept_in_implicit_vr():
    blob = b"\xfe\xff\x00\xe0\x10\0\0\0" + b"\xff" * 16
    private = struct.pack("<HHI", 0x0029, 0x1010, len(blob)) + blob

    data = encode(build_dataset(), explicit=False) + private

    assert walk(data, explicit=False).sop_instance_uid == "1.2.3.1"


def test_a_sequence_of_unknown_vr_is_read_as_implicit():
    content = (
        struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        + struct.pack("<HHI", 0x0029, 0x1002, 2)
        + b"ab"
        + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    unknown = struct.pack("<HH2sHI", 0x0029, 0x1010, b"UN", 0, 0xFFFFFFFF)

    walk(encode(build_dataset()) + unknown + content)


def test_encapsulated_pixel_data_needs_its_end():
    dataset = build_dataset()
    del dataset.PixelData
    head = encode(dataset) + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    fragments = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, 2)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)

    walk(head + fragments + b"ab" + end)
    assert refused(head + fragments + b"ab") == TRUNCATED


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
def test_a_missing_uid_is_a_mismatch(keyword):
    dataset = build_dataset()
    delattr(dataset, keyword)

    assert refused(encode(dataset)) == MISMATCH


@pytest.mark.parametrize("uid", [b"1.2.3", b"1.02.3", b"1.2.3\0", b"1.2.3 ", b"1" * 64])
def test_a_uid_seen_in_the_field_passes(uid):
    assert check_uid(uid) == uid.rstrip(b"\0 ").decode()


@pytest.mark.parametrize(
    "uid",
    [
        b"",
        b"1" * 65,
        b"../../x",
        b"..",
        b"1..2",
        b".1",
        b"1.",
        b"1.2\n",
        b"1.2\0.3",
        b"1.2.x",
        b"\xef\xbc\x91.2",  # a full-width digit
    ],
)
def test_a_uid_that_is_none_is_refused(uid):
    with pytest.raises(RefusedInstance) as error:
        check_uid(uid)

    assert error.value.status == INVALID_INSTANCE


@given(st.binary(max_size=400), st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused_and_nothing_else_happens(noise, explicit):
    assert refused(noise, explicit=explicit)


@given(st.integers(0, 200), st.integers(0, 255), st.booleans())
@settings(max_examples=300, deadline=None)
def test_one_wrong_byte_is_kept_or_refused(position, value, explicit):
    data = bytearray(encode(build_dataset(), explicit=explicit))
    data[position % len(data)] = value

    with contextlib.suppress(RefusedInstance):
        walk(bytes(data), explicit=explicit)


def verdict(data: bytes, *, explicit: bool, memory: Memory) -> Identity | int:
    try:
        return read_identity(data, explicit=explicit, limits=LIMITS, memory=memory)
    except RefusedInstance as error:
        return error.status


def build_rich_dataset() -> Dataset:
    dataset = build_dataset()
    inner = Dataset()
    inner.CodeValue = "113076"
    outer = Dataset()
    outer.PurposeOfReferenceCodeSequence = Sequence([inner])
    dataset.SourceImageSequence = Sequence([outer])
    dataset.PatientComments = "x" * 40
    dataset.add_new(0x00091001, "UN", b"\xfe\xff\x00\xe0\x04\0\0\0abcd")
    dataset.add_new("WindowCenter", "DS", "40")
    return dataset


@settings(max_examples=400, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), min_size=1, max_size=4),
    explicit=st.booleans(),
    undefined=st.booleans(),
)
def test_a_memory_of_earlier_walks_changes_no_verdict(changes, explicit, undefined):
    whole = encode(build_rich_dataset(), explicit=explicit, undefined=undefined)
    memory = Memory()
    for _ in range(3):
        assert verdict(whole, explicit=explicit, memory=memory) == walk(whole, explicit=explicit)
    changed = bytearray(whole)
    for position, value in changes:
        changed[position % len(whole)] = value

    remembering = verdict(bytes(changed), explicit=explicit, memory=memory)

    assert remembering == verdict(bytes(changed), explicit=explicit, memory=Memory())


def test_other_values_in_a_known_layout_are_read():
    memory = Memory()
    one, other = build_rich_dataset(), build_rich_dataset()
    other.SOPInstanceUID = "1.2.3.8"
    for _ in range(3):
        verdict(encode(one), explicit=True, memory=memory)

    identity = verdict(encode(other), explicit=True, memory=memory)

    assert isinstance(identity, Identity)
    assert identity.sop_instance_uid == "1.2.3.8"
    assert list(memory.layouts) == [len(encode(one))]
    assert list(memory.layouts.values()) != [None]
