"""The catalogue of bad inputs at the door: what is answered, and how often the log tells it."""

import ast
import contextlib
import logging
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dicom_node import command
from dicom_node.complaints import AUDIT
from dicom_node.recorder import UNWELL
from dicom_node.store import Durability
from dicom_node.upper_layer import (
    ProposedContext,
    decode_accept,
    decode_request,
    encode_pdu,
    encode_request,
)
from doubles.catalogue import ELSEWHERE, ROWS, row
from doubles.raw_peer import (
    EXPLICIT,
    IMPLICIT,
    MR,
    RELEASE_RP,
    RELEASE_RQ,
    VERIFICATION,
    RawPeer,
    associate_request,
    data_set,
    echo_command,
    element,
    p_data,
    pdv,
    store_command,
)
from doubles.receiver import Door, open_door

pytestmark = pytest.mark.integration

CT = "1.2.840.10008.5.1.4.1.1.2"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
RT_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
DEFLATED = "1.2.840.10008.1.2.1.99"
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
HASTY = {"first_pdu": "1 s", "each_pdu": "1 s", "idle": "1 s", "message": "1 s", "send": "1 s"}
SOON = 10.0  # seconds; the deadlines of HASTY, on a machine that has other things to do as well
ECHO = echo_command()
RELEASE = encode_pdu(RELEASE_RQ, bytes(4))
SECRETS = ("CANARY", "9.9.9")
"""Every text that a peer supplies here has one of them in it, where it can."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("shared")) as door:
        yield door


@pytest.fixture(scope="module")
def shared_hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("hasty"), no_context="500 ms", **HASTY) as door:
        yield door


def refresh(door: Door, caplog: pytest.LogCaptureFixture) -> Door:
    """Let the door be empty, and tell everything as if for the first time."""
    wait_until(lambda: threading_connections() == 0)
    door.complaints._said.clear()
    caplog.clear()
    return door


@pytest.fixture
def door(shared: Door, caplog: pytest.LogCaptureFixture) -> Door:
    return refresh(shared, caplog)


@pytest.fixture
def hasty(shared_hasty: Door, caplog: pytest.LogCaptureFixture) -> Door:
    return refresh(shared_hasty, caplog)


def threading_connections() -> int:
    return sum(thread.name == "connection" for thread in threading.enumerate())


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert holds()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the events of all warnings and worse, which hold no word of a peer's."""
    records = [record for record in caplog.records if record.name.startswith("dicom_node")]
    said = " ".join(str(vars(record)) for record in records)
    assert not [secret for secret in SECRETS if secret in said]
    loud = [each for each in records if each.levelno >= logging.WARNING and each.levelno != AUDIT]
    return [record.getMessage().removeprefix("receive.") for record in loud]


def count_alerts(caplog: pytest.LogCaptureFixture) -> int:
    """Return how many security alerts there are (PS3.15 A.5, 110113)."""
    return sum(record.levelno == AUDIT for record in caplog.records)


def read_all(peer: RawPeer) -> list[tuple[int, bytes]]:
    """Return every PDU until the other side closes."""
    return list(iter(peer.read_pdu, None))


def abort_pdu(source: int, reason: int) -> tuple[int, bytes]:
    return 7, bytes((0, 0, source, reason))


# -- before there is an association ---------------------------------------------------------------


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


NOBODY = "CANARYTITLE"
UNRECOGNIZED, UNEXPECTED, WRONG = "unrecognized_pdu", "unexpected_pdu", "association_request"


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
        wait_until(lambda: threading_connections() == 64)
        began = time.process_time()
        time.sleep(2)

        assert time.process_time() - began < 0.4


@pytest.mark.catalogue("U4")
def test_more_connections_than_allowed_are_closed_and_told_once(door, caplog):
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(door.connect(source="127.0.0.2"))
        wait_until(lambda: threading_connections() == 16)
        for _ in range(5):
            with door.connect(source="127.0.0.2") as peer:
                assert read_all(peer) == []
        assert told(caplog) == ["too_many_connections"]

        with door.connect() as peer:
            peer.associate()
            assert peer.echo() == command.SUCCESS


# -- in an association ----------------------------------------------------------------------------

STORE = pdv(3, store_command("9.9.9.1"), is_command=True)
MORE = pdv(3, b"x", is_command=False, is_last=False)
LAST = pdv(3, data_set("9.9.9.1"), is_command=False)
COMMAND_PIECE = pdv(1, b"", is_command=True, is_last=False)


