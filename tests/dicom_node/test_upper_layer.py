import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation

from dicom_node.upper_layer import (
    APPLICATION_CONTEXT,
    AssociationRequest,
    ContextResult,
    ProposedContext,
    ProtocolError,
    decode_accept,
    decode_request,
    encode_accept,
    encode_request,
)

MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
HEADER = 6

REQUEST = AssociationRequest(
    protocol_version=1,
    called_ae_title="NODE",
    calling_ae_title="PACS",
    application_context=APPLICATION_CONTEXT,
    contexts=(
        ProposedContext(context_id=1, abstract_syntax=MR, transfer_syntaxes=(EXPLICIT, IMPLICIT)),
    ),
    maximum_length=16_384,
)


def test_a_request_comes_back_as_it_was():
    assert decode_request(encode_request(REQUEST)[HEADER:]) == REQUEST


def test_pynetdicom_reads_the_request_that_is_written():
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(encode_request(REQUEST))

    primitive = pdu.to_primitive()
    assert primitive.called_ae_title == "NODE"
    assert primitive.calling_ae_title == "PACS"
    assert primitive.maximum_length_received == 16_384
    context = primitive.presentation_context_definition_list[0]
    assert (context.abstract_syntax, context.transfer_syntax) == (MR, [EXPLICIT, IMPLICIT])


def test_pynetdicom_reads_the_acceptance_that_is_written():
    body = encode_request(REQUEST)[HEADER:]
    results = [ContextResult(context_id=1, result=0, transfer_syntax=EXPLICIT)]
    encoded = encode_accept(body, results, 65_536)

    pdu = A_ASSOCIATE_AC()
    pdu.decode(encoded)

    assert pdu.presentation_context[0].transfer_syntax == EXPLICIT
    assert pdu.user_information.maximum_length == 65_536
    accept = decode_accept(encoded[HEADER:])
    assert accept.contexts == tuple(results)
    assert accept.maximum_length == 65_536


def test_pynetdicom_reads_the_window_that_is_asked_for():
    asking = replace(REQUEST, operations=8)
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(encode_request(asking))

    [window] = [
        each
        for each in pdu.to_primitive().user_information
        if isinstance(each, AsynchronousOperationsWindowNegotiation)
    ]
    assert window.maximum_number_operations_invoked == 8
    assert window.maximum_number_operations_performed == 1
    assert decode_request(encode_request(asking)[HEADER:]) == asking


def test_no_window_is_asked_for_where_one_at_a_time_is_enough():
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(encode_request(REQUEST))

    assert pdu.user_information.async_ops_window is None


@pytest.mark.parametrize("cut", [10, 67, 70, 120])
def test_a_request_that_is_cut_off_is_a_protocol_error(cut):
    with pytest.raises(ProtocolError):
        decode_request(encode_request(REQUEST)[HEADER:][:cut])


@given(st.binary(max_size=300), st.integers(0, 200))
@settings(max_examples=300, deadline=None)
def test_a_damaged_request_raises_nothing_but_a_protocol_error(noise, position):
    body = bytearray(encode_request(REQUEST)[HEADER:])
    body[position : position + len(noise)] = noise

    for decode in (decode_request, decode_accept):
        with contextlib.suppress(ProtocolError):
            decode(bytes(body))
