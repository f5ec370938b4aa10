"""Keep one received instance so that it survives a power cut, and find again what a crash left.

Steps 1 and 2 of the walk. The order is the promise: file synced, name synced, ledger row committed,
and only then does the caller answer 0x0000. Whatever fails on the way leaves as an exception, so
that no success is ever said of bytes that may be lost. The data set is kept verbatim.
"""

import contextlib
import hashlib
import logging
import mmap
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from dicom_node import crashpoints
from dicom_node.domain import Instance
from dicom_node.errors import RefusedInstance, StorageError
from dicom_node.ledger import Ledger
from dicom_node.part10 import decode_file_meta, encode_file_meta
from dicom_node.store import INCOMING, PART, Store
from dicom_node.structure import MISMATCH, Identity, StructureLimits, read_identity
from dicom_node.upper_layer import IMPLICIT_VR_LITTLE_ENDIAN

REBUILT = "(rebuilt)"
"""Stands for the peer of an instance whose row was made from its file."""

_MEMORY_BYTES = 8 * 1024 * 1024
"""A data set up to this size is held in memory; a longer one waits in a nameless file."""
_CHUNK_BYTES = 1024 * 1024
_REBUILD_BATCH = 256

_logger = logging.getLogger(__name__)


class IncomingDataSet:
    """The data set of one message while it comes in; a context manager.

    A long one goes to a file without a name on the store's file system, of which a crash leaves
    nothing behind.
    """

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._folder = folder
        self._memory = bytearray()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, fragment: memoryview) -> None:
        """Add the next fragment, which is copied.

        Raises:
            StorageError: the disk is full or broken.
        """
        self.size += len(fragment)
        if self._file is None and self.size <= _MEMORY_BYTES:
            self._memory += fragment
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed at exit
                self._file.write(self._memory)
                self._memory = bytearray()
            self._file.write(fragment)
        except OSError as error:
            raise StorageError("the disk does not take the data set") from error

    @contextlib.contextmanager
    def view(self) -> Iterator[memoryview]:
        """Give all bytes for the length of a `with` block.

        Raises:
            StorageError: the disk is full or broken.
        """
        if self._file is None:
            with memoryview(self._memory) as view:
                yield view
            return
        try:
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise StorageError("the disk does not give the data set back") from error
        with mapped, memoryview(mapped) as view:
            yield view


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What the C-STORE request and its presentation context say of the data set that follows."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


class Spool:
    """Where received instances are kept: a store and a ledger, in this order."""

    def __init__(self, store: Store, ledger: Ledger, limits: StructureLimits) -> None:
        self._store = store
        self._ledger = ledger
        self._limits = limits
        # One writer at a time inside this process: SQLite's own waiting is a slow poll.
        self._ledger_turn = threading.Lock()

    def begin(self) -> IncomingDataSet:
        """Return an empty data set to write into."""
        return IncomingDataSet(self._store.path(INCOMING))

    def keep(
        self, incoming: IncomingDataSet, announced: Announced, *, peer: str, association_id: str
    ) -> None:
        """Make an instance durable; when this returns, 0x0000 is true.

        The same content again changes nothing. The same UID with other content is kept beside the
        first.

        Raises:
            RefusedInstance: it cannot be kept faithfully.
            StorageError: the disk or the ledger did not take it.
        """
        with incoming.view() as data:
            identity = _read_announced(data, announced, self._limits)
            instance = self._write(data, identity, announced)
        crashpoints.reach("receive.stored")
        with self._ledger_turn:
            self._ledger.record_instances([instance], peer, association_id)
        crashpoints.reach("receive.recorded")

    def open_association(self, association_id: str, peer: str) -> None:
        """Say in the ledger that a peer has begun to deliver."""
        with self._ledger_turn:
            self._ledger.open_association(association_id, peer)

    def beat_associations(self, association_ids: Iterable[str]) -> None:
        """Say in the ledger that these associations are alive."""
        for association_id in association_ids:
            with self._ledger_turn:
                self._ledger.beat_association(association_id)

    def close_association(self, association_id: str) -> None:
        """Say in the ledger that an association is over."""
        with self._ledger_turn:
            self._ledger.close_association(association_id)

    def _write(self, data: memoryview, identity: Identity, announced: Announced) -> Instance:
        meta = encode_file_meta(
            announced.sop_class_uid, announced.sop_instance_uid, announced.transfer_syntax_uid
        )
        digest = hashlib.sha256(meta)
        digest.update(data)
        sha256 = digest.hexdigest()
        relative = self._store.incoming_name(identity.sop_instance_uid, sha256)
        self._store.write(relative, _chunks(meta, data))
        return _instance(identity, announced.transfer_syntax_uid, sha256, relative)


def rebuild(store: Store, ledger: Ledger, limits: StructureLimits) -> int:
    """Delete half-written received files, record every whole one that has no row; return how many.

    A crash between a file's rename and its row leaves such a file; so does a ledger that is older
    than its store. Runs at start, before anything listens or sweeps. A file that is not what its
    name says is left alone and told in the log.

    Raises:
        StorageError: the disk or the ledger does not answer.
    """
    for part in sorted(store.path(INCOMING).glob(f"*/*{PART}")):
        store.delete(f"{INCOMING}/{part.parent.name}/{part.name}")
    known = ledger.known_paths()
    recorded = unreadable = 0
    batch: list[Instance] = []
    for relative in store.iterate_incoming():
        if relative in known:
            continue
        instance = _read_instance(store, relative, limits)
        if instance is None:
            unreadable += 1
            continue
        batch.append(instance)
        if len(batch) == _REBUILD_BATCH:
            ledger.record_instances(batch, REBUILT, None)
            recorded += len(batch)
            batch = []
    ledger.record_instances(batch, REBUILT, None)
    recorded += len(batch)
    if recorded or unreadable:
        _logger.warning(
            "rebuild: %d received files had no row, %d could not be read", recorded, unreadable
        )
    return recorded


def _read_instance(store: Store, relative: str, limits: StructureLimits) -> Instance | None:
    """Return what a received file says of itself; None when it is not what its name says."""
    data = store.read(relative)
    try:
        meta = decode_file_meta(data)
        announced = Announced(
            sop_class_uid=meta.sop_class_uid,
            sop_instance_uid=meta.sop_instance_uid,
            transfer_syntax_uid=meta.transfer_syntax_uid,
        )
        with memoryview(data) as view:
            identity = _read_announced(view[meta.data_set_offset :], announced, limits)
    except (ValueError, RefusedInstance):
        return None
    sha256 = hashlib.sha256(data).hexdigest()
    if store.incoming_name(identity.sop_instance_uid, sha256) != relative:
        return None
    return _instance(identity, meta.transfer_syntax_uid, sha256, relative)


def _read_announced(data: memoryview, announced: Announced, limits: StructureLimits) -> Identity:
    """Walk the data set and compare it to what was announced (PS3.4 table B.2-1, 0xA900)."""
    identity = read_identity(
        data, explicit=announced.transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN, limits=limits
    )
    if (identity.sop_class_uid, identity.sop_instance_uid) != (
        announced.sop_class_uid,
        announced.sop_instance_uid,
    ):
        raise RefusedInstance("the data set is not the instance that was announced", MISMATCH)
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


def _chunks(meta: bytes, data: memoryview) -> Iterator[bytes]:
    """Yield the file in pieces that do not make a long data set a second time in memory."""
    yield meta
    for start in range(0, len(data), _CHUNK_BYTES):
        yield bytes(data[start : start + _CHUNK_BYTES])