def command_set(**elements: int) -> bytes:
    """Return a PDU with a command set of these elements."""
    numbers = {getattr(command, name.upper()): value for name, value in elements.items()}
    return p_data(pdv(1, command.encode_command(numbers), is_command=True))


@pytest.mark.parametrize(
    ("said", "abort", "event"),
    [
        row("U11", "request", associate_request(), (2, 2), UNEXPECTED),
        row("U12", "0x99", b"\x99\0\0\0\0\0", (2, 1), UNRECOGNIZED),
        row("U12", "zero", bytes(6), (2, 1), UNRECOGNIZED),
        row("U13", "release response", encode_pdu(6, bytes(4)), (2, 2), UNEXPECTED),
        row("U14", "release", encode_pdu(5, bytes(70_000)), (2, 6), "pdu_length"),
        row("U14", "short release", encode_pdu(5, bytes(3)), (2, 6), "pdu_length"),
        row("U14", "abort", encode_pdu(7, bytes(5)), (2, 6), "pdu_length"),
        row("U15", "and 1", b"\4\0" + struct.pack(">I", 131_073), (2, 6), "pdu_length"),
        row("U15", "4 GiB", b"\4\0\xff\xff\xff\xff", (2, 6), "pdu_length"),
        row("U16", "negative", p_data(b"\xff\xff\xff\xff\3\3"), (2, 6), "pdv_length"),
        row("U16", "beyond", p_data(struct.pack(">IBB", 500, 3, 3)), (2, 6), "pdv_length"),
        row("U16", "by one", p_data(struct.pack(">IBB", 3, 3, 3)), (2, 6), "pdv_length"),
        row("U17", "length 0", p_data(b"\0\0\0\0"), (2, 6), "pdv_length"),
        row("U17", "length 1", p_data(b"\0\0\0\1\3"), (2, 6), "pdv_length"),
        row("U17", "half a length", p_data(b"\0\0"), (2, 6), "pdv_length"),
        row("U18", "17 times", p_data() * 17, (2, 6), "empty_pdus"),
        row("U19", "4,097", p_data(COMMAND_PIECE * 4_097), (2, 6), "pdv_length"),
        row("U20", "empty pieces", p_data(COMMAND_PIECE * 4_000) * 5, (0, 0), "command_length"),
        row(
            "U20",
            "over 16 KiB",
            p_data(pdv(1, bytes(9_000), is_command=True, is_last=False)) * 2,
            (0, 0),
            "command_length",
        ),
        row("U21", "data first", p_data(LAST), (0, 0), "message_order"),
        row("U21", "a command for data", p_data(STORE, STORE), (0, 0), "message_order"),
        row(
            "U21",
            "another context",
            p_data(STORE, pdv(1, b"x", is_command=False)),
            (0, 0),
            "message_order",
        ),
        row(
            "U21",
            "half a command elsewhere",
            p_data(COMMAND_PIECE, pdv(3, ECHO, is_command=True)),
            (0, 0),
            "message_order",
        ),
        row("U21", "release inside", p_data(STORE, MORE) + RELEASE, (0, 0), "message_order"),
        row("U22", "not accepted", p_data(pdv(5, ECHO, is_command=True)), (0, 0), "context_id"),
        row("U22", "even", p_data(pdv(2, ECHO, is_command=True)), (0, 0), "context_id"),
        row("D1", "garbage", p_data(pdv(1, b"\xff" * 30, is_command=True)), (0, 0), "command_set"),
        row("D1", "empty", p_data(pdv(1, b"", is_command=True)), (0, 0), "command_set"),
        row("D1", "no field", command_set(message_id=1), (0, 0), "command_set"),
        row("D1", "unknown field", command_set(command_field=0x7777), (0, 0), "command_field"),
        row("D1", "a response", command_set(command_field=0x8001), (0, 0), "command_field"),
        row("D1", "no message id", command_set(command_field=0x0030), (0, 0), "command_set"),
        row(
            "D1",
            "long number",
            p_data(pdv(1, b"\0\0\0\1\4\0\0\0\x30\0\0\0", is_command=True)),
            (0, 0),
            "command_set",
        ),
    ],
)
def test_a_broken_rule_ends_the_association_with_one_abort_and_one_line(
    door, caplog, said, abort, event
):
    with door.connect() as peer:
        peer.associate()
        with contextlib.suppress(ConnectionError):
            peer.send(said)
        peer.socket.shutdown(socket.SHUT_WR)

        assert read_all(peer) == [abort_pdu(*abort)]

    assert told(caplog) == [event]


