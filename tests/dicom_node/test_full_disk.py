"""A disk that is full, read-only or limited refuses with a reason, and takes again when it can."""

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.node_settings import read_node
from dicom_node.receiver_process import ReceiverProcess
from doubles.raw_peer import REJECT, RawPeer, associate_request
from durability.disk import Tmpfs, call
from durability.sender import SUCCESS, Key, key_of, make_sample, store
from durability.verdict import examine
from durability.victim import children, write_configuration

pytestmark = [pytest.mark.integration, pytest.mark.mounts]

OUT_OF_RESOURCES = {0xA700, 0xA701, None}  # None: no association while the ledger is silent
KIB = 1024
DEADLINE_SECONDS = 30.0


class Cramped:
    """A receiver whose data lie on a small disk, and a peer of it."""

    def __init__(self, folder: Path, disk: Path, durability: str) -> None:
        write_configuration(folder, disk / "data", durability)
        self.disk = disk
        self.process = ReceiverProcess(folder, ["receiver.processes=1"])
        self.port = self.process.start()[1]
        self._folder = folder
        self._acknowledged: set[Key] = set()
        self._count = 0

    def send(self, size: int = 20_000) -> int | None:
        """Send one instance over an association of its own; None when there is none."""
        self._count += 1
        sample = make_sample(f"2.999.{self._count}.1", os.urandom(size))
        with RawPeer(self.port) as peer:
            peer.send(associate_request())
            pdu = peer.read_pdu()
            if pdu is None or pdu[0] == REJECT:
                return None
            status = store(peer, sample)
        if status == SUCCESS:
            self._acknowledged.add(key_of(sample))
        return status

    def send_until_refused(self) -> int | None:
        """Send until something else than success comes."""
        for _ in range(200):
            status = self.send()
            if status != SUCCESS:
                return status
        return SUCCESS

    def takes_again(self) -> bool:
        """Say whether an instance is taken before long, by the same process."""
        pid, deadline = self.process.pid, time.monotonic() + DEADLINE_SECONDS
        while self.send() != SUCCESS:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return self.process.is_alive() and self.process.pid == pid

    def examine(self) -> list[str]:
        """Start it again, and return what does not hold then."""
        self.process.stop()
        self.process.start()
        node = read_node(self._folder)
        verdict = examine(node.data_folder, node.ledger_url, self._acknowledged, set())
        return [*verdict.broken, *(f"lost: {uid}" for uid, _ in verdict.lost)]


@pytest.fixture(params=["synced", "strict"])
def cramped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cramped]:
    with Tmpfs(tmp_path / "disk", "size=16m,nr_inodes=600") as disk:
        one = Cramped(tmp_path / "config", disk.folder, request.param)
        yield one
        one.process.stop()


def fill(ballast: Path, but: int) -> None:
    """Fill the disk, but for so many bytes."""
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(4 * KIB)) == 4 * KIB:
                pass
        file.truncate(max(file.tell() - but, 0))


def test_a_full_disk_is_told_and_what_comes_after_it_has_room_is_taken(cramped):
    for step in range(6):
        ballast = cramped.disk / "ballast"
        fill(ballast, but=64 * KIB * step)

        assert cramped.send_until_refused() in OUT_OF_RESOURCES
        ballast.unlink()
        assert cramped.takes_again()

    assert cramped.examine() == []


def test_a_disk_without_inodes_is_told(cramped):
    ballast = []
    with contextlib.suppress(OSError):
        for number in range(10_000):
            ballast.append(cramped.disk / f"ballast-{number}")
            ballast[-1].touch()

    assert cramped.send() in OUT_OF_RESOURCES
    for path in ballast:
        path.unlink(missing_ok=True)
    assert cramped.takes_again()
    assert cramped.examine() == []


def test_a_store_that_is_read_only_is_told(cramped):
    folder = str(cramped.disk / "data" / "store")
    call("mount", "--bind", folder, folder)
    call("mount", "-o", "remount,ro,bind", folder)
    try:
        assert cramped.send() == 0xA700
        call("mount", "-o", "remount,rw,bind", folder)
        assert cramped.takes_again()
    finally:
        call("umount", "--lazy", folder)


def test_an_instance_longer_than_a_file_may_be_is_told(cramped):
    (serving,) = children(cramped.process.pid)
    resource.prlimit(serving, resource.RLIMIT_FSIZE, (100_000, 100_000))

    assert cramped.send(150_000) == 0xA700
    assert cramped.send(50_000) == SUCCESS


def test_a_process_without_file_descriptors_refuses_and_goes_on(cramped):
    (serving,) = children(cramped.process.pid)
    with RawPeer(cramped.port) as peer:
        peer.associate()
        before = resource.prlimit(serving, resource.RLIMIT_NOFILE)
        resource.prlimit(serving, resource.RLIMIT_NOFILE, (3, before[1]))

        assert store(peer, make_sample("2.999.9.1", b"one")) == 0xA700
        resource.prlimit(serving, resource.RLIMIT_NOFILE, before)
        assert store(peer, make_sample("2.999.9.1", b"one")) == SUCCESS
