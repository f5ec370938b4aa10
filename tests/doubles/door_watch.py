"""What a test sees of the door: its lines, its alerts, its answers; and how it waits for them."""

import logging
import time
from collections.abc import Callable

import pytest

from dicom_node.complaints import AUDIT
from dicom_node.upper_layer import (
    encode_pdu,
)
from doubles.raw_peer import (
    RELEASE_RQ,
    RawPeer,
    data_set,
    echo_command,
    pdv,
    store_command,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
RT_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
DEFLATED = "1.2.840.10008.1.2.1.99"
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
HASTY = {"first_pdu": "1 s", "each_pdu": "1 s", "idle": "1 s", "message": "1 s", "send": "1 s"}
SOON = 10.0  # seconds; the deadlines of HASTY, on a machine that has other things to do as well
ECHO = echo_command()
RELEASE = encode_pdu(RELEASE_RQ, bytes(4))
NOBODY = "CANARYTITLE"
UNRECOGNIZED, UNEXPECTED, WRONG = "unrecognized_pdu", "unexpected_pdu", "association_request"
STORE = pdv(3, store_command("9.9.9.1"), is_command=True)
LAST = pdv(3, data_set("9.9.9.1"), is_command=False)
SECRETS = ("CANARY", "9.9.9")
"""Every text that a peer supplies here has one of them in it, where it can."""


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
