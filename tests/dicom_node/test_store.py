import errno
import hashlib
import os
import stat
import time
from pathlib import Path

import pytest

from dicom_node.errors import StorageError
from dicom_node.store import Durability, Store, WholeFile


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def parts(store: Store) -> list[Path]:
    return list(store.path("incoming").parent.rglob("*.part"))


def fail_with(number: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_written_file_reads_back_with_its_digest(store):
    digest = store.write("incoming/ab/one.dcm", [b"some ", b"bytes"])

    assert store.read("incoming/ab/one.dcm") == b"some bytes"
    assert digest == hashlib.sha256(b"some bytes").hexdigest()
    assert parts(store) == []


def test_same_name_is_written_over(store):
    store.write("incoming/ab/one.dcm", b"old")

    store.write("incoming/ab/one.dcm", b"new")

    assert store.read("incoming/ab/one.dcm") == b"new"


def test_file_and_name_are_synced_in_this_order(store, monkeypatch):
    steps = []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        synced = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(f"sync {synced.suffix or 'folder'}")
        sync(descriptor)

    def record_replace(path: str, target: str) -> None:
        steps.append("rename")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)

    store.write("derived/plan/one.dcm", b"bytes")

    # The first folder is `derived`, in which `plan` is new; the last is `plan`, with the new name.
    assert steps == ["sync folder", "sync .part", "rename", "sync folder"]


def test_short_writes_are_continued(store, monkeypatch):
    write, writev = os.write, os.writev
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    monkeypatch.setattr(os, "writev", lambda descriptor, data: writev(descriptor, [data[0][:3]]))

    store.write("incoming/ab/one.dcm", b"0123456789")

    assert store.read("incoming/ab/one.dcm") == b"0123456789"


@pytest.mark.parametrize("call", ["writev", "fsync", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_failed_call_stores_nothing_and_keeps_the_old_file(store, monkeypatch, call, number):
    store.write("incoming/ab/one.dcm", b"old")
    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail_with(number))
        with pytest.raises(StorageError) as failed:
            store.write("incoming/ab/one.dcm", b"new")

    assert failed.value.status == 0xA700
    assert store.read("incoming/ab/one.dcm") == b"old"
    assert parts(store) == []


@pytest.mark.parametrize("durability", [Durability.STRICT, Durability.SYNCED])
def test_a_journal_that_failed_beside_a_sync_is_noticed(store, monkeypatch, durability):
    """ext4 says success to who syncs just after the commit that failed."""
    name = Store.incoming_name("1.2", "a" * 64)
    monkeypatch.setattr(os, "removexattr", fail_with(errno.EROFS))

    with pytest.raises(OSError, match="Read-only"):
        WholeFile(store.incoming_path(name), [b"bytes"], durability).settle()

    assert list(store.iterate_incoming()) == []


def test_a_file_system_without_attributes_is_no_journal_that_failed(store, monkeypatch):
    name = Store.incoming_name("1.2", "a" * 64)
    monkeypatch.setattr(os, "removexattr", fail_with(errno.ENOTSUP))

    WholeFile(store.incoming_path(name), [b"bytes"], Durability.SYNCED).settle()

    assert store.read(name) == b"bytes"


def test_a_write_that_failed_takes_no_file_away_that_another_writer_has_kept(store, monkeypatch):
    name = Store.incoming_name("1.2", "a" * 64)
    first, second = (
        WholeFile(store.incoming_path(name), [b"bytes"], Durability.SYNCED) for _ in range(2)
    )
    second.settle()
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))

    with pytest.raises(OSError, match="error"):
        first.settle()

    assert store.read(name) == b"bytes"


def test_file_that_came_out_short_is_not_kept(store, monkeypatch):
    # A write that says it took all and took nothing.
    monkeypatch.setattr(os, "writev", lambda _, data: sum(map(len, data)))

    with pytest.raises(StorageError, match="short"):
        store.write("incoming/ab/one.dcm", b"bytes")

    assert not store.path("incoming/ab/one.dcm").exists()


