"""Syslog messages delivered over TLS: RFC 5424 messages, counted octets of RFC 5425.

Syslog has no answers. What says that the other side has read everything is the orderly end of a
connection: our close_notify comes after the last message, and whoever has read that far answers
with one (RFC 5425 section 4.4). rsyslog only closes; then its kernel must have acknowledged all
that was sent, because one that closes with something unread resets the connection. So each delivery
is a connection of its own, and one that does not end so is made again: a message may come twice,
and none is missing.
"""

import fcntl
import os
import socket
import ssl
import struct
import termios
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from dicom_node.errors import DeliveryError
from dicom_node.tls import ClientSide, describe_failure

AUDIT_FACILITY = 10
"""Security and authorization messages, which PS3.15 section A.6 wants."""

LONGEST_NAME = 255
"""Of a host, in RFC 5424."""

_SEVERITIES_PER_FACILITY = 8
_BOM = b"\xef\xbb\xbf"


class Severity(IntEnum):
    """How grave a message is."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message.

    Attributes:
        at: when it happened.
        kind: what a receiver files it by (MSGID).
        text: in UTF-8.
    """

    at: datetime
    severity: Severity
    kind: str
    text: bytes


def format_message(message: Message, host: str, application: str) -> bytes:
    """Return a message as RFC 5424 writes it, with the octets before it that RFC 5425 counts."""
    priority = AUDIT_FACILITY * _SEVERITIES_PER_FACILITY + message.severity
    at = message.at.astimezone(UTC)
    header = (
        f"<{priority}>1 {at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z "
        f"{host[:LONGEST_NAME]} {application} {os.getpid()} {message.kind} - "
    )
    octets = header.encode("ascii", "replace") + _BOM + message.text
    return b"%d %b" % (len(octets), octets)


def deliver(
    address: tuple[str, int], tls: ClientSide, frames: Iterable[bytes], seconds: float
) -> None:
    """Deliver frames of `format_message`; when this returns, the receiver has read all of them.

    Args:
        address: host and port.
        tls: how the receiver is called.
        frames: in their order.
        seconds: how long each step may take.

    Raises:
        DeliveryError: nobody answers, it is not who it should be, or it has not read everything.
    """
    host, port = address
    try:
        with (
            socket.create_connection((host, port), timeout=seconds) as sock,
            tls.wrap(sock, host) as secured,
        ):
            for frame in frames:
                secured.sendall(frame)
            _finish(secured)
    except OSError as error:
        raise DeliveryError(f"the messages: {describe_failure(error)}", retry=True) from None


def _finish(secured: ssl.SSLSocket) -> None:
    """End a connection in order: say that nothing more comes, and wait for the other side's end."""
    try:
        secured.unwrap().close()
    except ssl.SSLEOFError:
        if _count_unacknowledged(secured):
            raise ConnectionAbortedError from None


def _count_unacknowledged(sock: socket.socket) -> int:
    """Return how many octets the other side's kernel has not acknowledged."""
    told = fcntl.ioctl(sock, termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", told)[0])
