"""Scanners that remember what they were told: UID and digest, only on 0x0000.

Among what they send are contents that come again, contents that contest a UID, and long ones that
come in many pieces.
"""

import hashlib
import random
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.load import encode
from benchmarks.studies import EXPLICIT, MR, Sample
from dicom_node import command
from dicom_node.part10 import encode_file_meta
from doubles.raw_peer import P_DATA, RawPeer

SUCCESS = 0x0000
Key = tuple[str, str]
"""SOP Instance UID and SHA-256 of the file that must be kept."""

_CONTEXT = 3  # of MR in the request of `RawPeer`
_PDU_BYTES = 16_384
_LONG_BYTES = 1_200_000  # more than the receiver's buffer: it comes in pieces
_SHORT_BYTES = (500, 20_000)


@dataclass
class Told:
    """What senders were told.

    Attributes:
        acknowledged: what was answered with success.
        statuses: how often each status came.
    """

    acknowledged: set[Key] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)


class Senders:
    """Associations that send until they are stopped or nobody answers."""

    def __init__(self, port: int, name: str, count: int = 3) -> None:
        """Describe them: `name` is the root of their UIDs and the seed of what they send."""
        self.told = Told()
        self._port = port
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(f"{name}.{number}",), daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> Told:
        """Send nothing more, and return what was told."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return self.told

    def _send(self, name: str) -> None:
        choice = random.Random(name)
        earlier: list[Sample] = []
        try:
            with RawPeer(self._port) as peer:
                peer.associate()
                while not self._stopping.is_set():
                    sample = _choose(choice, name, earlier)
                    status = store(peer, sample)
                    if status is None:
                        return
                    self.told.statuses[status] += 1
                    if status == SUCCESS:
                        self.told.acknowledged.add(key_of(sample))
                        earlier.append(sample)
        except (OSError, AssertionError):
            return  # the receiver has died


def store(peer: RawPeer, sample: Sample) -> int | None:
    """Send one instance; return the status, or None when the association has ended."""
    try:
        peer.send(encode(sample, _CONTEXT, _PDU_BYTES))
        pdu = peer.read_pdu()
    except OSError:
        return None
    if pdu is None or pdu[0] != P_DATA:
        return None
    return command.number(command.decode_command(pdu[1][6:]), command.STATUS)


def key_of(sample: Sample) -> Key:
    """Return what must be found of an instance that was acknowledged."""
    meta = encode_file_meta(sample.sop_class_uid, sample.sop_instance_uid, EXPLICIT)
    return sample.sop_instance_uid, hashlib.sha256(meta + sample.data_set).hexdigest()


def make_sample(uid: str, pixels: bytes) -> Sample:
    """Return an instance of the smallest kind that can be kept, with these pixels."""
    pixels += b"\0" * (len(pixels) % 2)
    data_set = (
        _uid(0x0008, 0x0016, MR)
        + _uid(0x0008, 0x0018, uid)
        + _uid(0x0020, 0x000D, uid.rpartition(".")[0])
        + _uid(0x0020, 0x000E, f"{uid.rpartition('.')[0]}.1")
        + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(pixels))
        + pixels
    )
    return Sample(MR, uid, data_set)


def _choose(choice: random.Random, name: str, earlier: list[Sample]) -> Sample:
    """Return what to send next: something new, something again, or a contested UID."""
    luck = choice.random()
    if earlier and luck < 0.1:
        return choice.choice(earlier)
    uid = f"2.999.{name}.{len(earlier) + 1}.{choice.getrandbits(32)}"
    if earlier and luck < 0.2:
        uid = choice.choice(earlier).sop_instance_uid
    size = _LONG_BYTES if luck > 0.95 else choice.randint(*_SHORT_BYTES)
    return make_sample(uid, choice.randbytes(size))


def _uid(group: int, number: int, value: str) -> bytes:
    raw = value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, b"UI", len(raw)) + raw
