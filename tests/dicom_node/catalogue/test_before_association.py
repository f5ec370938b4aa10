"""Rows of the catalogue before there is an association: what is answered, what the log tells."""

import contextlib
import random
import socket
import struct
import time
from dataclasses import replace

import pytest

from dicom_node import command
from dicom_node.upper_layer import (
    ProposedContext,
    decode_accept,
    decode_request,
    encode_pdu,
    encode_request,
)
from doubles.catalogue import row
from doubles.door_watch import (
    DEFLATED,
    DEFLATED_FRAMES,
    ECHO,
    ENCAPSULATED_PDF,
    NOBODY,
    RELEASE,
    RT_STRUCTURES,
    SOON,
    UNEXPECTED,
    UNRECOGNIZED,
    WRONG,
    abort_pdu,
    count_alerts,
    read_all,
    told,
    wait_until,
)
from doubles.raw_peer import (
    EXPLICIT,
    MR,
    RELEASE_RP,
    associate_request,
    p_data,
    pdv,
)
from doubles.receiver import Door, open_door

pytestmark = pytest.mark.integration


def damage(request: bytes, old: bytes, new: bytes) -> bytes:
    """Return a request with other bytes in it, of the same length."""
    assert request.count(old) == 1
    assert len(old) == len(new)
    return request.replace(old, new)


def with_contexts(*ids: int) -> bytes:
    contexts = tuple(
        ProposedContext(context_id=each % 256, abstract_syntax=MR, transfer_syntaxes=(EXPLICIT,))
        for each in ids
    )
    request = decode_request(associate_request()[6:])
    return encode_request(replace(request, contexts=contexts))


def with_items(items: bytes) -> bytes:
    """Return a request of which only the fixed part is kept."""
    return encode_pdu(1, associate_request()[6:74] + items)


@pytest.mark.parametrize(
    ("said", "answer", "event"),
    [
        row("U3", "4 GiB", b"\1\0\xff\xff\xff\xff", abort_pdu(0, 0), "pdu_length"),
        row("U7", "TLS", b"\x16\x03\x01\x02\0\1\0\1\xfc", abort_pdu(0, 0), UNRECOGNIZED),
        row("U8", "HTTP", b"GET / HTTP/1.1\r\nHost: CANARY\r\n\r\n", abort_pdu(0, 0), UNRECOGNIZED),
        row("U8", "nmap", b"\r\n\r\n", abort_pdu(0, 0), UNRECOGNIZED),
        row("U8", "random", random.Random(8).randbytes(5_000), abort_pdu(0, 0), UNRECOGNIZED),
        row("U9", "four bytes", b"\x99\0\0\0\0", abort_pdu(0, 0), UNRECOGNIZED),
        row("U9", "zero", bytes(6), abort_pdu(0, 0), UNRECOGNIZED),
        row("U10", "P-DATA", p_data(pdv(1, ECHO, is_command=True)), abort_pdu(0, 0), UNEXPECTED),
        row("U10", "release", RELEASE, abort_pdu(0, 0), UNEXPECTED),
        row("U10", "release response", encode_pdu(6, bytes(4)), abort_pdu(0, 0), UNEXPECTED),
        row("U10", "accept", encode_pdu(2, bytes(68)), abort_pdu(0, 0), UNEXPECTED),
        row("U10", "reject", encode_pdu(3, bytes(4)), abort_pdu(0, 0), UNEXPECTED),
        row("U10", "abort", encode_pdu(7, bytes(4)), None, "peer_aborted"),
        row("U14", "64 KiB and 1", b"\1\0\0\1\0\1", abort_pdu(0, 0), "pdu_length"),
        row("U14", "67 bytes", encode_pdu(1, bytes(67)), abort_pdu(0, 0), WRONG),
        row("U14", "long abort", encode_pdu(7, bytes(5)), abort_pdu(0, 0), "pdu_length"),
        row("U23", "2", associate_request(protocol_version=2), (1, 2, 2), "protocol_version"),
        row("U24", "1.2.3", associate_request(application_context="1.2.3"), (1, 1, 2), None),
        row("U25", "other", associate_request(called=NOBODY), (1, 1, 7), "called_ae_title"),
        row("U26", "stranger", associate_request(calling=NOBODY), (1, 1, 3), "calling_ae_title"),
        row("U26", "elsewhere", associate_request(calling="FAR"), (1, 1, 3), "calling_ae_title"),
        row("U27", "empty called", associate_request(called=""), (1, 1, 7), None),
        row("U27", "empty calling", associate_request(calling=""), (1, 1, 3), None),
        row("U27", "CR LF", associate_request(called="NODE\r\nCANARY"), (1, 1, 7), None),
        row("U27", "nul", associate_request(calling="SCANNER\0CANARY"), (1, 1, 3), None),
        row(
            "U27",
            "not ASCII",
            damage(associate_request(), b"SCANNER  ", b"SC\xc4NN\xe9R\xff "),
            (1, 1, 3),
            "calling_ae_title",
        ),
        row("U28", "path", associate_request(calling="../CANARY/X"), (1, 1, 3), None),
        row("U28", "shell", associate_request(calling="$(CANARY)"), (1, 1, 3), None),
        row("U28", "two", associate_request(called="NODE;CANARY"), (1, 1, 7), None),
        row("U29", "nothing", with_items(b""), (1, 2, 1), WRONG),
        row("U29", "no context", associate_request(()), (1, 2, 1), WRONG),
        row("U29", "no name", associate_request(application_context=""), (1, 2, 1), WRONG),
        row("U29", "lie", with_items(b"\x10\0\xff\xff1.2"), abort_pdu(0, 0), "item_length"),
        row("U29", "cut", with_items(b"\x10\0\0"), abort_pdu(0, 0), "item_length"),
        row("U29", "inner lie", with_items(b"\x20\0\0\2\1\0"), abort_pdu(0, 0), "item_length"),
        row("U30", "even", with_contexts(2), (1, 2, 1), WRONG),
        row("U30", "zero", with_contexts(0), (1, 2, 1), WRONG),
        row("U30", "twice", with_contexts(1, 1), (1, 2, 1), WRONG),
        row("U30", "129", with_contexts(*range(1, 259, 2)), (1, 2, 1), WRONG),
        row("U30", "20,000", with_contexts(*range(1, 40_001, 2)), abort_pdu(0, 0), "pdu_length"),
        row("U31", "1", associate_request(maximum_length=1), (1, 2, 1), WRONG),
        row("U31", "1,023", associate_request(maximum_length=1_023), (1, 2, 1), WRONG),
    ],
)
def test_a_wrong_beginning_gets_one_answer_and_one_line(
    door: Door,
    caplog: pytest.LogCaptureFixture,
    said: bytes,
    answer: tuple[int, ...] | None,
    event: str | None,
):
    with door.connect() as peer, contextlib.suppress(ConnectionError):
        peer.send(said)
        peer.socket.shutdown(socket.SHUT_WR)
        answers = read_all(peer)

    expected = (3, bytes((0, *answer))) if answer and len(answer) == 3 else answer
    assert answers == ([] if expected is None else [expected])
    assert len(told(caplog)) == 1
    assert event in {None, *told(caplog)}
    assert count_alerts(caplog) == (answer in {(1, 1, 3), (1, 1, 7)})