@pytest.mark.parametrize(
    "said",
    [
        row("U15", "as announced", p_data(pdv(1, ECHO, is_command=True))),
        row("U18", "16 times", p_data() * 16 + p_data(pdv(1, ECHO, is_command=True))),
        row("U19", "4,096", p_data(COMMAND_PIECE * 4_095 + pdv(1, ECHO, is_command=True))),
    ],
)
def test_what_is_just_allowed_is_answered_and_not_told(door, caplog, said):
    with door.connect() as peer:
        peer.associate()
        peer.send(said)

        assert peer.read_response()[command.STATUS] == command.SUCCESS
        peer.send(RELEASE)
        assert read_all(peer) == [(RELEASE_RP, bytes(4))]

    assert told(caplog) == []


@pytest.mark.catalogue("U15")
def test_the_longest_pdu_is_taken(door, caplog):
    piece = 131_072 - 6
    content = data_set("1.2.3.15", bytes(2 * piece))
    with door.connect() as peer:
        peer.associate()

        assert peer.store("1.2.3.15", content, fragment=piece) == command.SUCCESS

    assert "pdu_length" not in told(caplog)


@pytest.mark.catalogue("U21")
def test_a_second_last_fragment_belongs_to_no_message(door, caplog):
    with door.connect() as peer:
        peer.associate()
        peer.send(p_data(pdv(3, store_command("1.2.3.21"), is_command=True)))
        end = pdv(3, data_set("1.2.3.21"), is_command=False)
        peer.send(p_data(end, end))

        assert peer.read_response()[command.STATUS] == command.SUCCESS
        assert peer.read_abort() == (0, 0)

    assert told(caplog) == ["message_order"]


@pytest.mark.parametrize(
    ("contexts", "said", "answers", "event"),
    [
        row("U32", "idle", [(ENCAPSULATED_PDF, (EXPLICIT,))], b"", [(0, 0)], "idle_timeout"),
        row("U38", "idle", [(VERIFICATION, (IMPLICIT,))], b"", [(0, 0)], "idle_timeout"),
        row("U37", "half a PDU", [(MR, (EXPLICIT,))], p_data(STORE)[:20], [], "pdu_timeout"),
        row("U37", "half an instance", [(MR, (EXPLICIT,))], b"", [(0, 0)], "message_timeout"),
    ],
)
def test_an_association_that_falls_silent_is_ended(hasty, caplog, contexts, said, answers, event):
    if event == "message_timeout":
        said = p_data(pdv(1, store_command("9.9.9.1"), is_command=True))
    with hasty.connect() as peer:
        peer.associate(associate_request(contexts))
        peer.send(said)
        began = time.monotonic()

        assert read_all(peer) == [abort_pdu(*each) for each in answers]
        assert time.monotonic() - began < SOON

    assert told(caplog) == [event]


@pytest.mark.catalogue("U36")
def test_a_reset_inside_an_instance_leaves_what_was_acknowledged_and_nothing_else(door, caplog):
    with door.connect() as peer:
        peer.associate()
        assert peer.store("1.2.3.36", data_set("1.2.3.36")) == command.SUCCESS
        before = list(door.store.iterate_incoming())
        peer.send(
            p_data(STORE) + p_data(pdv(3, bytes(100_000), is_command=False, is_last=False)) * 30
        )
        wait_until(lambda: bool(list(door.store.path("incoming").rglob("*.part"))))
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    wait_until(lambda: not list(door.store.path("incoming").rglob("*.part")))
    assert list(door.store.iterate_incoming()) == before
    wait_until(lambda: threading_connections() == 0)
    assert told(caplog) == ["connection_lost"]


