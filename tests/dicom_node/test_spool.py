import os
import signal
import struct
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from dicom_node import crashpoints
from dicom_node.errors import RefusedInstance, StorageError
from dicom_node.ledger import Ledger
from dicom_node.part10 import encode_file_meta
from dicom_node.spool import Announced, Origin, Spool, rebuild
from dicom_node.store import INCOMING, Durability, Store
from dicom_node.structure import StructureLimits
from doubles.ledger import Clock
from doubles.receiver import open_spool

MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
LIMITS = StructureLimits()
ASSOCIATION = "association"
SCANNER = Origin("scanner", ASSOCIATION)


def element(tag: tuple[int, int], value: str) -> bytes:
    raw = value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", *tag, b"UI", len(raw)) + raw


def data_set(uid: str, study: str = "1.2.3") -> bytes:
    return (
        element((0x0008, 0x0016), MR)
        + element((0x0008, 0x0018), uid)
        + element((0x0020, 0x000D), study)
        + element((0x0020, 0x000E), "1.2.3.4")
    )


def pixel_data(value: bytes) -> bytes:
    return struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(value)) + value


def announce(uid: str) -> Announced:
    return Announced(sop_class_uid=MR, sop_instance_uid=uid, transfer_syntax_uid=EXPLICIT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", Clock()).open() as one:
        yield one


@pytest.fixture
def spool(store: Store, ledger: Ledger) -> Iterator[Spool]:
    with open_spool(store, ledger, LIMITS, Durability.STRICT) as one:
        yield one


def keep(spool: Spool, uid: str, content: bytes | None = None, *, in_pieces: bool = False) -> None:
    whole = memoryview(data_set(uid) if content is None else content)
    if not in_pieces:
        spool.keep(announce(uid), [whole[:5], whole[5:]], SCANNER)
        return
    with spool.begin(announce(uid), SCANNER) as incoming:
        last = len(whole) // 3 * 2
        incoming.write([whole[:7], whole[7 : last // 2]])
        incoming.write([whole[last // 2 : last]])
        incoming.keep([whole[last : last + 5], whole[last + 5 :]])


def test_what_is_kept_is_the_file_of_the_data_set_verbatim(spool, store, ledger):
    keep(spool, "1.2.3.5")

    (instance,) = ledger.read_instances("1.2.3")
    assert store.read(instance.path) == (
        encode_file_meta(MR, "1.2.3.5", EXPLICIT) + data_set("1.2.3.5")
    )
    assert instance.series_instance_uid == "1.2.3.4"
    assert instance.transfer_syntax_uid == EXPLICIT


def test_what_is_refused_leaves_no_file_and_no_row(spool, store, ledger):
    with pytest.raises(RefusedInstance):
        keep(spool, "1.2.3.5", data_set("1.2.3.6"))

    assert list(store.iterate_incoming()) == []
    assert ledger.known_paths() == set()


def test_the_file_is_whole_before_its_row_and_the_row_before_the_answer(
    spool, store, ledger, monkeypatch
):
    seen: list[tuple[str, int, int]] = []

    def reach(name: str) -> None:
        seen.append((name, len(list(store.iterate_incoming())), len(ledger.known_paths())))

    monkeypatch.setattr(crashpoints, "reach", reach)
    keep(spool, "1.2.3.5")

    assert seen == [("receive.written", 0, 0), ("receive.stored", 1, 0), ("receive.recorded", 1, 1)]


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("durability", list(Durability))
def test_a_long_data_set_is_kept_as_it_came(store, ledger, durability, in_pieces):
    long = data_set("1.2.3.5") + pixel_data(bytes(range(256)) * 4_096)
    with open_spool(store, ledger, LIMITS, durability) as spool:
        keep(spool, "1.2.3.5", long, in_pieces=in_pieces)

    (instance,) = ledger.read_instances("1.2.3")
    assert store.read(instance.path) == encode_file_meta(MR, "1.2.3.5", EXPLICIT) + long


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(
    ("tail", "status"),
    [(b"", 0xC103), (element((0x7FE1, 0x0010), "after"), None), (b"\xfe\xff\x0d\xe0" * 2, 0xC102)],
)
def test_structure_beyond_the_bytes_in_memory_is_walked_as_well(
    spool, store, tail, status, in_pieces
):
    pixels = pixel_data(bytes(100_000))
    content = data_set("1.2.3.5") + (pixels + tail if tail else pixels[:-2])
    if status is None:
        keep(spool, "1.2.3.5", content, in_pieces=in_pieces)
    else:
        with pytest.raises(RefusedInstance) as refused:
            keep(spool, "1.2.3.5", content, in_pieces=in_pieces)
        assert refused.value.status == status
    assert len(list(store.iterate_incoming())) == (status is None)


@pytest.mark.parametrize("durability", [Durability.STRICT, Durability.SYNCED])
def test_the_same_content_again_replaces_its_file_in_the_strict_order(
    store, ledger, durability, monkeypatch
):
    synced: list[str] = []
    sync = os.fsync

    def record_sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().suffix or "folder")
        sync(descriptor)

    with open_spool(store, ledger, LIMITS, durability) as spool:
        keep(spool, "1.2.3.5")
        monkeypatch.setattr(os, "fsync", record_sync)
        keep(spool, "1.2.3.5")

    assert synced == [".part", "folder"]
    assert len(list(store.iterate_incoming())) == 1
    assert list(store.path(INCOMING).rglob("*.part")) == []
    assert len(ledger.read_instances("1.2.3")) == 1


def write_unnamed(store: Store, uid: str) -> str:
    """Write what a process leaves that dies after 0x0000 and before the digest; return its name."""
    content = encode_file_meta(MR, uid, EXPLICIT) + data_set(uid)
    relative = store.unnamed(uid, len(content))
    store.path(relative).write_bytes(content)
    return relative


def test_without_durability_the_same_content_again_leaves_one_file_and_one_row(store, ledger):
    with open_spool(store, ledger, LIMITS, Durability.NONE) as spool:
        keep(spool, "1.2.3.5")
        keep(spool, "1.2.3.5")

    (instance,) = ledger.read_instances("1.2.3")
    assert [instance.path] == list(store.iterate_incoming())
    assert sha256(store.read(instance.path)).hexdigest() == instance.sha256
    assert list(store.path(INCOMING).rglob("*.part")) == []


def test_without_durability_the_first_content_keeps_its_uid(store, ledger):
    with open_spool(store, ledger, LIMITS, Durability.NONE) as spool:
        keep(spool, "1.2.3.5", contents(1))
        keep(spool, "1.2.3.5", contents(2))

    assert end_of(store, [each.path for each in ledger.read_instances("1.2.3")]) == [b"\1"]
    assert end_of(store, store.iterate_quarantine()) == [b"\2"]


def test_a_whole_file_without_a_digest_gets_its_name_and_its_row(store, ledger):
    write_unnamed(store, "1.2.3.5")

    assert store.sweep_parts() == 0
    assert rebuild(store, ledger, LIMITS) == 1
    (instance,) = ledger.read_instances("1.2.3")
    assert store.read(instance.path).endswith(data_set("1.2.3.5"))


@pytest.mark.parametrize("harm", ["cut off", "from before a power cut"])
def test_a_file_without_a_digest_that_may_not_be_whole_is_deleted(store, ledger, harm):
    part = store.path(write_unnamed(store, "1.2.3.5"))
    if harm == "cut off":
        part.write_bytes(part.read_bytes()[:-2])
    else:
        size, _, rest = part.name.partition("-")
        part.rename(part.with_name(f"{size}-0000-{rest.partition('.')[0][-4:]}.1-1.part"))

    assert rebuild(store, ledger, LIMITS) == 0
    assert list(store.path(INCOMING).rglob("*.part")) == []
    assert ledger.known_paths() == set()


def test_a_part_that_is_not_kept_is_deleted(spool, store):
    with spool.begin(announce("1.2.3.5"), SCANNER) as incoming:
        incoming.write([memoryview(b"half")])
        assert len(list(store.path(INCOMING).rglob("*.part"))) == 1

    assert list(store.path(INCOMING).rglob("*.*")) == []


def test_a_file_without_a_row_gets_its_row_back(spool, store, ledger, monkeypatch):
    def die(*_: object, **__: object) -> None:
        raise StorageError("the row is lost")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "record_receipts", die)
        with pytest.raises(StorageError):
            keep(spool, "1.2.3.5")
    assert ledger.known_paths() == set()

    assert rebuild(store, ledger, LIMITS) == 1

    assert ledger.known_paths() == set(store.iterate_incoming())
    (instance,) = ledger.read_instances("1.2.3")
    assert instance.sop_instance_uid == "1.2.3.5"
    assert rebuild(store, ledger, LIMITS) == 0


def test_a_rebuilt_row_is_the_one_that_was_lost(spool, store, ledger, tmp_path):
    keep(spool, "1.2.3.5")
    with Ledger(f"sqlite:///{tmp_path / 'other.sqlite'}", Clock()).open() as other:
        rebuild(store, other, LIMITS)

        assert other.read_instances("1.2.3") == ledger.read_instances("1.2.3")


def test_a_file_is_durable_before_rebuild_gives_it_its_row(
    spool, store, ledger, tmp_path, monkeypatch
):
    """A receiver that was killed may have left it in the cache of the kernel only."""
    keep(spool, "1.2.3.5")
    steps: list[str] = []
    sync = os.fsync

    def record_sync(descriptor: int) -> None:
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    with Ledger(f"sqlite:///{tmp_path / 'other.sqlite'}", Clock()).open() as other:
        record = other.record_instances
        monkeypatch.setattr(os, "fsync", record_sync)
        monkeypatch.setattr(
            other, "record_instances", lambda *args: (steps.append("row"), record(*args))
        )

        rebuild(store, other, LIMITS)

    (name,) = (Path(path) for path in store.iterate_incoming())
    assert steps == [name.name, name.parent.name, "row"]


def end_of(store: Store, paths: Iterable[str]) -> list[bytes]:
    return [store.read(path)[-1:] for path in paths]


def contents(number: int) -> bytes:
    """Return one of several contents of the same instance; its last byte is the number."""
    return data_set("1.2.3.5") + pixel_data(bytes([0, number]))


def die_while_keeping(folder: Path, step: str, numbers: Sequence[int]) -> None:
    """Keep contents in a process of its own that is killed when it comes to `step`."""
    child = os.fork()
    if child == 0:
        os.environ["DICOM_NODE_CRASH_AT"] = step
        crashpoints.point.cache_clear()
        with (
            Ledger(f"sqlite:///{folder / 'ledger.sqlite'}", Clock()).open() as ledger,
            open_spool(Store(folder / "store"), ledger, LIMITS, Durability.SYNCED) as spool,
        ):
            for number in numbers:
                keep(spool, "1.2.3.5", contents(number))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("step", ["receive.stored", "receive.quarantined", "receive.recorded"])
@pytest.mark.parametrize(
    ("before", "under_way"),
    [([1], [2]), ([], [1, 2]), ([1, 2], [2]), ([1, 2], [3])],
    ids=["of another time", "of the same commit", "that came before", "one more"],
)
def test_a_crash_turns_no_contested_content_into_the_first(
    store, ledger, tmp_path, step, before, under_way
):
    with open_spool(store, ledger, LIMITS, Durability.SYNCED) as spool:
        for number in before:
            keep(spool, "1.2.3.5", contents(number))
    die_while_keeping(tmp_path, step, under_way)

    rebuild(store, ledger, LIMITS)

    sources = [each.path for each in ledger.read_instances("1.2.3")]
    contested = [each.quarantined for each in ledger.conflicts("1.2.3")]
    is_only_one = step == "receive.stored" and not before
    assert end_of(store, sources) == [b"\1"]
    assert end_of(store, contested) == ([] if is_only_one else [b"\2", b"\3"][: max(under_way) - 1])
    assert list(store.iterate_incoming()) == sources
    assert list(store.iterate_quarantine()) == sorted(contested)


@pytest.mark.parametrize(("older", "newer"), [(1, 2), (2, 1)])
def test_of_two_files_without_rows_the_older_one_has_the_uid(store, ledger, older, newer):
    for minutes, number in enumerate((older, newer)):
        content = encode_file_meta(MR, "1.2.3.5", EXPLICIT) + contents(number)
        path = store.incoming_name("1.2.3.5", sha256(content).hexdigest())
        store.write(path, content)
        os.utime(store.path(path), (0, 60 * minutes))

    rebuild(store, ledger, LIMITS)

    assert end_of(store, [each.path for each in ledger.read_instances("1.2.3")]) == [bytes([older])]
    assert end_of(store, store.iterate_quarantine()) == [bytes([newer])]


def test_a_file_that_came_again_after_its_time_is_remembered(spool, store, ledger, tmp_path):
    keep(spool, "1.2.3.5", contents(1))
    (instance,) = ledger.read_instances("1.2.3")
    store.delete(instance.path)
    ledger.forget_bytes([instance.path])
    die_while_keeping(tmp_path, "receive.stored", [1])

    rebuild(store, ledger, LIMITS)

    assert ledger.known_paths() == {instance.path}


def test_a_half_written_file_is_deleted_at_start(store, ledger):
    part = store.path(INCOMING) / "ab" / "x.dcm.1234.part"
    part.write_bytes(b"half")

    rebuild(store, ledger, LIMITS)

    assert not part.exists()


@pytest.mark.parametrize("content", [b"", b"rubbish", encode_file_meta(MR, "1.2.3.5", EXPLICIT)])
def test_a_file_that_is_no_instance_is_set_aside_and_gets_no_row(store, ledger, content):
    store.write(Store.incoming_name("1.2.3.5", "0" * 64), content)

    assert rebuild(store, ledger, LIMITS) == 0
    assert list(store.iterate_incoming()) == []
    assert len(list(store.path(INCOMING).rglob("*.damaged"))) == 1
    assert ledger.known_paths() == set()


def test_a_file_under_another_name_than_its_own_gets_no_row(store, ledger):
    content = encode_file_meta(MR, "1.2.3.5", EXPLICIT) + data_set("1.2.3.5")
    store.write(Store.incoming_name("1.2.3.5", "0" * 64), content)

    assert rebuild(store, ledger, LIMITS) == 0
