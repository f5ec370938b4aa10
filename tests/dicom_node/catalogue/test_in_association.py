"""Rows of the catalogue in an association: what is answered, and what the log tells."""

import contextlib
import socket
import struct
import threading
import time

import pytest

from dicom_node import command
from dicom_node.upper_layer import (
    encode_pdu,
)
from doubles.catalogue import row
from doubles.door_watch import (
    ECHO,
    ENCAPSULATED_PDF,
    HASTY,
    LAST,
    RELEASE,
    SOON,
    STORE,
    UNEXPECTED,
    UNRECOGNIZED,
    abort_pdu,
    read_all,
    told,
    wait_until,
)
from doubles.raw_peer import (
    EXPLICIT,
    IMPLICIT,
    MR,
    RELEASE_RP,
    VERIFICATION,
    associate_request,
    data_set,
    p_data,
    pdv,
    store_command,
)
from doubles.receiver import open_door

pytestmark = pytest.mark.integration

MORE = pdv(3, b"x", is_command=False, is_last=False)
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
    wait_until(lambda: door.connections() == 0)
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

        wait_until(lambda: door.connections() == 0, SOON)


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
            wait_until(lambda: door.connections() == 0)

    assert told(caplog) == ["send_timeout"]