@pytest.mark.catalogue("U39")
def test_instances_sent_without_waiting_are_answered_one_by_one(door, caplog):
    uids = [f"1.2.39.{number}" for number in range(100)]
    with door.connect() as peer:
        peer.associate()

        def send() -> None:
            for uid in uids:
                content = pdv(3, data_set(uid, bytes(20_000), study="1.2.39"), is_command=False)
                peer.send(p_data(pdv(3, store_command(uid), is_command=True)) + p_data(content))

        sender = threading.Thread(target=send)
        sender.start()
        assert {peer.read_response()[command.STATUS] for _ in uids} == {command.SUCCESS}
        sender.join()

    assert len(door.stored("1.2.39")) == 100


@pytest.mark.parametrize("size", [row("U40", "350 KB", 50_000), row("U40", "7 MB", 1_000_000)])
def test_garbage_after_our_abort_is_thrown_away_up_to_a_bound(door, caplog, size):
    with door.connect() as peer:
        peer.associate()
        with contextlib.suppress(ConnectionError):
            peer.send(b"\x99\0\0\0\0\0" + b"garbage" * size)
        began = time.monotonic()

        assert read_all(peer) in ([abort_pdu(2, 1)], [])  # [] where the garbage was too much
        assert time.monotonic() - began < SOON
        assert read_all(peer) == []

    assert told(caplog) == [UNRECOGNIZED]


@pytest.mark.catalogue("U40")
def test_a_peer_that_does_not_close_after_our_abort_is_closed(tmp_path):
    with open_door(tmp_path, flush="500 ms") as door, door.connect() as peer:
        peer.associate()
        peer.send(b"\x99\0\0\0\0\0")
        assert peer.read_abort() == (2, 1)

        wait_until(lambda: threading_connections() == 0, SOON)


@pytest.mark.catalogue("U41")
def test_a_peer_that_reads_no_answers_is_cut_off(tmp_path, caplog):
    with open_door(tmp_path, messages_per_second=100_000, **HASTY) as door:
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        peer.connect(("127.0.0.1", door.port))
        peer.settimeout(10)
        with peer:
            peer.sendall(associate_request())
            peer.recv(1_000)
            flood = p_data(pdv(1, ECHO, is_command=True)) * 1_000
            with contextlib.suppress(OSError):
                for _ in range(500):
                    peer.sendall(flood)
            wait_until(lambda: threading_connections() == 0)

    assert told(caplog) == ["send_timeout"]


# -- who takes too much ---------------------------------------------------------------------------