@pytest.mark.parametrize(
    ("request_of", "results"),
    [
        row("U31", "1,024", {"maximum_length": 1_024}, [0, 0]),
        row("U31", "any", {"maximum_length": 0}, [0, 0]),
        row("U30", "128", {"contexts": [(MR, (EXPLICIT,))] * 128}, [0] * 128),
        row("D14", "deflated", {"contexts": [(MR, (DEFLATED,))]}, [4]),
        row("D14", "deflated frames", {"contexts": [(MR, (DEFLATED_FRAMES,))]}, [4]),
        row("D27", "document", {"contexts": [(ENCAPSULATED_PDF, (EXPLICIT,))]}, [3]),
        row("D27", "structures", {"contexts": [(RT_STRUCTURES, (EXPLICIT,))]}, [3]),
    ],
)
def test_what_is_unusual_and_right_is_answered_and_not_told(door, caplog, request_of, results):
    with door.connect() as peer:
        assert peer.associate(associate_request(**request_of)) == results
        peer.send(RELEASE)
        assert read_all(peer) == [(RELEASE_RP, bytes(4))]

    assert told(caplog) == []


def padded_request(size: int) -> bytes:
    """Return an association request of so many bytes after its header."""
    bare = associate_request()[6:]
    item = bytes(size - len(bare) - 4)
    return encode_pdu(1, bare + b"\x99\0" + struct.pack(">H", len(item)) + item)


def padded_echo(size: int) -> bytes:
    """Return the command set of a C-ECHO of so many bytes, in two fragments."""
    long = ECHO + struct.pack("<HHI", 0, 0x0902, size - len(ECHO) - 8)
    long += b" " * (size - len(long))
    first = pdv(1, long[:9_000], is_command=True, is_last=False)
    return p_data(first) + p_data(pdv(1, long[9_000:], is_command=True))


@pytest.mark.catalogue("U14")
@pytest.mark.parametrize(("size", "is_taken"), [(65_536, True), (65_537, False)])
def test_an_association_request_may_have_64_kib(door, size, is_taken):
    with door.connect() as peer, contextlib.suppress(ConnectionError):
        peer.send(padded_request(size))

        assert peer.read_pdu()[0] == (2 if is_taken else 7)


