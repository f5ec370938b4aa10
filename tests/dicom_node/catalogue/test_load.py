"""Rows of the catalogue about who takes too much, and how often it is told."""

import contextlib
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from dicom_node import command
from dicom_node.recorder import UNWELL
from dicom_node.store import Durability
from dicom_node.upper_layer import ASSOCIATE_AC
from doubles.door_watch import (
    ECHO,
    RELEASE,
    UNRECOGNIZED,
    read_all,
    told,
    wait_until,
)
from doubles.raw_peer import (
    associate_request,
    data_set,
    p_data,
    pdv,
)
from doubles.receiver import Door, open_door

pytestmark = pytest.mark.integration


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
        wait_until(lambda: door.connections() == 1)
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


def lets_in(door: Door) -> bool:
    with door.connect() as peer:
        peer.send(associate_request())
        answer = peer.read_pdu()
        if answer is None or answer[0] != ASSOCIATE_AC:
            return False
        return peer.echo() == command.SUCCESS


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("is_reset", [False, True])
def test_probes_of_a_load_balancer_leave_nothing_behind(door, caplog, is_reset):
    descriptors = count_descriptors()
    for _ in range(1_000):
        with door.connect() as peer:
            if is_reset:
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    # Nobody is in at times while some still lie before the door: both are waited for.
    wait_until(lambda: door.connections() == 0 and count_descriptors() <= descriptors + 2)
    assert set(told(caplog)) <= {"too_many_connections"}  # a thousand at once are too many
    assert len(told(caplog)) <= 2
    wait_until(lambda: lets_in(door))  # some may still lie before the door