@pytest.mark.catalogue("U34")
def test_one_peer_cannot_take_all_associations(tmp_path, caplog):
    with (
        open_door(tmp_path, associations=4, associations_per_peer=2) as door,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(2):
            stack.enter_context(door.connect()).associate()
        third = stack.enter_context(door.connect())
        third.send(associate_request())
        assert third.read_rejection() == (2, 3, 2)
        assert told(caplog) == ["too_many_associations"]

        other = stack.enter_context(door.connect())
        other.associate(associate_request(calling="TESTER"))
        assert other.echo() == command.SUCCESS


@pytest.mark.catalogue("U35")
def test_nobody_comes_in_while_the_node_stops(tmp_path, caplog):
    with open_door(tmp_path) as door, door.connect() as peer:
        wait_until(lambda: threading_connections() == 1)
        stopping = threading.Thread(target=door.receiver.stop)
        stopping.start()
        wait_until(lambda: not door.receiver._thread.is_alive())
        time.sleep(0.3)
        peer.send(associate_request())

        assert peer.read_rejection() == (2, 3, 1)
        peer.socket.close()
        stopping.join()

    assert told(caplog) == ["stopping"]


@pytest.mark.catalogue("U35")
def test_nobody_comes_in_without_room_on_the_disk(tmp_path, caplog):
    with open_door(tmp_path, minimum_free="1000000 GiB") as door, door.connect() as peer:
        peer.send(associate_request())

        assert peer.read_rejection() == (2, 3, 1)

    assert told(caplog) == ["disk_almost_full"]


@pytest.mark.catalogue("U35")
def test_nobody_comes_in_while_the_disk_is_gone(tmp_path, caplog):
    with open_door(tmp_path) as door, door.connect() as peer:
        root = door.store.path("incoming").parent
        aside = root.rename(root.with_name("aside"))
        peer.send(associate_request())

        assert peer.read_rejection() == (2, 3, 1)
        aside.rename(root)

    assert told(caplog) == ["disk_gone"]


@pytest.mark.catalogue("U35")
def test_nobody_comes_in_while_the_ledger_is_silent(tmp_path, caplog):
    with open_door(tmp_path, Durability.SYNCED) as door:
        door.spool.recorder.hear_of(UNWELL)
        with door.connect() as peer:
            peer.send(associate_request())
            assert peer.read_rejection() == (2, 3, 1)
        assert told(caplog) == ["ledger_silent"]

        door.spool.recorder.hear_of(None)
        with door.connect() as peer:
            assert peer.associate() == [0, 0]


@pytest.mark.catalogue("U42")
def test_a_flood_of_messages_is_slowed_down(tmp_path, caplog):
    with open_door(tmp_path, messages_per_second=20) as door, door.connect() as peer:
        peer.associate()
        began = time.monotonic()
        peer.send(p_data(pdv(1, ECHO, is_command=True)) * 120)  # of which 100 were saved up

        assert {peer.read_response()[command.STATUS] for _ in range(120)} == {command.SUCCESS}
        assert time.monotonic() - began > 0.9


@pytest.mark.catalogue("U42")
def test_a_peer_that_associates_too_often_is_told_to_come_later(tmp_path, caplog):
    with open_door(tmp_path, associations_per_second=1) as door:
        answers = []
        while len(answers) < 100 and 3 not in {kind for kind, _ in answers}:
            with door.connect() as peer:
                peer.send(associate_request())
                answers.append(peer.read_pdu())
                peer.send(RELEASE)
                read_all(peer)

        assert answers[-1] == (3, bytes((0, 2, 3, 1)))
        assert len(answers) > 5  # which it had saved up
        assert told(caplog) == ["too_fast"]
        with door.connect() as other:
            other.associate(associate_request(calling="TESTER"))


@pytest.mark.catalogue("U43")
def test_a_storm_of_associations_stops_nobody_who_is_in(tmp_path, caplog):
    answers: list[tuple[int, ...] | None] = []
    is_over = threading.Event()

    def storm(door: Door) -> None:
        with contextlib.suppress(OSError), door.connect() as peer:
            peer.send(associate_request())
            pdu = peer.read_pdu()
            answers.append(None if pdu is None else (pdu[0], *pdu[1][1:4]))
            is_over.wait(60)

    with (
        open_door(tmp_path, associations=6, associations_per_peer=4, room="200 ms") as door,
        door.connect() as good,
    ):
        good.associate()
        storms = [threading.Thread(target=storm, args=(door,)) for _ in range(40)]
        for each in storms:
            each.start()
        statuses = [good.store(uid, data_set(uid)) for uid in (f"1.2.43.{k}" for k in range(30))]
        wait_until(lambda: len(answers) == 40)
        is_over.set()
        for each in storms:
            each.join()

    assert set(statuses) == {command.SUCCESS}
    assert sum(each is not None and each[0] == 2 for each in answers) == 3
    assert {each for each in answers if each is not None and each[0] != 2} == {(3, 2, 3, 2)}
    assert "too_many_associations" in told(caplog)
    assert len(told(caplog)) <= 3  # and of connections that were too many, and are closed at last


# -- messages and data sets -----------------------------------------------------------------------


def nested(depth: int) -> bytes:
    """Return sequences in one another, of undefined length."""
    begin = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    begin += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return begin * depth + end * depth


def pixels_that_claim(length: int) -> bytes:
    return data_set("9.9.9.1")[:-14] + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, length)


ITEMS = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 8 * 200_000)
ITEMS += struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 200_000
LIE = struct.pack("<HH2sHI", 0x0040, 0xA731, b"UN", 0, 0xFFFFFFF0)
EMPTY_ELEMENT = element(0x0029, 0x1001, b"DS", b"")
ELEMENTS = EMPTY_ELEMENT * 199_995  # beside the six of `data_set`
UID = "9.9.9.1"


