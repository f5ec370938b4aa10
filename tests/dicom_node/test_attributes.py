from io import BytesIO
from random import Random

import pytest
from pydicom import Dataset, dcmwrite
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence

from dicom_node.attributes import (
    FAILED_SOP_SEQUENCE,
    FAILURE_REASON,
    QUERY_RETRIEVE_LEVEL,
    REFERENCED_SOP_CLASS_UID,
    REFERENCED_SOP_INSTANCE_UID,
    REFERENCED_SOP_SEQUENCE,
    SOP_INSTANCE_UID,
    TRANSACTION_UID,
    decode_attributes,
    encode_attributes,
    read_items,
    read_text,
)

BOTH = pytest.mark.parametrize("explicit", [True, False])


def make_report(*, undefined: bool = False) -> Dataset:
    report = Dataset()
    report.RetrieveAETitle = "ORTHANC"
    report.TransactionUID = "1.2.3"
    report.ReferencedSOPSequence = Sequence([make_item("1.2.3.1"), make_item("1.2.3.22")])
    failed = make_item("1.2.3.3")
    failed.FailureReason = 0x0112
    report.FailedSOPSequence = Sequence([failed])
    if undefined:
        for element in (report["ReferencedSOPSequence"], report["FailedSOPSequence"]):
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
    report.PatientID = "beyond"
    return report


def make_item(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    item.ReferencedSOPInstanceUID = uid
    return item


def encode(dataset: Dataset, *, explicit: bool) -> bytes:
    out = BytesIO()
    dcmwrite(out, dataset, implicit_vr=not explicit, little_endian=True)
    return out.getvalue()


@BOTH
@pytest.mark.parametrize("undefined", [True, False])
def test_report_as_pydicom_writes_it_is_read(explicit, undefined):
    data = encode(make_report(undefined=undefined), explicit=explicit)

    attributes = decode_attributes(data, explicit=explicit)

    kept = read_items(attributes, REFERENCED_SOP_SEQUENCE)
    [lost] = read_items(attributes, FAILED_SOP_SEQUENCE)
    assert read_text(attributes, TRANSACTION_UID) == "1.2.3"
    assert [read_text(item, REFERENCED_SOP_INSTANCE_UID) for item in kept] == [
        "1.2.3.1",
        "1.2.3.22",
    ]
    assert lost[FAILURE_REASON] == b"\x12\x01"
    assert attributes[0x0010_0020] == b"beyond"


@BOTH
def test_what_is_written_is_read_by_pydicom(explicit):
    item = {REFERENCED_SOP_CLASS_UID: "1.2.3", REFERENCED_SOP_INSTANCE_UID: "1.2.34"}
    data = encode_attributes(
        {
            TRANSACTION_UID: "2.25.7",
            REFERENCED_SOP_SEQUENCE: [item, item],
            QUERY_RETRIEVE_LEVEL: "IMAGE",
            SOP_INSTANCE_UID: "",
        },
        explicit=explicit,
    )

    read = read_dataset(BytesIO(data), is_implicit_VR=not explicit, is_little_endian=True)

    assert read.TransactionUID == "2.25.7"
    assert [each.ReferencedSOPInstanceUID for each in read.ReferencedSOPSequence] == ["1.2.34"] * 2
    assert (read.QueryRetrieveLevel, read.SOPInstanceUID) == ("IMAGE", "")


@BOTH
def test_every_cut_ends_in_a_value_error_or_in_less(explicit):
    data = encode(make_report(), explicit=explicit)

    for end in range(len(data)):
        try:
            decode_attributes(data[:end], explicit=explicit)
        except ValueError:
            continue


@BOTH
def test_no_garbage_raises_anything_else(explicit):
    random = Random(1)
    data = encode(make_report(undefined=True), explicit=explicit)

    for _ in range(3_000):
        broken = bytearray(data)
        for _ in range(random.randint(1, 8)):
            broken[random.randrange(len(broken))] = random.choice((0, 1, 0xFE, 0xFF, 0xE0, 0x0D))
        try:
            decode_attributes(bytes(broken), explicit=explicit)
        except ValueError:
            continue


@BOTH
def test_nesting_has_an_end(explicit):
    header = b"\x08\x00\x99\x11" + (b"SQ\0\0" if explicit else b"") + b"\xff" * 4
    deep = (header + b"\xfe\xff\x00\xe0" + b"\xff" * 4) * 10_000

    with pytest.raises(ValueError, match="too deep"):
        decode_attributes(deep, explicit=explicit)


def test_a_sequence_is_no_text_and_text_no_sequence():
    with pytest.raises(ValueError, match="is a sequence"):
        read_text({TRANSACTION_UID: []}, TRANSACTION_UID)
    with pytest.raises(ValueError, match="is no sequence"):
        read_items({REFERENCED_SOP_SEQUENCE: b"1.2"}, REFERENCED_SOP_SEQUENCE)
