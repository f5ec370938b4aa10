"""Syslog over TLS, against a receiver of our own and against rsyslog."""

import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicom_node.demonstration.processes import find_free_ports
from dicom_node.door_settings import TLS
from dicom_node.errors import DeliveryError
from dicom_node.syslog import Message, Severity, deliver, format_message
from dicom_node.tls import ClientSide
from doubles.audit import HEADER, make_certificates, open_repository, open_rsyslog, split_frames
from doubles.certificates import make_authority, make_certificate

PATIENCE = 20.0
AT = datetime(2026, 11, 27, 8, 30, 1, 234_567, UTC)


def make_frame(text: str) -> bytes:
    message = Message(at=AT, severity=Severity.NOTICE, kind="KIND", text=text.encode())
    return format_message(message, "node", "dicom-node")


@pytest.fixture
def client(tmp_path: Path) -> ClientSide:
    make_certificates(tmp_path)
    return load_client(tmp_path, "authority")


def load_client(folder: Path, authority: str) -> ClientSide:
    return ClientSide(
        TLS(
            certificate=folder / "node.pem",
            key=folder / "node.key",
            ca=folder / f"{authority}.pem",
        ),
        where="audit.tls",
    )


def test_message_has_the_form_of_rfc_5424_and_its_octets_are_counted():
    [message] = split_frames(make_frame("größer"))

    header = HEADER.match(message)
    assert header
    assert header["priority"] == b"85"  # facility 10, severity 5
    assert header["at"] == b"2026-11-27T08:30:01.234Z"
    assert header["kind"] == b"KIND"
    assert message[header.end() :].decode() == "größer"


@pytest.mark.integration
def test_what_was_delivered_has_been_read(client, tmp_path):
    frames = [make_frame(f"{number} " * 20_000) for number in range(30)]

    with open_repository(tmp_path) as repository:
        deliver(("127.0.0.1", repository.port), client, frames, PATIENCE)

        assert repository.streams == [b"".join(frames)]


@pytest.mark.integration
def test_receiver_that_breaks_off_has_not_got_it(client, tmp_path):
    with open_repository(tmp_path) as repository:
        repository.mood = "cut"
        with pytest.raises(DeliveryError, match="the messages"):
            deliver(("127.0.0.1", repository.port), client, [make_frame("x")] * 1000, PATIENCE)


@pytest.mark.integration
def test_receiver_that_says_nothing_is_not_waited_for_long(client, tmp_path):
    with open_repository(tmp_path) as repository:
        repository.mood = "mute"
        with pytest.raises(DeliveryError):
            deliver(("127.0.0.1", repository.port), client, [make_frame("x")], 0.2)


@pytest.mark.integration
def test_receiver_of_another_authority_gets_nothing(client, tmp_path):
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    authority = make_authority(stranger)
    make_certificate(stranger, authority, "repository")
    with open_repository(stranger) as repository:
        with pytest.raises(DeliveryError, match="certificate"):
            deliver(("127.0.0.1", repository.port), client, [make_frame("x")], PATIENCE)

        assert repository.streams == []


@pytest.mark.integration
def test_rsyslog_takes_every_message(client, tmp_path):
    [port] = find_free_ports(1)
    frames = [make_frame(f"number {number}") for number in range(100)]
    with open_rsyslog(tmp_path, port, lambda: wait_for_port(port)) as kept:
        deliver(("127.0.0.1", port), client, frames, PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while kept.read_bytes().count(b"\n") < len(frames) and time.monotonic() < deadline:
            time.sleep(0.05)

        lines = kept.read_bytes().splitlines()

    assert lines == [message for frame in frames for message in split_frames(frame)]


def wait_for_port(port: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False