@pytest.mark.parametrize(
    ("uid", "content", "status"),
    [
        row("D4", "other instance", "1.2.3.5", data_set(UID), 0xA900),
        row("D4", "other class", UID, data_set(UID, sop_class=CT), 0xA900),
        row("D5", "65 digits", "9.9.9" + "1" * 60, data_set(UID), 0x0117),
        row("D5", "65 digits inside", UID, data_set("9.9.9" + "1" * 60), 0x0117),
        row("D6", "path", "../../CANARY", data_set(UID), 0x0117),
        row("D6", "path inside", UID, data_set("../../CANARY"), 0x0117),
        row("D6", "path as study", UID, data_set(UID, study="../../CANARY"), 0x0117),
        row("D6", "up", "..", data_set(UID), 0x0117),
        row("D6", "empty", "", data_set(UID), 0x0117),
        row("D6", "newline", "9.9.9\n1", data_set(UID), 0x0117),
        row("D6", "nul", "9.9.9\0001", data_set(UID), 0x0117),
        row("D6", "full width", UID, data_set("９.９"), 0x0117),
        row("D8", "study", UID, data_set(UID, study=""), 0xA900),
        row("D8", "series", UID, data_set(UID, series=""), 0xA900),
        row("D8", "instance", UID, data_set(""), 0xA900),
        row("D8", "class", UID, data_set(UID, sop_class=""), 0xA900),
        row("D9", "ff", UID, b"\xff" * 50, 0xC102),
        row("D9", "random", UID, random.Random(9).randbytes(5_000), 0xC102),
        row("D10", "4 GB of pixels", UID, pixels_that_claim(0xFFFFFFF0), 0xC103),
        row("D10", "cut off", UID, data_set(UID, bytes(8_192))[:-4_192], 0xC103),
        row("D10", "by one", UID, data_set(UID)[:-1], 0xC103),
        row("D11", "33", UID, data_set(UID, more=nested(33)), 0xC104),
        row("D11", "5,000", UID, data_set(UID, more=nested(5_000)), 0xC104),
        row("D12", "200,001", UID, data_set(UID, more=ELEMENTS), 0xC104),
        row("D12", "200,000 items", UID, data_set(UID, more=ITEMS), 0xC104),
        row("D12", "4 GB of values", UID, data_set(UID, more=LIE), 0xC103),
    ],
)
def test_what_cannot_be_kept_is_refused_with_one_line_and_the_association_goes_on(
    door, caplog, uid, content, status
):
    before = list(door.store.iterate_incoming())
    with door.connect() as peer:
        peer.associate()

        assert peer.store(uid, content, fragment=60_000) == status
        assert list(door.store.iterate_incoming()) == before
        assert told(caplog) == ["instance_refused"]
        assert peer.echo() == command.SUCCESS
        peer.send(RELEASE)
        read_all(peer)

    assert told(caplog) == ["instance_refused"]


@pytest.mark.parametrize(
    ("uid", "content"),
    [
        row("D11", "32", "1.2.11.1", data_set("1.2.11.1", more=nested(32))),
        row("D5", "64 digits", "1" * 64, data_set("1" * 64)),
        row("D12", "200,000", "1.2.12", data_set("1.2.12", more=EMPTY_ELEMENT * 199_994)),
        row("D29", "first", "1.2.29", data_set("1.2.29")),
        row("D29", "again", "1.2.29", data_set("1.2.29")),
    ],
)
def test_what_can_be_kept_is_kept_and_not_told(door, caplog, uid, content):
    with door.connect() as peer:
        peer.associate()

        assert peer.store(uid, content) == command.SUCCESS
        peer.send(RELEASE)
        read_all(peer)

    assert [kept for kept in door.stored() if content in kept] != []
    assert told(caplog) == []


@pytest.mark.catalogue("D29")
def test_the_same_instance_again_is_stored_once(door):
    with door.connect() as peer:
        peer.associate()
        before = len(list(door.store.iterate_incoming()))
        statuses = [peer.store("1.2.29.9", data_set("1.2.29.9")) for _ in range(3)]

    assert statuses == [command.SUCCESS] * 3
    assert len(list(door.store.iterate_incoming())) == before + 1


@pytest.mark.catalogue("D12")
def test_too_many_bytes_outside_the_pixels_are_refused(tmp_path, caplog):
    text = struct.pack("<HH2sHI", 0x0040, 0xA160, b"UT", 0, 60_000) + b" " * 60_000
    with open_door(tmp_path, outside_pixels="100 KiB") as door, door.connect() as peer:
        peer.associate()

        assert peer.store("1.2.3.1", data_set("1.2.3.1", more=text)) == command.SUCCESS
        assert peer.store(UID, data_set(UID, more=text * 2)) == 0xC104

        assert told(caplog) == ["instance_refused"]


