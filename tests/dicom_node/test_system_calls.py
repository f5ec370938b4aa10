"""What the receiver asks of the kernel before it says success, and what it says when that fails."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.studies import Sample
from dicom_node.node_settings import read_node
from dicom_node.receiver_process import ReceiverProcess
from dicom_node.recorder import UNSYNCED
from dicom_node.redo_log import HALF_BYTES, WORTH
from doubles.raw_peer import RELEASE_RQ, RawPeer, encode_pdu
from doubles.strace import Call, Strace
from durability.sender import SUCCESS, Key, key_of, make_sample, store
from durability.verdict import examine
from durability.victim import children, write_configuration

pytestmark = pytest.mark.integration

SHORT = 2_000  # bytes of pixels; they come in one piece
LONG = 2_500_000  # in several
REFUSED = {0xA700, 0xA701, None}
"""Statuses of what was not kept; None is the end of the association."""

DSN = "DICOM_NODE_LEDGER"
COMMITTED = b"C\0\0\0\x0bCOMMIT\0"
"""CommandComplete of PostgreSQL's protocol, which it sends when the commit is on its disk."""

OF_FILE = re.compile(r"/incoming/[0-9a-f]{2}/")
OF_LOG = re.compile(r"/redo/\d+\.log>")
OF_FOLDER = re.compile(r"/incoming/[0-9a-f]{2}>")

FAILURES = [
    *(("write,writev,pwrite64", error) for error in ("EIO", "ENOSPC")),
    ("fsync,fdatasync", "EIO"),
    *(("openat", error) for error in ("ENOSPC", "EMFILE")),
    ("rename,link,unlink", "EIO"),
]


class Watched:
    """A receiver of one durability, watched while it takes one instance after another."""

    def __init__(self, folder: Path, durability: str, dsn_env: str = "") -> None:
        write_configuration(folder, folder / "data", durability, dsn_env)
        self.durability = durability
        self.acknowledged: set[Key] = set()
        self._folder = folder
        self._process = ReceiverProcess(folder, ["receiver.processes=1"])
        self._port = self._process.start()[1]
        self._count = 0

    def take(self, size: int, inject: str | None = None) -> tuple[int | None, list[Call]]:
        """Send one instance, and return status and system calls."""
        if not self._process.is_alive():
            self._process.start()
        self._count += 1
        sample = make_sample(f"2.999.{self._count}.1", os.urandom(size))
        pid = self._process.pid
        assert pid is not None
        with Strace([pid, *children(pid)], self._folder / "strace", inject) as trace:
            status = send(self._port, sample)
        if status == SUCCESS:
            self.acknowledged.add(key_of(sample))
        return status, trace.calls

    def work(self) -> None:
        """Send instances until there is a log."""
        logs = self._folder / "data" / "store" / "redo"
        for _ in range(WORTH):
            self._count += 1
            sample = make_sample(f"2.999.{self._count}.1", os.urandom(SHORT))
            assert send(self._port, sample) == SUCCESS
            self.acknowledged.add(key_of(sample))
        deadline = time.monotonic() + 30
        while not any(map(is_made, logs.glob("*.log"))):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def examine(self) -> list[str]:
        """Start it again, and return what does not hold then."""
        pid = self._process.pid
        if pid is not None and self._process.is_alive():
            os.kill(pid, signal.SIGKILL)
        self._process.start()
        node = read_node(self._folder)
        verdict = examine(node.data_folder, node.ledger_url, self.acknowledged, set())
        return [*verdict.broken, *(f"lost: {uid}" for uid, _ in verdict.lost)]

    def wait(self) -> int | None:
        """Return the exit status of a receiver that is about to end."""
        deadline = time.monotonic() + 30
        while self._process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._process.stop()

    def stop(self) -> None:
        self._process.stop()


def is_made(log: Path) -> bool:
    """Say whether a log has a generation in its second half, which it gets last."""
    with log.open("rb") as file:
        file.seek(HALF_BYTES)
        return any(file.read(64))


def send(port: int, sample: Sample) -> int | None:
    """Send one instance over an association of its own, which is released; return the status."""
    with RawPeer(port) as peer:
        peer.associate()
        status = store(peer, sample)
        if status is not None:
            peer.send(encode_pdu(RELEASE_RQ, bytes(4)))
            peer.read_pdu()  # comes when the row is committed
        return status


def prove_order(calls: list[Call], durability: str) -> None:
    """Check that success was said of bytes and a name that were on the disk by then.

    Strict: file, name and folder, row; each durable before the next one is begun. Synced: a sync of
    the file after its last byte and after it got its name, which commits the journal with both.
    """
    said = next(each for each in calls if each.status == SUCCESS)
    of_file = [each for each in calls if OF_FILE.search(each.arguments)]
    written = [each for each in of_file if each.name in {"write", "writev"}]
    (synced,) = [each for each in of_file if each.name in {"fsync", "fdatasync"}]
    named = [each for each in of_file if each.name in {"link", "rename"}]
    if not named:
        named = [each for each in of_file if each.name == "openat" and "O_CREAT" in each.arguments]
    assert written
    assert all(each.result >= 0 for each in [*written, synced, *named])
    assert max(each.ended for each in written) < synced.begun
    if durability == "synced":
        assert named[0].ended < synced.begun
        assert synced.ended < said.begun
        return
    (renamed,) = named
    (folder,) = [
        each for each in calls if OF_FOLDER.search(each.arguments) and each.name == "fsync"
    ]
    row = next(each for each in calls if is_commit(each) and each.begun > folder.ended)
    assert synced.ended < renamed.begun
    assert renamed.ended < folder.begun
    assert folder.result == 0
    assert row.ended < said.begun


