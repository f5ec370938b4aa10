"""A sender that costs next to nothing: every byte is encoded before the clock starts.

One thread and one socket for each association; each waits for every response before its next
request, as a sender without an asynchronous operations window must.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.studies import EXPLICIT, Sample
from dicom_node import command, upper_layer
from dicom_node.upper_layer import AssociationRequest, ProposedContext

VERIFICATION = "1.2.840.10008.1.1"
CALLING_AE_TITLE = "BENCHMARK"
_ANNOUNCED = 65_536
_TIMEOUT = 120.0
_WARM_UP = 2


class Link:
    """One association of the sender.

    Attributes:
        seconds: from the connection to the acceptance.
    """

    def __init__(self, port: int, called: str, sop_classes: Sequence[str]) -> None:
        contexts = tuple(
            ProposedContext(
                context_id=2 * index + 1, abstract_syntax=uid, transfer_syntaxes=(EXPLICIT,)
            )
            for index, uid in enumerate(sop_classes)
        )
        request = upper_layer.encode_request(
            AssociationRequest(
                protocol_version=1,
                called_ae_title=called,
                calling_ae_title=CALLING_AE_TITLE,
                application_context=upper_layer.APPLICATION_CONTEXT,
                contexts=contexts,
                maximum_length=_ANNOUNCED,
            )
        )
        began = time.perf_counter()
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request)
        pdu_type, body = self.read_pdu()
        self.seconds = time.perf_counter() - began
        if pdu_type != upper_layer.ASSOCIATE_AC:
            raise ConnectionError(f"no association: PDU {pdu_type} {body.hex()}")
        accept = upper_layer.decode_accept(body)
        self.maximum_length = accept.maximum_length or 2**17
        self.accepted = {
            each.context_id for each in accept.contexts if each.result == upper_layer.ACCEPTED
        }

    def read_pdu(self) -> tuple[int, bytes]:
        """Return type and body of the next PDU."""
        header = self._read(6)
        return header[0], self._read(int.from_bytes(header[2:], "big"))

    def read_status(self) -> int:
        """Return the status of the next response."""
        _, body = self.read_pdu()
        return command.number(command.decode_command(body[6:]), command.STATUS)

    def echo(self) -> float:
        """Verify, and return the seconds that it took."""
        request = command.encode_command(
            {
                command.AFFECTED_SOP_CLASS_UID: VERIFICATION,
                command.COMMAND_FIELD: command.C_ECHO_RQ,
                command.MESSAGE_ID: 1,
                command.COMMAND_DATA_SET_TYPE: command.NO_DATA_SET,
            }
        )
        message = b"".join(_fragments(1, 1, request, self.maximum_length))
        began = time.perf_counter()
        self.socket.sendall(message)
        self.read_status()
        return time.perf_counter() - began

    def release(self) -> None:
        """Release the association and close."""
        self.socket.sendall(upper_layer.encode_pdu(upper_layer.RELEASE_RQ, bytes(4)))
        self.read_pdu()
        self.socket.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the peer closed")
            data += more
        return data


class Meter(NamedTuple):
    """What a receiver has used: CPU seconds, and MiB of memory now (PSS) and at most (RSS)."""

    cpu_seconds: float
    memory_mib: float
    peak_mib: float


@dataclass(frozen=True)
class Load:
    """How one receiver bore one load.

    Attributes:
        rate: instances in a second, over all associations.
        p50, p99: milliseconds from a request's first byte to its response.
        bad: responses that were no success.
        before, after: what the meter said.
    """

    instances: int
    rate: float
    p50: float
    p99: float
    bad: int
    before: Meter
    after: Meter


def send(
    port: int,
    called: str,
    warm_up: Sequence[Sample],
    samples: Sequence[Sample],
    associations: int,
    meter: Callable[[], Meter],
) -> Load:
    """Send `samples` over so many associations at once, and measure.

    `meter` is read when all associations are open, before the first instance and after the last.
    """
    sop_class = samples[0].sop_class_uid
    links = [Link(port, called, [sop_class]) for _ in range(associations)]
    for index, link in enumerate(links):
        for sample in warm_up[index::associations][:_WARM_UP]:
            link.socket.sendall(encode(sample, 1, link.maximum_length))
            link.read_status()
    parts = [
        [encode(sample, 1, link.maximum_length) for sample in samples[index::associations]]
        for index, link in enumerate(links)
    ]
    seconds: list[float] = []
    bad: list[int] = []
    barrier = threading.Barrier(associations + 1)

    def work(link: Link, messages: Sequence[bytes]) -> None:
        taken = []
        statuses = []
        barrier.wait()
        for message in messages:
            began = time.perf_counter()
            link.socket.sendall(message)
            statuses.append(link.read_status())
            taken.append(time.perf_counter() - began)
        seconds.extend(taken)
        bad.extend(status for status in statuses if status)

    threads = [
        threading.Thread(target=work, args=pair, daemon=True)
        for pair in zip(links, parts, strict=True)
    ]
    for thread in threads:
        thread.start()
    before = meter()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    after = meter()
    for link in links:
        link.release()
    missing = len(samples) - len(seconds)
    return Load(
        instances=len(samples),
        rate=len(samples) / elapsed,
        p50=1e3 * find_percentile(seconds, 0.5),
        p99=1e3 * find_percentile(seconds, 0.99),
        bad=len(bad) + missing,
        before=before,
        after=after,
    )


def find_percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which `part` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def encode(sample: Sample, context_id: int, maximum_length: int) -> bytes:
    """Return the P-DATA PDUs of one C-STORE request."""
    request = command.encode_command(
        {
            command.AFFECTED_SOP_CLASS_UID: sample.sop_class_uid,
            command.COMMAND_FIELD: command.C_STORE_RQ,
            command.MESSAGE_ID: 1,
            command.PRIORITY: 0,
            command.COMMAND_DATA_SET_TYPE: command.A_DATA_SET,
            command.AFFECTED_SOP_INSTANCE_UID: sample.sop_instance_uid,
        }
    )
    return b"".join(
        (
            *_fragments(context_id, 1, request, maximum_length),
            *_fragments(context_id, 0, sample.data_set, maximum_length),
        )
    )


def _fragments(context_id: int, control: int, data: bytes, maximum_length: int) -> list[bytes]:
    room = (maximum_length - 6) // 2 * 2
    found = []
    for start in range(0, len(data), room):
        part = data[start : start + room]
        last = 2 if start + room >= len(data) else 0
        header = struct.pack(">BxIIBB", 4, len(part) + 6, len(part) + 2, context_id, control | last)
        found.append(header + part)
    return found
