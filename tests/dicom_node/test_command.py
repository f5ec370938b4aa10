import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset

from dicom_node import command
from dicom_node.command import decode_command, encode_command, number
from dicom_node.upper_layer import ProtocolError

ECHO = {
    command.AFFECTED_SOP_CLASS_UID: "1.2.840.10008.1.1",
    command.COMMAND_FIELD: command.C_ECHO_RQ,
    command.MESSAGE_ID: 7,
    command.COMMAND_DATA_SET_TYPE: command.NO_DATA_SET,
}


def test_a_command_set_comes_back_as_it_was():
    elements = decode_command(encode_command(ECHO))

    assert elements[command.AFFECTED_SOP_CLASS_UID] == b"1.2.840.10008.1.1"
    assert elements[command.COMMAND_FIELD] == command.C_ECHO_RQ
    assert number(elements, command.MESSAGE_ID) == 7


def test_pydicom_reads_the_command_set_that_is_written():
    read = read_dataset(DicomBytesIO(encode_command(ECHO)), True, True)

    assert read.AffectedSOPClassUID == "1.2.840.10008.1.1"
    assert read.CommandGroupLength == len(encode_command(ECHO)) - 12
    assert read.MessageID == 7


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 7,
        encode_command(ECHO)[:-1],
        b"\x08\x00\x16\x00\x02\x00\x00\x001.",
        b"\x00\x00\x00\x01\x04\x00\x00\x00\x01\x00\x00\x00",
    ],
    ids=["header cut", "value cut", "group 0008", "number of four bytes"],
)
def test_what_is_no_command_set_ends_the_association(data):
    with pytest.raises(ProtocolError):
        decode_command(data)


def test_a_missing_number_ends_the_association():
    with pytest.raises(ProtocolError):
        number({}, command.MESSAGE_ID)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_raise_nothing_but_a_protocol_error(data):
    with contextlib.suppress(ProtocolError):
        decode_command(data)
