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


def test_a_success_is_written_as_any_response_would_be():
    for uid in ("1.2.3", "1.2.33"):
        elements = {
            command.AFFECTED_SOP_CLASS_UID: "1.2.840.10008.5.1.4.1.1.4",
            command.COMMAND_FIELD: command.C_STORE_RQ | command.RESPONSE,
            command.MESSAGE_ID_BEING_RESPONDED_TO: 513,
            command.COMMAND_DATA_SET_TYPE: command.NO_DATA_SET,
            command.STATUS: command.SUCCESS,
            command.AFFECTED_SOP_INSTANCE_UID: uid,
        }

        quickly = command.encode_store_success(
            "1.2.840.10008.5.1.4.1.1.4", 513, uid.encode("ascii")
        )

        assert quickly == command.encode_command(elements)


def store_request() -> dict[int, int | str]:
    return {
        command.AFFECTED_SOP_CLASS_UID: "1.2.840.10008.5.1.4.1.1.4",
        command.COMMAND_FIELD: command.C_STORE_RQ,
        command.MESSAGE_ID: 0x2E5C,  # bytes that mean something in a pattern
        command.PRIORITY: 0,
        command.COMMAND_DATA_SET_TYPE: command.A_DATA_SET,
        command.AFFECTED_SOP_INSTANCE_UID: "1.2.3",
    }


def test_a_store_request_is_read_at_one_glance():
    data = command.encode_command(store_request())

    found = command.find_store_request("1.2.840.10008.5.1.4.1.1.4", data)

    assert found == (0x2E5C, b"1.2.840.10008.5.1.4.1.1.4", b"1.2.3", True)


@pytest.mark.parametrize(
    "change",
    [
        {command.COMMAND_FIELD: command.C_ECHO_RQ},
        {command.AFFECTED_SOP_CLASS_UID: "1.2.840.10008.5.1.4.1.1.2"},
        {0x1031: 7},  # Move Originator Message ID
    ],
)
def test_any_other_request_is_left_to_be_read_with_care(change):
    data = command.encode_command(store_request() | change)

    assert command.find_store_request("1.2.840.10008.5.1.4.1.1.4", data) is None


def test_a_store_request_whose_last_length_lies_is_left_to_be_read_with_care():
    data = command.encode_command(store_request())

    assert command.find_store_request("1.2.840.10008.5.1.4.1.1.4", data + b"\0\0") is None
    assert command.find_store_request("1.2.840.10008.5.1.4.1.1.4", data[:-1]) is None
