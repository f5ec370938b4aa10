"""A log of received instances that makes them durable by one sync of blocks that exist already.

A new file survives a power cut when the journal of its file system is on the disk, which is several
writes, one after another. So an instance is written twice: to its file, which the system brings to
the disk when it likes, and to a log whose blocks were written before, so that its sync writes them
and nothing else, for all that wait together (a redo log with group commit; Gray and Reuter 1993,
chapters 9 and 10). The log has two halves: when one is full, all files are brought to the disk at
one blow while the other one fills, and it is empty again. After a crash `replay` of `spool` makes
the files anew that are not whole.

    half    header: magic, generation; the rest of the block is empty
    record  at a block: magic, generation, when it came, length, digest, name; then its content

Whatever is not of its half's generation, or does not have its digest, is no record.
"""

import ctypes
import errno
import functools
import hashlib
import logging
import mmap
import os
import re
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dicom_node.disk import Buffer, sync_data, sync_folder

WORTH = 64
"""So many instances come before a log is made; fewer are not worth it."""

REST_SECONDS = 10.0
"""Files of what came are on the disk, and its records are forgotten, after about twice as long."""

HALF_BYTES = 64 * 2**20

ROOM = 4
"""A log is made where so many of its size are free."""

LONGEST = 256 * 1024
"""What is longer is not written twice: there it is the bytes that take long, not the journal."""

_BLOCK = 4096
_MAGIC = b"dicomredo"
_HEADER = struct.Struct("<9s8s")
_RECORD = struct.Struct("<9s8sQQ32sB")
_MOST_PIECES = 1_000  # of one pwritev, with the record's own; IOV_MAX of Linux is 1,024
_CHUNK = bytes(2**20)
_PAUSE_SECONDS = 0.004
_NICENESS = 5
_TELLS_ERRORS = (5, 8)
"""The Linux since which syncfs says what could not be written."""

_logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """One instance of a log.

    Attributes:
        name: of its file, below the store's root.
        came_ns: when, in nanoseconds of Unix time.
        content: the bytes of the file.
    """

    name: str
    came_ns: int
    content: memoryview


@dataclass(slots=True)
class _Half:
    start: int
    generation: bytes = b""
    used: int = _BLOCK


