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
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self

from dicom_node import crashpoints
from dicom_node.domain import Instance
from dicom_node.errors import RefusedInstance
from dicom_node.ledger import Ledger, Receipt
from dicom_node.part10 import decode_file_meta, encode_file_meta
from dicom_node.recorder import Rows
from dicom_node.store import INCOMING, PART, Durability, PartFile, Store, WholeFile, translated
from dicom_node.structure import (
    MISMATCH,
    BeyondHeadError,
    Identity,
    Memory,
    StructureLimits,
    read_identity,
)
from dicom_node.upper_layer import IMPLICIT_VR_LITTLE_ENDIAN

REBUILT = "(rebuilt)"
"""Stands for the peer of an instance whose row was made from its file."""

_HEAD_BYTES = 32_768
"""So much of a data set is held in memory, where its structure is walked; all else is skipped."""
_REBUILD_BATCH = 256

Walk = Callable[..., Identity]
"""`read_identity` with its limits, and its memory of earlier walks."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What the C-STORE request and its presentation context say of the data set that follows."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


class Incoming:
    """One instance while its data set comes in; a context manager that leaves nothing by halves.

    What comes in one piece is written in one piece. Of what does not, every piece goes to a part
    file and into the digest as it comes, so that little is left to do after the last one.
    """

    def __init__(
        self, spool: "Spool", announced: Announced, *, peer: str, association: str
    ) -> None:
        self._spool = spool
        self._announced = announced
        self._peer = peer
        self._association = association
        self._meta = encode_file_meta(
            announced.sop_class_uid, announced.sop_instance_uid, announced.transfer_syntax_uid
        )
        self._digest = hashlib.sha256(self._meta)
        self._head = b""
        self._size = 0
        self._part: PartFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._part is not None:
            with translated("write"):
                self._part.close()

    def write(self, fragments: Sequence[memoryview]) -> None:
        """Add fragments that are not the last ones.

        Raises:
            StorageError: the disk is full or broken.
        """
        self._look_at(fragments)
        with translated("write"):
            if self._part is None:
                stem = self._spool.store.incoming_stem(self._announced.sop_instance_uid)
                self._part = PartFile(self._spool.store.incoming_path(stem))
                self._part.write([self._meta])
            self._part.write(fragments)

    def keep(self, fragments: Sequence[memoryview]) -> None:
        """Add the last fragments and make the instance durable; after this, 0x0000 is true.

        The same content again changes nothing. The same UID with other content is kept beside the
        first.

        Raises:
            RefusedInstance: it cannot be kept faithfully.
            StorageError: the disk or the ledger did not take it.
        """
        spool = self._spool
        whole: WholeFile | None = None
        with spool.turn:
            if self._part is None:
                self._look_at(fragments)
            else:
                self.write(fragments)
            identity = self._read_identity(fragments)
            sha256 = self._digest.hexdigest()
            relative = spool.store.incoming_name(identity.sop_instance_uid, sha256)
            final = spool.store.incoming_path(relative)
            if self._part is None:
                with translated("write"):
                    whole = WholeFile(final, [self._meta, *fragments], spool.durability)
        crashpoints.reach("receive.written")
        with translated("write"):
            if whole is not None:
                whole.settle()
            elif self._part is not None:
                self._part.keep(final, spool.durability)
        crashpoints.reach("receive.stored")
        spool.recorder.record(
            Receipt(
                instance=_instance(identity, self._announced.transfer_syntax_uid, sha256, relative),
                peer=self._peer,
                association_id=self._association,
            )
        )

    def _look_at(self, fragments: Sequence[memoryview]) -> None:
        """Take fragments into the digest, and the first bytes of all into memory."""
        for fragment in fragments:
            self._digest.update(fragment)
            self._size += len(fragment)
            if len(self._head) < _HEAD_BYTES:
                self._head += fragment[:_HEAD_BYTES]

    def _read_identity(self, fragments: Sequence[memoryview]) -> Identity:
        """Walk the structure in the first bytes, or in all where it goes on beyond them."""
        walk, announced = self._spool.walk, self._announced
        try:
            return _read_announced(walk, self._head, announced, length=self._size)
        except BeyondHeadError:
            if self._part is None:
                return _read_announced(walk, b"".join(fragments), announced)
            with translated("read"), self._part.mapped() as whole:
                return _read_announced(walk, whole, announced, start=len(self._meta))


class Spool:
    """Where received instances are kept: a store and, behind a recorder, a ledger.

    Attributes:
        turn: held while an instance is taken from memory to its file. The interpreter runs one
            thread at a time, and threads that wrestle for it at every system call all lose.
        durability: what an instance survives when 0x0000 is said of it. Strict waits for its row as
            well; the other two leave that to the recorder, and after a crash to `rebuild`.
    """

    def __init__(
        self, store: Store, recorder: Rows, limits: StructureLimits, durability: Durability
    ) -> None:
        self.store = store
        self.recorder = recorder
        self.walk = functools.partial(read_identity, limits=limits, memory=Memory())
        self.durability = durability
        self.turn = threading.Lock()

    def begin(self, announced: Announced, *, peer: str, association: str) -> Incoming:
        """Return an instance without a data set, to write into.

        Raises:
            StorageError: the disk is full or broken.
        """
        return Incoming(self, announced, peer=peer, association=association)


def rebuild(store: Store, ledger: Ledger, limits: StructureLimits) -> int:
    """Delete half-written received files, record every whole one that has no row; return how many.

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
        store.delete(f"{INCOMING}/{part.parent.name}/{part.name}")
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
    data: bytes | mmap.mmap,
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
