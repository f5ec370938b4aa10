"""Elements as the bytes that they are."""

from io import BytesIO

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.elements import (
    LONGEST_COPY,
    copy_as_item,
    copy_elements,
    encode,
    keep_raw_text,
    read_bytes,
    read_numbers,
)
from doubles.series import make_series


def put_raw(dataset: Dataset, tag: int, vr: str | None, value: bytes) -> Dataset:
    implicit = vr is None
    dataset[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, implicit, True)
    return dataset


def read_again(instance: Dataset, *, implicit: bool) -> Dataset:
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    instance.file_meta.TransferSyntaxUID = syntax
    instance.set_original_encoding(None, None)
    buffer = BytesIO()
    instance.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (b"1", (1.0,)),
        (b" 1.50 \\.25e1 ", (1.5, 2.5)),
        (b"-0.5\\+3.\\1E-3", (-0.5, 3.0, 0.001)),
        (b"", None),
        (b"  ", None),
        (b"1\0", (1.0,)),
    ],
)
@pytest.mark.parametrize("vr", ["DS", None])
def test_numbers_are_read_from_text(
    text: bytes, numbers: tuple[float, ...] | None, vr: str | None
) -> None:
    dataset = put_raw(Dataset(), 0x00280030, vr, text)

    assert read_numbers(dataset, "PixelSpacing") == numbers


@pytest.mark.parametrize(
    "text", [b"1,5", b"nan", b"inf", b"1e999", b"0x10", b"1_0", b"1\\\\2", b"\xd9\xa1"]
)
def test_text_that_is_no_number_is_refused_and_not_repeated(text: bytes) -> None:
    dataset = put_raw(Dataset(), 0x00280030, "DS", text)

    with pytest.raises(ValueError, match=r"^Pixel Spacing holds a value that is not"):
        read_numbers(dataset, "PixelSpacing")


def test_numbers_of_binary_attributes_are_read_too() -> None:
    for implicit in (True, False):
        image = read_again(make_series()[0], implicit=implicit)

        assert read_numbers(image, "Rows") == (20.0,)
        assert read_numbers(image, "NumberOfFrames") is None


@pytest.mark.parametrize("implicit", [True, False])
def test_copy_has_the_bytes_of_its_source(implicit: bool) -> None:
    name = b"bro\xff\xfeken^x "
    source = read_again(make_series(character_set="ISO_IR 192")[0], implicit=implicit)
    put_raw(source, 0x00100010, None if implicit else "PN", name)
    target = make_series()[0]

    copy_elements(source, target, ["SpecificCharacterSet", "PatientName"])

    assert read_bytes(dcmread(BytesIO(encode(target))), "PatientName") == name.strip()


def test_items_are_copied_without_private_elements() -> None:
    item = Dataset()
    item.PatientID = "other"
    item.private_block(0x0011, "MAKER", create=True).add_new(1, "LO", "secret")
    source = make_series()[0]
    source.OtherPatientIDsSequence = [item]
    target = make_series()[0]

    copy_elements(read_again(source, implicit=False), target, ["OtherPatientIDsSequence"])

    (copied,) = dcmread(BytesIO(encode(target))).OtherPatientIDsSequence
    assert [element.keyword for element in copied] == ["PatientID"]


def test_text_inside_an_item_keeps_its_bytes() -> None:
    source = make_series(character_set="ISO_IR 192")[0]
    put_raw(source, 0x00080080, "LO", "病院".encode())
    target = make_series(character_set="ISO_IR 192")[0]

    target.ContributingEquipmentSequence = [copy_as_item(source, ["InstitutionName"])]
    keep_raw_text(target)

    (item,) = dcmread(BytesIO(encode(target))).ContributingEquipmentSequence
    assert item.InstitutionName == "病院"


def test_oversized_text_stays_behind() -> None:
    source = put_raw(Dataset(), 0x00104000, "LT", b"x" * (LONGEST_COPY + 2))
    target = Dataset()

    copy_elements(source, target, ["PatientComments"])

    assert "PatientComments" not in target


def test_what_is_absent_is_not_invented() -> None:
    target = Dataset()

    copy_elements(Dataset(), target, ["PatientComments", "OtherPatientIDsSequence"])

    assert len(target) == 0
    assert read_bytes(target, "PatientComments") == b""