class RedoLog:
    """The log of one process.

    It is made when it is worth it, beside everything else. Where there is none, or no room in it,
    an instance has to be made durable by a sync of its file. One that fails is deleted once the
    files of what it holds are on the disk. If they cannot be brought there, the kernel has dropped
    bytes of them, and the process ends: the next start has them from the log.
    """

    def __init__(self, folder: Path, files: Path) -> None:
        """Describe it: logs lie in `folder`, and the files of instances below `files`."""
        self._path = folder / f"{os.getpid()}.log"
        self._files = files
        self._came = 0
        self._descriptor: int | None = None
        self._halves = [_Half(0), _Half(HALF_BYTES)]  # the one that is filled, and the other
        self._full: _Half | None = None
        self._lock = threading.Condition()
        self._written = 0  # records
        self._is_broken = False
        self._syncs = threading.Condition()
        self._synced = 0  # records
        self._is_syncing = False

    def append(self, name: str, sha256: str, pieces: Sequence[Buffer]) -> Callable[[], None] | None:
        """Add an instance whose file is written, and return what makes it durable.

        That returns when the disk has it and all before it. It raises `OSError` where the disk did
        not take it, and a sync that failed is not tried again.

        Args:
            name: of its file.
            sha256: of its content, in hexadecimal digits.
            pieces: its content.

        Returns:
            None where there is no room, or no log.
        """
        length, text = sum(map(len, pieces)), name.encode("ascii")
        if length > LONGEST:
            return None
        if self._descriptor is None:
            self._came += 1
            if self._came == WORTH and _can_sync_all():
                threading.Thread(target=self._run, name="redo log", daemon=True).start()
            return None
        size = _RECORD.size + len(text) + length
        with self._lock:
            half = self._find_room(size)
            if half is None or len(pieces) > _MOST_PIECES:
                return None
            head = _RECORD.pack(
                _MAGIC, half.generation, time.time_ns(), length, bytes.fromhex(sha256), len(text)
            )
            try:
                written = os.pwritev(
                    self._descriptor, [head + text, *pieces], half.start + half.used
                )
            except OSError:
                self._give_up("append")
                return None
            if written != size:
                return None
            half.used += -(-size // _BLOCK) * _BLOCK
            self._written += 1
            return functools.partial(self._sync, self._written)

    def _sync(self, number: int) -> None:
        with self._syncs:
            while self._is_syncing and self._synced < number:
                self._syncs.wait()
            if self._synced >= number:
                return
            if self._is_broken or self._descriptor is None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self._is_syncing, written, done = True, self._written, 0
        try:
            sync_data(self._descriptor)
            done = written
        except OSError:
            self._give_up("sync")
            raise
        finally:
            with self._syncs:
                self._is_syncing, self._synced = False, max(self._synced, done)
                self._syncs.notify_all()

    def _find_room(self, size: int) -> _Half | None:
        half, other = self._halves
        if half.used + size <= HALF_BYTES and not self._is_broken:
            return half
        if self._full is not None or self._is_broken:
            return None
        self._turn()
        return other

    def _turn(self) -> None:
        """Let the other half be filled, which is empty, and this one be emptied."""
        self._full, other = self._halves
        self._halves = [other, self._full]
        self._lock.notify_all()

    def _give_up(self, what: str) -> None:
        """Take no more."""
        self._is_broken = True
        _logger.critical("redo_log.failed", extra={"what": what})

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            if shutil.disk_usage(self._files).free < ROOM * 2 * HALF_BYTES:
                return
            files = os.open(self._files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            descriptor = self._make()
        except OSError:
            _logger.warning("redo_log.not_made")
            return
        self._descriptor = descriptor
        try:
            while not self._is_broken:
                self._bring_files(files, descriptor)
            sync_all(files)
            self._path.unlink(missing_ok=True)
        except OSError:
            self._give_up("files")
            os._exit(os.EX_IOERR)

    def _bring_files(self, files: int, descriptor: int) -> None:
        """Wait for a half that is full, or at rest, and empty it when its files are on the disk."""
        with self._lock:
            self._lock.wait_for(lambda: self._full is not None, REST_SECONDS)
            if self._full is None and self._halves[0].used > _BLOCK:
                self._turn()
            half = self._full
        if half is not None:
            sync_all(files)
            self._empty(descriptor, half)
            with self._lock:
                self._full = None

    def _make(self) -> int:
        """Return a log whose blocks are all on the disk."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for start in range(0, 2 * HALF_BYTES, len(_CHUNK)):
                os.pwrite(descriptor, _CHUNK, start)
                os.fsync(descriptor)  # a little at a time, for others wait for the disk, too
                time.sleep(_PAUSE_SECONDS)
            for half in self._halves:
                self._empty(descriptor, half)
            sync_folder(self._path.parent)
        except OSError:
            os.close(descriptor)
            self._path.unlink(missing_ok=True)
            raise
        return descriptor

    @staticmethod
    def _empty(descriptor: int, half: _Half) -> None:
        """Let nothing in a half be a record any more."""
        half.generation, half.used = os.urandom(8), _BLOCK
        os.pwrite(descriptor, _HEADER.pack(_MAGIC, half.generation), half.start)
        sync_data(descriptor)


def read_records(log: Path) -> Iterator[Record]:
    """Yield what is in a log that nobody writes any more."""
    if log.stat().st_size < 2 * HALF_BYTES:  # it was not yet made
        return
    with log.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for start in (0, HALF_BYTES):
            yield from _read_half(data, start)


def _read_half(data: mmap.mmap, start: int) -> Iterator[Record]:
    magic, generation = _HEADER.unpack_from(data, start)
    place, end = start + _BLOCK, start + HALF_BYTES
    while magic == _MAGIC and place < end:
        size = _BLOCK
        head = _RECORD.unpack_from(data, place)
        if head[:2] == (_MAGIC, generation):
            _, _, came_ns, length, digest, count = head
            begin = place + _RECORD.size
            with (
                memoryview(data) as whole,
                whole[begin + count : begin + count + length] as content,
            ):
                if len(content) == length and hashlib.sha256(content).digest() == digest:
                    name = data[begin : begin + count].decode("ascii")
                    yield Record(name, came_ns, content)
                    size = _RECORD.size + count + length
        place += -(-size // _BLOCK) * _BLOCK


def sync_all(descriptor: int) -> None:
    """Return when everything on the file system of a file is on the disk (syncfs(2)).

    Raises:
        OSError: something could not be written since the file was opened.
    """
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _can_sync_all() -> bool:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (
        sys.platform == "linux"
        and found is not None
        and (int(found[1]), int(found[2])) >= _TELLS_ERRORS
    )
