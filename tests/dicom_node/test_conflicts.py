"""Several contents under one SOP Instance UID, sent to a receiving process that may be killed."""

import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicom_node.ledger import Ledger
from dicom_node.node_settings import read_node
from dicom_node.receiver_process import ReceiverProcess
from dicom_node.store import Store
from doubles.raw_peer import MR, RawPeer

pytestmark = pytest.mark.integration

NODE = """
ae_title: NODE
data_folder: data
models_folder: models
peers:
  scanner: {ae_title: SCANNER, address: 127.0.0.1, roles: [receive]}
receiver:
  port: 0
  storage_classes: {image: [MRImageStorage]}
"""
STUDY, UID = "1.2.3", "1.2.3.5"
FIRST, SECOND = b"\1\2", b"\3\4"


class Node:
    """A receiving process on a folder of its own, started and killed as a test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "node.yaml").write_text(NODE)
        settings = read_node(folder)
        self._process = ReceiverProcess(folder)
        self._environment = monkeypatch
        self._url = settings.ledger_url
        self.store = Store(settings.store_folder)

    def start(self, crash_at: str | None = None) -> None:
        """Start it; with `crash_at`, it dies when it gets there."""
        if crash_at is None:
            self._environment.delenv("DICOM_NODE_CRASH_AT", raising=False)
        else:
            self._environment.setenv("DICOM_NODE_CRASH_AT", crash_at)
        self.port = self._process.start()[1]

    def stop(self) -> None:
        self._process.stop()

    def send(self, *contents: bytes) -> int:
        """Send contents over one association; return how many were acknowledged."""
        with RawPeer(self.port) as peer:
            peer.associate()
            return [peer.store(UID, data_set(pixel)) for pixel in contents].count(0)

    def wait_for_death(self) -> None:
        deadline = time.monotonic() + 10
        while self._process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def read(self) -> tuple[list[bytes], list[bytes]]:
        """Return the ends of the contents that are sources, and of those that are contested.

        Every file has its row, and every row its file.
        """
        with Ledger(self._url, lambda: datetime.now(UTC)).open() as ledger:
            sources = [each.path for each in ledger.read_instances(STUDY)]
            contested = [each.quarantined for each in ledger.conflicts(STUDY)]
        assert list(self.store.iterate_incoming()) == sources
        assert list(self.store.iterate_quarantine()) == contested
        return self._ends(sources), self._ends(contested)

    def _ends(self, paths: list[str]) -> list[bytes]:
        return [self.store.read(path)[-2:] for path in paths]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    node = Node(tmp_path, monkeypatch)
    yield node
    node.stop()


def element(group: int, number: int, value: str) -> bytes:
    raw = value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, b"UI", len(raw)) + raw


def data_set(pixel: bytes) -> bytes:
    return (
        element(0x0008, 0x0016, MR)
        + element(0x0008, 0x0018, UID)
        + element(0x0020, 0x000D, STUDY)
        + element(0x0020, 0x000E, "1.2.3.4")
        + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(pixel))
        + pixel
    )


def test_the_first_content_stays_the_source_whatever_comes_after_it(node):
    node.start()

    assert node.send(FIRST, FIRST, SECOND, SECOND, FIRST) == 5
    assert node.send(SECOND, FIRST) == 2
    node.stop()

    assert node.read() == ([FIRST], [SECOND])


def test_a_kill_between_file_and_row_does_not_turn_the_order_round(node):
    node.start(crash_at="receive.quarantined")

    assert node.send(FIRST, SECOND) == 2
    node.wait_for_death()
    node.start()

    assert node.read() == ([FIRST], [SECOND])


def test_a_lost_ledger_is_rebuilt_with_the_same_first_content(node, tmp_path):
    node.start()
    node.send(SECOND, FIRST)
    node.stop()
    for path in (tmp_path / "data").glob("ledger*"):
        path.unlink()
    with Ledger(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite'}", lambda: datetime.now(UTC)):
        pass

    node.start()

    assert node.read() == ([SECOND], [FIRST])
