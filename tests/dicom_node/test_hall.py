import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node import command
from dicom_node.store import Durability
from dicom_node.wire import Limits, Wire
from doubles.raw_peer import RawPeer, data_set, p_data, pdv, store_command
from doubles.receiver import Door, open_door

pytestmark = pytest.mark.integration

REQUESTS = 12
LONGER_THAN_A_LOOK = 0.7
"""Seconds after which a message that is not whole has a thread of its own."""


@pytest.fixture(params=list(Durability))
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path, request.param) as one:
        yield one


def store_request(number: int) -> bytes:
    uid = f"1.2.3.{number}.1"
    return p_data(pdv(3, store_command(uid, message_id=number), is_command=True)) + p_data(
        pdv(3, data_set(uid), is_command=False)
    )


def associate(door: Door) -> RawPeer:
    peer = door.connect()
    peer.associate()
    return peer


def test_requests_that_do_not_wait_for_answers_are_answered_in_their_order(door):
    with associate(door) as other, associate(door) as peer:
        assert other.echo() == command.SUCCESS
        peer.send(b"".join(store_request(number) for number in range(1, REQUESTS + 1)))

        answers = [peer.read_response() for _ in range(REQUESTS)]

    assert [each[command.MESSAGE_ID_BEING_RESPONDED_TO] for each in answers] == [
        *range(1, REQUESTS + 1)
    ]
    assert {each[command.STATUS] for each in answers} == {command.SUCCESS}


def test_a_message_that_comes_in_bits_is_taken_and_so_is_the_next(door):
    with associate(door) as other, associate(door) as peer:
        for number in (1, 2):
            request = store_request(number)
            for piece in (request[:3], request[3:200], request[200:-1], request[-1:]):
                peer.send(piece)
                time.sleep(LONGER_THAN_A_LOOK if number == 1 else 0)
                assert other.echo() == command.SUCCESS
            assert peer.read_response()[command.STATUS] == command.SUCCESS


def test_what_a_peer_does_not_take_at_once_is_kept_and_sent_later():
    ours, theirs = socket.socketpair()
    message = bytes(range(256)) * 8_000
    with theirs, contextlib.closing(Wire(ours, Limits())) as wire:
        wire.hasten(is_hasty=True)
        wire.send(message)
        assert wire.has_unsent

        later = threading.Thread(target=lambda: (wire.hasten(is_hasty=False), wire.close()))
        later.start()
        received = b"".join(iter(lambda: theirs.recv(1_000_000), b""))
        later.join()

    assert received == message


def test_an_association_that_goes_on_after_a_refusal_is_served_as_before(door):
    wrong = p_data(pdv(3, store_command("1.2.3.7.1"), is_command=True)) + p_data(
        pdv(3, data_set("1.2.3.8.1"), is_command=False)
    )
    with associate(door) as peer:
        for number in (1, 2):
            peer.send(wrong)
            assert peer.read_response()[command.STATUS] == 0xA900
            peer.send(store_request(number))
            assert peer.read_response()[command.STATUS] == command.SUCCESS
