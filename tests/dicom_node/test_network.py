import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from dicom_node.door_settings import TLS
from dicom_node.errors import DeliveryError
from dicom_node.network import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    VERIFICATION,
    AssociationRejectedError,
    Requestor,
    normalize_address,
    open_association,
)
from dicom_node.tls import ClientSide, ServerSide
from dicom_node.upper_layer import encode_abort, encode_pdu, encode_reject
from dicom_node.wire import Limits
from doubles.certificates import make_authority, make_certificate
from doubles.raw_peer import MR, echo_command, p_data, pdv
from doubles.scripted_pacs import ScriptedPacs
from doubles.window_pacs import WindowPacs

pytestmark = pytest.mark.integration

IMPATIENT = Limits(message_seconds=0.3, pdu_seconds=0.3)


def request(port: int, *sop_classes: str, **options: object) -> Requestor:
    return open_association(
        "127.0.0.1",
        port,
        **{
            "called_ae_title": "PACS",
            "calling_ae_title": "NODE",
            "sop_classes": sop_classes or (VERIFICATION, MR),
            **options,
        },
    )


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """Give the port of a peer that answers what it reads with these bytes, one after another."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                for answer in answers:
                    sock.recv(65_536)
                    sock.sendall(answer)
                sock.settimeout(5)
                while sock.recv(65_536):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    """A certificate for this machine, its key and its authority."""
    folder = tmp_path_factory.mktemp("keys")
    authority = make_authority(folder)
    certificate, key = make_certificate(folder, authority, "node")
    return TLS(certificate=certificate, key=key, ca=authority)


@contextmanager
def trickling(tls: TLS | None) -> Iterator[int]:
    """Give the port of a peer that accepts, and then reads a little every now and then."""
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)

        def serve() -> None:
            sock, _ = listener.accept()
            if tls is not None:
                sock = ServerSide(tls).context().wrap_socket(sock, server_side=True)
            with sock, suppress(OSError):
                sock.recv(65_536)
                sock.sendall(accept())
                sock.settimeout(10)
                while not is_over.wait(0.02) and sock.recv(16_384):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        is_over.set()
        thread.join()


def accept(context_id: int = 1) -> bytes:
    """Return an A-ASSOCIATE-AC that takes one context in Explicit VR Little Endian."""
    syntax = EXPLICIT_VR_LITTLE_ENDIAN.encode()
    item = b"\x40\0" + len(syntax).to_bytes(2, "big") + syntax
    context = b"\x21\0" + (4 + len(item)).to_bytes(2, "big") + bytes((context_id, 0, 0, 0)) + item
    return encode_pdu(2, bytes(68) + context)


def test_echo_and_store_are_answered_by_another_implementation():
    data_set = b"\x08\0\x18\0UI\x06\x001.2.3\0"
    with ScriptedPacs() as pacs, request(pacs.port) as association:
        context = association.find_context(MR)

        assert association.echo() == 0
        assert association.store(context, MR, "1.2.3", data_set) == 0

    assert pacs.received == ["1.2.3"]
    assert pacs.datasets["1.2.3"].SOPInstanceUID == "1.2.3"


def test_no_response_is_lost_in_many_requests():
    with ScriptedPacs() as pacs, request(pacs.port) as association:
        assert {association.echo() for _ in range(300)} == {0}


def test_answers_to_requests_under_way_come_in_any_order():
    statuses = {"1.2.1": 0x0000, "1.2.2": 0xA700, "1.2.3": 0xB000}
    with (
        WindowPacs(grant=3, answers=statuses.__getitem__) as pacs,
        request(pacs.port, MR, window=8) as association,
    ):
        context = association.find_context(MR)
        asked = {association.begin_store(context, MR, uid, b"") for uid in statuses}
        answers = [association.read_status() for _ in statuses]

    assert pacs.answered == ["1.2.3", "1.2.2", "1.2.1"]
    assert {message_id for message_id, _ in answers} == asked
    assert [status for _, status in answers] == [0xB000, 0xA700, 0x0000]


@pytest.mark.parametrize(
    ("wanted", "granted", "asked", "window"),
    [
        (1, None, None, 1),
        (1, 4, None, 1),
        (8, None, 8, 1),
        (8, 3, 8, 3),
        (8, 0, 8, 8),
        (4, 9, 4, 4),
    ],
)
def test_a_window_is_used_as_far_as_it_was_asked_for_and_granted(wanted, granted, asked, window):
    with WindowPacs(granted) as pacs, request(pacs.port, MR, window=wanted) as association:
        assert association.window == window

    assert pacs.asked == [asked]


def test_a_pair_of_class_and_syntax_is_a_context_of_its_own():
    pairs = [(MR, EXPLICIT_VR_LITTLE_ENDIAN), (MR, IMPLICIT_VR_LITTLE_ENDIAN)]
    with (
        WindowPacs() as pacs,
        request(pacs.port, sop_classes=(), instances=pairs) as association,
    ):
        found = [association.find_context(*pair) for pair in pairs]

    assert pacs.proposed == [[(sop_class, (syntax,)) for sop_class, syntax in pairs]]
    assert [each.transfer_syntax for each in found] == [syntax for _, syntax in pairs]


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "tls"])
def test_a_peer_that_reads_ever_so_slowly_is_left_in_time(with_tls, tls):
    """Some bytes now and then keep no message alive for ever."""
    with (
        trickling(tls if with_tls else None) as port,
        pytest.raises(DeliveryError, match="send_timeout"),
        request(
            port,
            MR,
            limits=replace(IMPATIENT, send_seconds=0.5, flush_seconds=0.1),
            tls=ClientSide(tls) if with_tls else None,
        ) as association,
    ):
        association.store(association.find_context(MR), MR, "1.2.3", bytes(64 * 2**20))


def test_a_class_that_the_peer_does_not_take_has_no_context():
    with ScriptedPacs() as pacs, request(pacs.port, MR, "1.2.840.10008.5.1.4.1.1.2") as association:
        assert association.find_context(MR) is not None
        assert association.find_context("1.2.840.10008.5.1.4.1.1.2") is None


def test_a_rejection_says_whether_it_is_for_good():
    with ScriptedPacs(known="OTHER") as pacs, pytest.raises(AssociationRejectedError) as error:
        request(pacs.port)

    assert error.value.permanent
    assert error.value.retry


def test_a_transient_rejection_is_not_for_good():
    with (
        answering(encode_reject(2, 3, 1)) as port,
        pytest.raises(AssociationRejectedError) as error,
    ):
        request(port)

    assert not error.value.permanent


def test_a_peer_that_does_not_listen_is_tried_again_later():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(DeliveryError) as error:
        request(port)

    assert error.value.retry


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad\r\n\r\n",
        encode_abort(2, 0),
        accept()[:50],
        encode_pdu(2, b""),
        b"\2\0\xff",
    ],
    ids=["http", "abort", "cut", "empty", "length"],
)
def test_a_peer_that_does_not_answer_as_one_is_tried_again_later(answer):
    with answering(answer) as port, pytest.raises(DeliveryError) as error:
        request(port, limits=IMPATIENT)

    assert error.value.retry


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        encode_abort(0, 0),
        encode_pdu(5, bytes(4)),
        p_data(pdv(1, b"\xff" * 20, is_command=True)),
        p_data(pdv(7, b"", is_command=True)),
    ],
    ids=["silence", "abort", "release", "garbage", "context"],
)
def test_a_missing_response_is_told_and_the_association_aborted(answer):
    with (
        answering(accept(), answer) as port,
        pytest.raises(DeliveryError) as error,
        request(port, VERIFICATION, limits=IMPATIENT) as association,
    ):
        association.echo()

    assert error.value.retry
    assert error.value.status is None


def test_the_response_to_another_message_is_not_taken():
    with (
        answering(accept(), p_data(pdv(1, echo_command(), is_command=True))) as port,
        pytest.raises(DeliveryError),
        request(port, VERIFICATION, limits=IMPATIENT) as association,
    ):
        association.echo()


@pytest.mark.parametrize(
    ("text", "address"),
    [("::ffff:10.1.2.3", "10.1.2.3"), ("10.1.2.3", "10.1.2.3"), ("fe80::1%eth0", "fe80::1")],
)
def test_an_address_is_written_in_one_way(text, address):
    assert str(normalize_address(text)) == address
