"""The log of received instances: what it holds after a crash, what it forgets, when it gives up."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicom_node import redo_log
from dicom_node.redo_log import RedoLog, read_records
from dicom_node.spool import replay
from dicom_node.store import INCOMING, REDO, Durability, Store, WholeFile

HALF = 64 * 1024
LONG = b"pixels" * 1_000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redo_log, "HALF_BYTES", HALF)
    monkeypatch.setattr(redo_log, "WORTH", 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


@pytest.fixture
def log(store: Store) -> Iterator[RedoLog]:
    one = RedoLog(store.path(REDO), store.path(INCOMING))
    assert one.append("none", hashlib.sha256().hexdigest(), []) is None
    wait_until(lambda: one._descriptor is not None)
    yield one
    one._is_broken = True  # its thread ends


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def keep(store: Store, log: RedoLog, uid: str, content: bytes = LONG) -> str | None:
    """Keep a content as the spool does; return the name of its file, or None without the log."""
    sha256 = hashlib.sha256(content).hexdigest()
    name = store.incoming_name(uid, sha256)
    file = WholeFile(str(store.path(name)), [content], Durability.SYNCED)
    bring = log.append(name, sha256, [content[:7], memoryview(content)[7:]])
    file.settle(bring)
    return name if bring is not None else None


def names_in(store: Store) -> list[str]:
    return [r.name for log in store.path(REDO).glob("*.log") for r in read_records(log)]


@pytest.mark.parametrize("left", [None, b"", bytes(len(LONG)), LONG[:100]])
def test_file_that_a_power_cut_took_is_made_anew(store, log, left):
    first, second = keep(store, log, "1.2.3"), keep(store, log, "1.2.4")
    path = store.path(first)
    age = path.stat().st_mtime_ns
    path.unlink() if left is None else path.write_bytes(left)

    assert replay(store) == 1

    assert path.read_bytes() == LONG
    assert abs(path.stat().st_mtime_ns - age) < 10**9
    assert store.path(second).read_bytes() == LONG
    assert list(store.path(REDO).iterdir()) == []
    assert replay(store) == 0


def test_file_in_quarantine_stays_there_and_is_made_anew_there(store, log):
    name = keep(store, log, "1.2.3")
    moved = store.path(store.quarantine(name))

    assert replay(store) == 0
    assert moved.read_bytes() == LONG
    assert not store.path(name).exists()


def test_torn_file_in_quarantine_is_made_anew_there(store, log):
    name = keep(store, log, "1.2.3")
    moved = store.path(store.quarantine(name))
    moved.write_bytes(b"")

    assert replay(store) == 1
    assert moved.read_bytes() == LONG
    assert list(store.iterate_incoming()) == []


@pytest.mark.parametrize("place", [0, 40, 200, 3_000])
def test_record_that_was_not_written_whole_is_none_and_hides_none(store, log, place):
    first, second = keep(store, log, "1.2.3"), keep(store, log, "1.2.4")
    [path] = store.path(REDO).glob("*.log")
    with path.open("r+b") as file:
        file.seek(4096 + place)
        file.write(b"torn")

    assert names_in(store) == [second]
    assert first != second


def test_log_that_was_not_made_to_its_end_holds_nothing(store):
    store.path(f"{REDO}/1.log").write_bytes(bytes(1_000))
    store.path(f"{REDO}/2.log").write_bytes(bytes(2 * HALF))

    assert replay(store) == 0
    assert list(store.path(REDO).iterdir()) == []


def test_instances_that_do_not_fit_are_synced_by_themselves(store, log, monkeypatch):
    freed = threading.Event()
    sync_all = redo_log.sync_all
    monkeypatch.setattr(redo_log, "sync_all", lambda each: (freed.wait(20), sync_all(each)))

    kept = [keep(store, log, f"1.2.{number}") for number in range(40)]
    both = 2 * (HALF // 8192 - 1)
    assert [name is not None for name in kept] == [True] * both + [False] * (40 - both)
    assert sorted(names_in(store)) == sorted(filter(None, kept))

    freed.set()
    wait_until(lambda: keep(store, log, f"1.3.{time.monotonic_ns()}") is not None)
    assert set(kept[: both // 2]).isdisjoint(names_in(store))


def test_what_is_at_rest_is_forgotten(store, monkeypatch):
    monkeypatch.setattr(redo_log, "REST_SECONDS", 0.05)
    log = RedoLog(store.path(REDO), store.path(INCOMING))
    wait_until(lambda: keep(store, log, f"1.2.{time.monotonic_ns()}") is not None)

    wait_until(lambda: names_in(store) == [])
    log._is_broken = True


def test_associations_share_a_sync(store, log, monkeypatch):
    syncs, sync_data = [], redo_log.sync_data

    def slowly(descriptor: int) -> None:
        syncs.append(descriptor)
        time.sleep(0.1)
        sync_data(descriptor)

    monkeypatch.setattr(redo_log, "sync_data", slowly)
    content = b"short"
    sha256 = hashlib.sha256(content).hexdigest()
    waits = [log.append(f"incoming/00/{number}", sha256, [content]) for number in range(8)]
    threads = [threading.Thread(target=wait) for wait in waits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(syncs) <= 2
    assert len(names_in(store)) == 8


def test_sync_that_failed_is_told_to_all_and_never_tried_again(store, log, monkeypatch, caplog):
    kept = keep(store, log, "1.2.2")
    content = b"short"
    sha256 = hashlib.sha256(content).hexdigest()
    waits = [log.append(f"incoming/00/{number}", sha256, [content]) for number in range(3)]
    syncs = []

    def fail(descriptor: int) -> None:
        syncs.append(descriptor)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(redo_log, "sync_data", fail)
    for wait in waits:
        with pytest.raises(OSError, match="Input/output error"):
            wait()

    assert len(syncs) == 1
    assert keep(store, log, "1.2.3") is None  # by a sync of its file
    assert kept in names_in(store)
    assert [r.getMessage() for r in caplog.records] == ["redo_log.failed"]


def test_files_that_cannot_be_synced_end_the_process_and_stay_in_its_log(store, log, monkeypatch):
    """The next start compares each with its digest, and has what is not whole from the log."""
    ended = []

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(redo_log, "sync_all", fail)
    monkeypatch.setattr(redo_log.os, "_exit", ended.append)
    kept = [name for n in range(10) if (name := keep(store, log, f"1.2.{n}"))]
    wait_until(lambda: bool(ended))

    assert ended == [os.EX_IOERR]
    assert sorted(names_in(store)) == sorted(kept)


def test_log_that_failed_goes_when_its_files_are_on_the_disk(store, monkeypatch):
    monkeypatch.setattr(redo_log, "REST_SECONDS", 0.05)
    log = RedoLog(store.path(REDO), store.path(INCOMING))
    wait_until(lambda: keep(store, log, f"1.2.{time.monotonic_ns()}") is not None)

    log._give_up("sync")

    wait_until(lambda: list(store.path(REDO).iterdir()) == [])
    assert replay(store) == 0