@pytest.mark.catalogue("D13")
def test_an_instance_over_the_limit_is_cut_off_and_leaves_nothing(tmp_path, caplog):
    with open_door(tmp_path, instance="3 MiB") as door, door.connect() as peer:
        peer.associate()
        piece = p_data(pdv(3, bytes(65_000), is_command=False, is_last=False))
        with contextlib.suppress(ConnectionError):
            peer.send(p_data(STORE) + piece * 60)

        assert read_all(peer) == [abort_pdu(0, 0)]
        wait_until(lambda: threading_connections() == 0)
        assert list(door.store.path("incoming").rglob("*.*")) == []

    assert told(caplog) == ["instance_too_large"]


@pytest.mark.catalogue("D13")
def test_an_instance_of_just_the_limit_is_taken(tmp_path):
    content = data_set("1.2.3.1", bytes(2**20 - len(data_set("1.2.3.1", b""))))
    with open_door(tmp_path, instance="1 MiB") as door:
        with door.connect() as peer:
            peer.associate()
            assert peer.store("1.2.3.1", content) == command.SUCCESS
        with door.connect() as peer:
            peer.associate()
            peer.send(p_data(pdv(3, store_command(UID), is_command=True)))
            for start in range(0, 2**20 + 1, 2**16):
                piece = (content + b"\0")[start : start + 2**16]
                peer.send(p_data(pdv(3, piece, is_command=False, is_last=len(piece) == 1)))
            assert peer.read_abort() == (0, 0)


@pytest.mark.parametrize(
    ("field", "has_data"),
    [
        row("D1", "C-FIND", 0x0020, True),
        row("D1", "C-MOVE", 0x0021, True),
        row("D1", "N-CREATE", 0x0140, False),
        row("D1", "N-DELETE", 0x0150, False),
    ],
)
def test_a_service_that_is_not_offered_is_not_recognized(door, caplog, field, has_data):
    elements = {
        command.COMMAND_FIELD: field,
        command.MESSAGE_ID: 5,
        command.COMMAND_DATA_SET_TYPE: command.A_DATA_SET if has_data else command.NO_DATA_SET,
    }
    request = pdv(3, command.encode_command(elements), is_command=True)
    query = pdv(3, b"CANARY", is_command=False) if has_data else b""
    with door.connect() as peer:
        peer.associate()
        peer.send(p_data(request, query))

        response = peer.read_response()
        assert response[command.STATUS] == 0x0211
        assert response[command.MESSAGE_ID_BEING_RESPONDED_TO] == 5
        assert peer.echo() == command.SUCCESS
        peer.send(RELEASE)
        read_all(peer)

    assert told(caplog) == []


@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        row("D2", "none", {"has_data": False}, 0xC101),
        row("D3", "other class", {"sop_class_uid": CT}, 0x0122),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_one_line(door, caplog, request_of, status):
    with door.connect() as peer:
        peer.associate()
        peer.send(p_data(pdv(3, store_command(UID, **request_of), is_command=True)))
        if request_of.get("has_data", True):
            peer.send(p_data(LAST))

        response = peer.read_response()
        assert response[command.STATUS] == status
        comment = response[command.ERROR_COMMENT]
        assert 0 < len(comment) <= 64
        peer.send(RELEASE)
        read_all(peer)

    assert told(caplog) == ["instance_refused"]


@pytest.mark.catalogue("D7")
def test_a_uid_with_leading_zeros_is_taken_and_told_once(door, caplog):
    uid = "9.9.9.07"
    with door.connect() as peer:
        peer.associate()
        assert peer.store(uid, data_set(uid, study="9.9.9.070")) == command.SUCCESS
        peer.send(RELEASE)
        read_all(peer)

    (flag,) = [each for each in caplog.records if "uid_nonconformant" in each.getMessage()]
    assert vars(flag)["instances"] == 1


@pytest.mark.catalogue("D30")
def test_another_content_under_the_same_uid_is_taken_and_set_aside(door, caplog):
    with door.connect() as peer:
        peer.associate()
        contents = [data_set("1.2.30.1", pixel, study="1.2.30") for pixel in (b"\1\2", b"\3\4")]
        statuses = [peer.store("1.2.30.1", each) for each in contents * 2]
        peer.send(RELEASE)
        read_all(peer)

    assert statuses == [command.SUCCESS] * 4
    (first,) = door.stored("1.2.30")
    assert first.endswith(contents[0])
    aside = [door.store.read(path) for path in door.store.iterate_quarantine()]
    assert len([each for each in aside if each.endswith(contents[1])]) == 1
    assert [event for event in told(caplog) if event == "uid_conflict"] == ["uid_conflict"]


