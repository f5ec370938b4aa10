from io import BytesIO

import pydicom
import pytest

from dicom_node.identifiers import IMPLEMENTATION_CLASS_UID
from dicom_node.part10 import decode_file_meta, encode_file_meta

MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"


def test_pydicom_reads_the_file_meta_that_is_written():
    meta = pydicom.dcmread(BytesIO(encode_file_meta(MR, "1.2.3", EXPLICIT))).file_meta

    assert meta.MediaStorageSOPClassUID == MR
    assert meta.MediaStorageSOPInstanceUID == "1.2.3"
    assert meta.TransferSyntaxUID == EXPLICIT
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID


def test_a_written_file_meta_comes_back():
    data = encode_file_meta(MR, "1.2.3", EXPLICIT)

    meta = decode_file_meta(data + b"\x08\0\x16\0UI\0\0")

    assert (meta.sop_class_uid, meta.sop_instance_uid) == (MR, "1.2.3")
    assert (meta.transfer_syntax_uid, meta.data_set_offset) == (EXPLICIT, len(data))


@pytest.mark.parametrize("cut", [0, 131, 140, 180])
def test_a_file_that_is_cut_off_is_named_so(cut):
    with pytest.raises(ValueError, match=r"DICOM file|not complete"):
        decode_file_meta(encode_file_meta(MR, "1.2.3", EXPLICIT)[:cut])