def test_source_that_breaks_off_leaves_nothing(store):
    def chunks():
        yield b"half"
        raise RuntimeError("the peer is gone")

    with pytest.raises(RuntimeError):
        store.write("incoming/ab/one.dcm", chunks())

    assert parts(store) == []


@pytest.mark.parametrize("name", ["../outside", "incoming/../../outside", "/etc/passwd", ""])
def test_name_never_leaves_the_store(store, name):
    with pytest.raises(StorageError, match="leave the store"):
        store.write(name, b"bytes")


def test_files_are_for_their_owner_only(store):
    store.write("derived/plan/1/image.dcm", b"bytes")

    modes = {
        stat.S_IMODE(path.stat().st_mode): path.is_dir()
        for path in store.path("derived").parent.rglob("*")
    }

    assert modes == {0o700: True, 0o600: False}


def test_half_written_files_of_a_dead_process_are_swept(store):
    store.write("incoming/ab/whole.dcm", b"bytes")
    left = store.path("incoming/ab/half.dcm.12345678.part")
    left.write_bytes(b"by")

    swept = store.sweep_parts()

    assert swept == 1
    assert not left.exists()
    assert list(store.iterate_incoming()) == ["incoming/ab/whole.dcm"]


def test_deleted_file_leaves_no_empty_folders_of_its_plan(store):
    store.write("derived/plan/1/image.dcm", b"bytes")
    store.write("derived/plan/2/image.dcm", b"bytes")

    store.delete("derived/plan/1/image.dcm")

    assert not store.path("derived/plan/1").exists()
    assert store.path("derived/plan/2/image.dcm").exists()


def test_deleting_twice_is_deleting_once(store):
    store.write("derived/plan/1/image.dcm", b"bytes")

    store.delete("derived/plan/1/image.dcm")
    store.delete("derived/plan/1/image.dcm")

    assert store.path("derived").is_dir()
    assert not store.path("derived/plan").exists()


def test_name_of_a_content_says_nothing_and_never_changes():
    first = Store.incoming_name("1.2.3", "a" * 64)

    assert first == Store.incoming_name("1.2.3", "a" * 64)
    assert first != Store.incoming_name("1.2.3", "b" * 64)
    assert first.endswith(f"-{'a' * 32}.dcm")
    assert "1.2.3" not in first


@pytest.mark.parametrize("durability", list(Durability))
def test_a_content_that_comes_again_is_as_old_as_at_first(store, durability):
    names = [Store.incoming_name("1.2", digest * 64) for digest in "ab"]
    for name in (*names, names[0]):
        WholeFile(store.incoming_path(name), [b"bytes"], durability).settle()
        time.sleep(0.01)  # the clock of a file system ticks slowly

    assert store.by_age(reversed(names)) == names


def test_received_files_are_found_again(store):
    names = [Store.incoming_name(uid, "a" * 64) for uid in ("1.2", "1.3")]
    for name in names:
        store.write(name, b"bytes")

    assert list(store.iterate_incoming()) == sorted(names)


def test_installation_is_made_once(store, tmp_path):
    assert store.namespace() == store.namespace() == Store(tmp_path / "store").open().namespace()


def test_other_installation_has_another_namespace(store, tmp_path):
    assert Store(tmp_path / "other").open().namespace() != store.namespace()


def test_folder_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "somebody's file").touch()

    with pytest.raises(StorageError, match="mount the disk"):
        Store(tmp_path).open()


def test_store_opens_again(store, tmp_path):
    store.write("incoming/ab/one.dcm", b"bytes")

    assert Store(tmp_path / "store").open().read("incoming/ab/one.dcm") == b"bytes"


def test_reading_a_missing_file_is_a_storage_error(store):
    with pytest.raises(StorageError, match="No such file"):
        store.read("incoming/ab/none.dcm")
