"""Keep one received instance so that it survives a power cut, and find again what a crash left.

Steps 1 and 2 of the walk. The order is the promise: bytes and name of the file are durable, its row
is committed or can be made from the file, and only then does the caller answer 0x0000. Whatever
fails on the way leaves as an exception, so that no success is ever said of bytes that may be lost.
The data set is kept verbatim.
"""

import functools
import hashlib
import logging
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, Self

from dicom_node import crashpoints
from dicom_node.disk import Buffer, open_folder, sync_folder
from dicom_node.domain import QUARANTINE, Instance
from dicom_node.errors import RefusedInstance
from dicom_node.part10 import decode_file_meta, encode_file_meta
from dicom_node.recorder import Rows
from dicom_node.records import Receipt
from dicom_node.redo_log import Record, RedoLog, read_records, sync_all
from dicom_node.store import (
    INCOMING,
    PART,
    REDO,
    Durability,
    PartFile,
    Store,
    WholeFile,
    translated,
)
from dicom_node.structure import (
    MISMATCH,
    BeyondHeadError,
    Identity,
    Memory,
    StructureLimits,
    read_identity,
)
from dicom_node.upper_layer import IMPLICIT_VR_LITTLE_ENDIAN

if TYPE_CHECKING:
    from dicom_node.ledger import Ledger
    from dicom_node.node_settings import NodeSettings

REBUILT = "(rebuilt)"
"""Stands for the peer of an instance whose row was made from its file."""

_HEAD_BYTES = 32_768
"""So much of a data set is held in memory, where its structure is walked; all else is skipped."""
_REBUILD_BATCH = 256

Walk = Callable[..., Identity]
"""`read_identity` with its limits, and its memory of earlier walks."""

_logger = logging.getLogger(__name__)