def prove_order_in_log(calls: list[Call]) -> None:
    """Check that success was said of a file that was whole and a record that was on the disk."""
    said = next(each for each in calls if each.status == SUCCESS)
    of_file = [each for each in calls if OF_FILE.search(each.arguments)]
    of_log = [each for each in calls if OF_LOG.search(each.arguments)]
    (written,) = [each for each in of_file if each.name == "writev"]
    (record,) = [each for each in of_log if each.name in {"pwritev", "pwritev2"}]
    synced = next(each for each in of_log if each.name == "fdatasync" and each.result == 0)
    assert not [each for each in of_file if each.name == "fsync"]
    assert written.result >= SHORT
    assert record.result > written.result
    assert written.ended < record.begun
    assert record.ended < synced.begun
    assert synced.ended < said.begun


def is_commit(call: Call) -> bool:
    """Say whether after this call a row is on the disk: of SQLite, or by word of PostgreSQL."""
    if call.name == "recvfrom":
        return COMMITTED in call.data
    is_synced = call.name in {"fsync", "fdatasync"} and call.result == 0
    return is_synced and "ledger.sqlite-wal" in call.arguments


@pytest.fixture(scope="module", params=["synced", "strict"])
def watched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    one = Watched(tmp_path_factory.mktemp(request.param), request.param)
    yield one
    one.stop()


@pytest.mark.parametrize("size", [SHORT, LONG])
def test_success_is_said_when_everything_is_on_the_disk(watched, size):
    status, calls = watched.take(size)

    assert status == SUCCESS
    prove_order(calls, watched.durability)


@pytest.mark.parametrize("size", [SHORT, LONG])
def test_strict_waits_for_the_word_of_postgresql(size, postgresql, tmp_path, monkeypatch):
    monkeypatch.setenv(DSN, postgresql.make_url())
    watched = Watched(tmp_path, "strict", DSN)
    try:
        status, calls = watched.take(size)
    finally:
        watched.stop()

    assert status == SUCCESS
    prove_order(calls, "strict")


@pytest.mark.parametrize(("names", "error"), FAILURES)
def test_nothing_is_acknowledged_when_the_nth_system_call_fails(watched, names, error):
    failed = 0
    for size in (SHORT, LONG):
        for number in range(1, 100):
            status, calls = watched.take(size, f"{names}:error={error}:when={number}")
            if status == SUCCESS:
                prove_order(calls, watched.durability)
            else:
                assert status in REFUSED
            assert count_repeated_syncs(calls) == 0
            if not any(each.injected for each in calls):
                break
            failed += 1

    assert failed > 0
    assert watched.examine() == []


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A receiver that has received enough to have a log."""
    one = Watched(tmp_path_factory.mktemp("logged"), "synced")
    one.work()
    yield one
    one.stop()


def test_a_receiver_at_work_says_success_when_its_log_is_on_the_disk(at_work):
    status, calls = at_work.take(SHORT)

    assert status == SUCCESS
    prove_order_in_log(calls)


def test_nothing_is_acknowledged_when_the_sync_of_a_log_fails(at_work):
    refused, calls = at_work.take(SHORT, "fdatasync:error=EIO:when=1")
    status, after = at_work.take(SHORT)

    assert [each for each in calls if each.injected and OF_LOG.search(each.arguments)]
    assert refused in REFUSED
    assert status == SUCCESS
    prove_order(after, "synced")  # the log is given up
    assert at_work.examine() == []


def test_a_log_that_cannot_be_written_is_given_up_and_nothing_is_refused(at_work):
    at_work.work()
    status, calls = at_work.take(SHORT, "pwritev,pwritev2:error=EIO:when=1")

    assert [each for each in calls if each.injected and OF_LOG.search(each.arguments)]
    assert status == SUCCESS
    assert at_work.examine() == []


def test_an_orderly_end_leaves_no_log(tmp_path):
    watched = Watched(tmp_path, "synced")
    watched.work()

    watched.stop()

    assert list((tmp_path / "data" / "store" / "redo").iterdir()) == []


def count_repeated_syncs(calls: list[Call]) -> int:
    """Return how often a received file was synced again after a sync that failed."""
    synced = [
        each.arguments for each in calls if each.name == "fsync" and OF_FILE.search(each.arguments)
    ]
    return len(synced) - len(set(synced))


def test_a_receiver_whose_ledger_could_not_be_synced_ends_and_starts_anew(watched):
    """Who waits for the row hears nothing; who does not has its success, and its row after all."""
    status, calls = watched.take(SHORT, "fdatasync:error=EIO:when=1")

    assert [each for each in calls if each.injected and "ledger.sqlite" in each.arguments]
    assert status == (None if watched.durability == "strict" else SUCCESS)
    assert watched.wait() == UNSYNCED
    assert watched.examine() == []