@pytest.mark.catalogue("U20")
@pytest.mark.parametrize(("size", "is_taken"), [(16_384, True), (16_386, False)])
def test_a_command_set_may_have_16_kib(door, size, is_taken):
    with door.connect() as peer:
        peer.associate()
        peer.send(padded_echo(size))

        assert peer.read_pdu()[0] == (4 if is_taken else 7)


@pytest.mark.catalogue("U15")
def test_what_is_announced_is_never_more_than_what_is_taken(tmp_path):
    with open_door(tmp_path, pdu="16 KiB") as door, door.connect() as peer:
        peer.send(associate_request())

        assert decode_accept(peer.read_pdu()[1]).maximum_length == 16_384


@pytest.mark.catalogue("U33")
def test_a_user_identity_is_no_credential_and_only_its_type_is_told(door, caplog):
    caplog.set_level("INFO")
    secret = b"CANARY"
    identity = b"\1\0" + struct.pack(">H", len(secret)) + secret + b"\0\0"
    item = b"\x58\0" + struct.pack(">H", len(identity)) + identity
    good, stranger = associate_request(), associate_request(calling=NOBODY)

    def with_identity(request: bytes) -> bytes:
        start = request.rindex(b"\x50\0", 0, request.index(b"\x51\0\0\4"))
        length = int.from_bytes(request[start + 2 : start + 4], "big") + len(item)
        body = request[6 : start + 2] + length.to_bytes(2, "big") + request[start + 4 :] + item
        return encode_pdu(1, body)

    with door.connect() as peer:
        assert peer.associate(with_identity(good)) == [0, 0]
        peer.send(RELEASE)
        read_all(peer)
    assert told(caplog) == []
    (line,) = [each for each in caplog.records if "user_identity" in each.getMessage()]
    assert vars(line)["type"] == 1

    with door.connect() as peer:
        peer.send(with_identity(stranger))
        assert peer.read_rejection() == (1, 1, 3)
    assert told(caplog) == ["calling_ae_title"]


@pytest.mark.parametrize(
    "said",
    [
        row("U1", "nothing", b""),
        row("U2", "one byte", b"\1"),
        row("U3", "1,000 bytes claimed", b"\1\0\0\0\3\xe8"),
        row("U3", "half a request", associate_request()[:100]),
    ],
)
def test_a_silent_connection_is_closed_without_a_word(hasty, caplog, said):
    with hasty.connect() as peer:
        peer.send(said)
        began = time.monotonic()

        assert read_all(peer) == []
        assert time.monotonic() - began < SOON

    assert told(caplog) == ["pdu_timeout" if said else "connection_timeout"]


@pytest.mark.catalogue("U3")
def test_a_trickle_does_not_extend_the_deadline(hasty, caplog):
    began = time.monotonic()
    with hasty.connect() as peer, contextlib.suppress(ConnectionError):
        for byte in associate_request():
            peer.send(bytes([byte]))
            time.sleep(0.05)

    assert time.monotonic() - began < SOON
    assert told(caplog) == ["pdu_timeout"]


@pytest.mark.catalogue("U4")
def test_stuck_connections_keep_no_good_peer_out(tmp_path, caplog):
    with (
        open_door(tmp_path, associations=4, first_pdu="60 s") as door,
        contextlib.ExitStack() as stack,
    ):
        for number in range(12):
            stuck = stack.enter_context(door.connect(source="127.0.0.2"))
            stuck.send(b"\1\0\0\0"[: number % 4])
        with door.connect() as peer:
            peer.associate()
            began = time.monotonic()

            assert peer.echo() == command.SUCCESS
            assert time.monotonic() - began < SOON


@pytest.mark.catalogue("U5")
def test_idle_sockets_cost_next_to_nothing(tmp_path):
    with (
        open_door(tmp_path, first_pdu="60 s") as door,
        contextlib.ExitStack() as stack,
    ):
        for number in range(64):
            stack.enter_context(door.connect(source=f"127.0.0.{2 + number % 4}"))
        wait_until(lambda: door.connections() == 64)
        began = time.process_time()
        time.sleep(2)

        assert time.process_time() - began < 0.4


@pytest.mark.catalogue("U4")
def test_more_connections_than_allowed_are_closed_and_told_once(door, caplog):
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(door.connect(source="127.0.0.2"))
        wait_until(lambda: door.connections() == 16)
        for _ in range(5):
            with door.connect(source="127.0.0.2") as peer:
                assert read_all(peer) == []
        assert told(caplog) == ["too_many_connections"]

        with door.connect() as peer:
            peer.associate()
            assert peer.echo() == command.SUCCESS