class Announced(NamedTuple):
    """What is said of a data set before it comes, by a C-STORE request and its context for example.

    Attributes:
        series_instance_uid: that was asked for; empty where nobody asked.
        study_instance_uid: of it.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str = ""
    study_instance_uid: str = ""

    def encode(self) -> bytes:
        """Return what stands in front of the data set in its file."""
        return encode_file_meta(self.sop_class_uid, self.sop_instance_uid, self.transfer_syntax_uid)


class Origin(NamedTuple):
    """Where an instance comes from: the alias of a peer, and one of its associations."""

    peer: str
    association_id: str


class Spool:
    """Where received instances are kept: a store and, behind a recorder, a ledger.

    Attributes:
        turn: held while an instance is taken from memory to its file. The interpreter runs one
            thread at a time, and threads that wrestle for it at every system call all lose.
        durability: what an instance survives when 0x0000 is said of it. Strict waits for its row as
            well; the other two leave that to the recorder, and after a crash to `rebuild`.
        log: makes an instance durable sooner than its file is; after a crash, `replay` reads it.
    """

    def __init__(
        self,
        store: Store,
        recorder: Rows,
        limits: StructureLimits,
        durability: Durability,
        log: RedoLog | None = None,
    ) -> None:
        self.store = store
        self.log = log if durability is Durability.SYNCED else None
        self.recorder = recorder
        self.walk = functools.partial(read_identity, limits=limits, memory=Memory())
        self.durability = durability
        self.turn = threading.Lock()

    def keep(self, announced: Announced, fragments: Sequence[memoryview], origin: Origin) -> None:
        """Make an instance durable that lies in memory whole; after this, 0x0000 is true.

        The same content again changes nothing. The same UID with other content is kept beside the
        first.

        Args:
            announced: what was said of it.
            fragments: its data set.
            origin: who sent it.

        Raises:
            RefusedInstance: it cannot be kept faithfully.
            StorageError: the disk or the ledger did not take it.
        """
        self.write(announced, fragments, origin).settle()

    def write(
        self, announced: Announced, fragments: Sequence[memoryview], origin: Origin
    ) -> "Written":
        """Do of `keep` what waits for no disk; settling what this returns does the rest.

        Without durability the digest is left to the recorder: it costs more than all the rest, and
        tells only a whole file from half a one after a power cut.
        """
        meta = announced.encode()
        with self.turn:
            identity = self._read_identity(announced, fragments)
            if self.durability is Durability.NONE:
                size = len(meta) + sum(map(len, fragments))
                sha256, relative = "", self.store.unnamed(identity.sop_instance_uid, size)
            else:
                digest = hashlib.sha256(meta)
                for fragment in fragments:
                    digest.update(fragment)
                sha256 = digest.hexdigest()
                relative = self.store.incoming_name(identity.sop_instance_uid, sha256)
            with translated("write"):
                pieces: list[Buffer] = [meta, *fragments]
                file = WholeFile(self.store.incoming_path(relative), pieces, self.durability)
            bring = None
            if self.log is not None and file.is_new:
                bring = self.log.append(relative, sha256, pieces)
        crashpoints.reach("receive.written")
        instance = _instance(identity, announced.transfer_syntax_uid, sha256, relative)
        receipt = Receipt(instance=instance, peer=origin.peer, association_id=origin.association_id)
        return Written(self, file, receipt, bring)

    def begin(self, announced: Announced, origin: Origin) -> "Incoming":
        """Return an instance without a data set, to write into what comes in several pieces."""
        return Incoming(self, announced, origin)

    def record(self, receipt: Receipt) -> None:
        """Let an instance whose file is durable have its row.

        Raises:
            StorageError: the ledger did not take it.
        """
        crashpoints.reach("receive.stored")
        self.recorder.record(receipt)

    def _read_identity(self, announced: Announced, fragments: Sequence[memoryview]) -> Identity:
        """Walk the structure in the first fragment, or in all where it goes on beyond it."""
        size = sum(map(len, fragments))
        try:
            return _read_announced(self.walk, fragments[0], announced, length=size)
        except BeyondHeadError:
            return _read_announced(self.walk, b"".join(fragments), announced)


class Written:
    """One instance whose file is written, but may not be durable.

    Attributes:
        is_settled: no disk has to be waited for.
    """

    def __init__(
        self,
        spool: Spool,
        file: WholeFile,
        receipt: Receipt,
        bring: Callable[[], None] | None,
    ) -> None:
        self.is_settled = spool.durability is Durability.NONE
        self._bring = bring
        self._spool = spool
        self._file = file
        self._receipt = receipt

    def settle(self) -> None:
        """Make it durable; after this, 0x0000 is true.

        Raises:
            StorageError: the disk or the ledger did not take it.
        """
        with translated("write"):
            self._file.settle(self._bring)
        self._spool.record(self._receipt)


class Incoming:
    """One instance while its data set comes in; a context manager that leaves nothing by halves.

    Every piece goes to a part file and into the digest as it comes, so that little is left to do
    after the last one.
    """

    def __init__(self, spool: Spool, announced: Announced, origin: Origin) -> None:
        self._spool = spool
        self._announced = announced
        self._origin = origin
        meta = announced.encode()
        self._meta_bytes = len(meta)
        self._digest = hashlib.sha256(meta)
        self._unwritten: list[bytes] = [meta]
        self._head = b""
        self._size = 0
        stem = spool.store.incoming_stem(announced.sop_instance_uid)
        with translated("write"):
            self._part = PartFile(spool.store.incoming_path(stem))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with translated("write"):
            self._part.close()

    def write(self, fragments: Sequence[memoryview]) -> None:
        """Add fragments that are not the last ones.

        Raises:
            StorageError: the disk is full or broken.
        """
        pieces: list[bytes | memoryview] = [*self._unwritten, *fragments]
        self._unwritten = []
        for fragment in fragments:
            self._digest.update(fragment)
            self._size += len(fragment)
            if len(self._head) < _HEAD_BYTES:
                self._head += fragment[:_HEAD_BYTES]
        with translated("write"):
            self._part.write(pieces)

    def keep(self, fragments: Sequence[memoryview]) -> None:
        """Add the last fragments and make the instance durable, as `Spool.keep` does.

        Raises:
            RefusedInstance: it cannot be kept faithfully.
            StorageError: the disk or the ledger did not take it.
        """
        spool = self._spool
        with spool.turn:
            self.write(fragments)
            identity = self._read_identity()
            sha256 = self._digest.hexdigest()
            relative = spool.store.incoming_name(identity.sop_instance_uid, sha256)
        crashpoints.reach("receive.written")
        with translated("write"):
            self._part.keep(spool.store.incoming_path(relative), spool.durability)
        instance = _instance(identity, self._announced.transfer_syntax_uid, sha256, relative)
        origin = self._origin
        spool.record(
            Receipt(instance=instance, peer=origin.peer, association_id=origin.association_id)
        )

    def _read_identity(self) -> Identity:
        """Walk the structure in the first bytes, or in the file where it goes on beyond them."""
        walk, announced = self._spool.walk, self._announced
        try:
            return _read_announced(walk, self._head, announced, length=self._size)
        except BeyondHeadError:
            with translated("read"), self._part.mapped() as whole:
                return _read_announced(walk, whole, announced, start=self._meta_bytes)


def build_structure_limits(node: "NodeSettings") -> StructureLimits:
    """Return how much structure an instance may have."""
    limits = node.receiver.limits
    return StructureLimits(
        depth=limits.depth,
        elements=limits.elements,
        bytes_outside_pixels=limits.outside_pixels,
    )


def replay(store: Store) -> int:
    """Make files anew that a power cut has taken and a log still holds; return how many.

    Then all files are on the disk, and the logs are deleted. Runs while nobody receives: before
    `rebuild`, and at an orderly end.

    Raises:
        StorageError: the disk does not take it.
    """
    made = 0
    logs = sorted(store.path(REDO).glob("*.log"))
    with translated("restore"):
        for log in logs:
            for record in read_records(log):
                made += _restore(store, record)
    if logs:
        with translated("sync"), open_folder(store.path(INCOMING)) as files:
            sync_all(files)
            for log in logs:
                log.unlink()
            sync_folder(store.path(REDO))
    if made:
        _logger.warning("replay: %d received files were not whole", made)
    return made


def _restore(store: Store, record: Record) -> bool:
    """Make a file anew unless it is whole where it was, or where the quarantine has taken it."""
    name, moved = record.name, f"{QUARANTINE}/{PurePosixPath(record.name).name}"
    if store.path(moved).exists() and not store.path(name).exists():
        name = moved
    path = store.path(name)
    if path.exists() and path.read_bytes() == record.content:
        return False
    store.write(name, bytes(record.content))
    os.utime(path, ns=(record.came_ns, record.came_ns))
    return True


def rebuild(store: Store, ledger: "Ledger", limits: StructureLimits) -> int:
    """Delete half-written received files, record every whole one that has no row; return how many.

    A file that was acknowledged before it got its name (`Durability.NONE`) gets it now.

    A crash between a file and its row leaves such a file; so does a ledger that is older than its
    store. Runs at start, before anything listens or sweeps. A file without a row that is not what
    its name says was never acknowledged, or the disk has changed it: it is set aside under
    another name and told in the log. A whole one is durable before its row is: a process that was
    killed may have left it in the cache.

    Of two contents under one UID the older file is the first, and what was in quarantine stays
    there: who had the UID before the crash has it after.

    Raises:
        StorageError: the disk or the ledger does not answer.
    """
    for part in sorted(store.path(INCOMING).glob(f"*/*{PART}")):
        relative = f"{INCOMING}/{part.parent.name}/{part.name}"
        if store.is_whole(relative):
            store.give_name(relative)
        else:
            store.delete(relative)
    known = ledger.known_paths()
    walk = functools.partial(read_identity, limits=limits, memory=Memory())
    recorded = unreadable = 0
    batch: list[Instance] = []

    def record() -> int:
        ledger.record_instances(batch, REBUILT, None, store.quarantine)
        crashpoints.reach("rebuild.recorded")
        return len(batch)

    for relative in (
        *store.by_age(each for each in store.iterate_incoming() if each not in known),
        *store.by_age(each for each in store.iterate_quarantine() if each not in known),
    ):
        instance = _read_instance(store, relative, walk)
        if instance is None:
            store.set_aside(relative)
            unreadable += 1
            continue
        store.make_durable(relative)
        batch.append(instance)
        if len(batch) == _REBUILD_BATCH:
            recorded += record()
            batch.clear()
    recorded += record()
    if recorded or unreadable:
        _logger.warning(
            "rebuild: %d received files had no row, %d were no whole instance", recorded, unreadable
        )
    return recorded


def _read_instance(store: Store, relative: str, walk: Walk) -> Instance | None:
    """Return what a received file says of itself; None when it is not what its name says."""
    data = store.read(relative)
    try:
        meta = decode_file_meta(data)
        announced = Announced(
            sop_class_uid=meta.sop_class_uid,
            sop_instance_uid=meta.sop_instance_uid,
            transfer_syntax_uid=meta.transfer_syntax_uid,
        )
        identity = _read_announced(walk, data, announced, start=meta.data_set_offset)
    except (ValueError, RefusedInstance):
        return None
    sha256 = hashlib.sha256(data).hexdigest()
    name = store.incoming_name(identity.sop_instance_uid, sha256)
    if PurePosixPath(name).name != PurePosixPath(relative).name:
        return None
    return _instance(identity, meta.transfer_syntax_uid, sha256, relative)


def _read_announced(
    walk: Walk,
    data: bytes | memoryview | mmap.mmap,
    announced: Announced,
    *,
    start: int = 0,
    length: int | None = None,
) -> Identity:
    """Walk the data set and compare it to what was announced (PS3.4 table B.2-1, 0xA900)."""
    identity = walk(
        data,
        explicit=announced.transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN,
        start=start,
        length=length,
    )
    if (identity.sop_class_uid, identity.sop_instance_uid) != (
        announced.sop_class_uid,
        announced.sop_instance_uid,
    ):
        raise RefusedInstance("the data set is not the instance that was announced", MISMATCH)
    wanted = announced.series_instance_uid, announced.study_instance_uid
    if any(wanted) and wanted != (identity.series_instance_uid, identity.study_instance_uid):
        raise RefusedInstance("it is of another series than was asked for", MISMATCH)
    return identity


def _instance(identity: Identity, transfer_syntax_uid: str, sha256: str, path: str) -> Instance:
    return Instance(
        sop_instance_uid=identity.sop_instance_uid,
        sop_class_uid=identity.sop_class_uid,
        series_instance_uid=identity.series_instance_uid,
        study_instance_uid=identity.study_instance_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        sha256=sha256,
        path=path,
    )