@pytest.mark.catalogue("D31")
def test_of_two_contents_at_once_one_has_the_uid(door):
    both = threading.Barrier(2)
    statuses = []

    def send(pixel: bytes) -> None:
        with door.connect() as peer:
            peer.associate()
            both.wait(20)
            statuses.append(peer.store("1.2.31.1", data_set("1.2.31.1", pixel, study="1.2.31")))

    senders = [threading.Thread(target=send, args=(pixel,)) for pixel in (b"\5\6", b"\7\x08")]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()

    assert statuses == [command.SUCCESS] * 2
    (first,) = door.stored("1.2.31")
    others = [door.store.read(path)[-2:] for path in door.store.iterate_quarantine()]
    assert {first[-2:]} | (set(others) & {b"\5\6", b"\7\x08"}) == {b"\5\6", b"\7\x08"}


@pytest.mark.catalogue("D41")
def test_a_file_begins_with_zeros_of_our_own(door):
    with door.connect() as peer:
        peer.associate()
        assert peer.store("1.2.41", data_set("1.2.41", study="1.2.41.1")) == command.SUCCESS

    (kept,) = door.stored("1.2.41.1")
    assert kept[:132] == bytes(128) + b"DICM"


@pytest.mark.catalogue("D42")
def test_no_line_holds_a_word_of_a_peer(door, caplog):
    caplog.set_level("DEBUG")
    with door.connect() as peer:
        peer.associate()
        peer.store("9.9.9.42", data_set("9.9.9.42", study="9.9.9"))
        peer.store("9.9.9.43", data_set("9.9.9.44"))
        peer.send(associate_request(calling=NOBODY))
        peer.seconds_until_closed()
    for request in (associate_request(calling=NOBODY), associate_request(called=NOBODY)):
        with door.connect() as peer:
            peer.send(request)
            peer.read_rejection()

    assert set(told(caplog)) == {
        *("instance_refused", UNEXPECTED, "calling_ae_title", "called_ae_title")
    }


# -- how often it is told -------------------------------------------------------------------------


def test_a_flood_of_complaints_is_one_line_and_then_its_number(door, caplog, monkeypatch):
    now = [time.monotonic()]
    monkeypatch.setattr("dicom_node.complaints.time.monotonic", lambda: now[0])
    for _ in range(20):
        with door.connect() as peer:
            peer.send(b"\x99")
            read_all(peer)
    assert told(caplog) == [UNRECOGNIZED]

    now[0] += 11
    with door.connect() as peer:
        peer.send(b"\x99")
        read_all(peer)
    wait_until(lambda: len(told(caplog)) == 2)
    assert vars(caplog.records[-1])["left_out"] == 19


@pytest.mark.parametrize("is_reset", [False, True])
def test_probes_of_a_load_balancer_leave_nothing_behind(door, caplog, is_reset):
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(1_000):
        with door.connect() as peer:
            if is_reset:
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    wait_until(lambda: threading_connections() == 0)
    assert abs(len(list(Path("/proc/self/fd").iterdir())) - descriptors) <= 2
    assert set(told(caplog)) <= {"too_many_connections"}  # a thousand at once are too many
    assert len(told(caplog)) <= 2
    with door.connect() as peer:
        peer.associate()
        assert peer.echo() == command.SUCCESS


# -- the catalogue itself -------------------------------------------------------------------------


def claims(path: Path) -> Iterator[str]:
    """Yield the rows that the tests in a file say that they prove."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in {"row", "catalogue"}:
                yield str(node.args[0].value)


def test_every_row_of_the_catalogue_is_proven_by_a_test():
    folder = Path(__file__).parent
    claimed = {each for path in folder.rglob("test_*.py") for each in claims(path)}

    missing = [
        f"{file}: {test}"
        for file, test in ELSEWHERE.values()
        if f"def {test}(" not in (folder / file).read_text(encoding="utf-8")
    ]
    assert missing == []
    assert claimed | set(ELSEWHERE) == set(ROWS)
    assert list(ROWS) == [f"U{n}" for n in range(1, 44)] + [f"D{n}" for n in range(1, 43)]
