"""Durable instance files, in one folder: written whole or not at all.

    <root>/node-store                     marks the folder as ours
    <root>/installation                   the UUID under which every derived UID is made
    <root>/incoming/ab/<digests>.dcm      as received, verbatim
    <root>/quarantine/<digests>.dcm       likewise, under a UID that another content had already
    <root>/derived/<plan_id>/<attempt>/   as written by the node
    <root>/redo/<pid>.log                 what came last, see `redo_log`

A write goes to `.part` in the final folder, is checked for shortness, synced, renamed, and the
folder (and each new parent) is synced: when `write` returns, bytes and name survive a power cut.
A received file may be kept with fewer system calls, see `Durability`. Names are digests, never text
from a peer. Folders are 0700 and files 0600.
"""

import contextlib
import enum
import fcntl
import functools
import hashlib
import itertools
import mmap
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from dicom_node.disk import Buffer, open_folder, sync, sync_folder, write_all
from dicom_node.domain import QUARANTINE
from dicom_node.errors import StorageError

INCOMING = "incoming"
DERIVED = "derived"
REDO = "redo"
PART = ".part"
DAMAGED = ".damaged"

_MARKER = "node-store"
_INSTALLATION = "installation"
_FAN_OUT = tuple(f"{number:02x}" for number in range(256))
_DIGEST_DIGITS = 32  # 128 bits: no peer finds two contents that would share a name
_PAUSE_SECONDS = 0.05
_UNNAMED = re.compile(r"\.([0-9a-f]+)-([0-9a-f-]+)\.\d+-\d+\.part$")
_BOOT = Path("/proc/sys/kernel/random/boot_id")

_numbers = itertools.count()
"""Part files of one process have numbers, so that no two share a name."""


class Durability(enum.StrEnum):
    """What a file survives once `PartFile.keep` has returned.

    Attributes:
        STRICT: a power cut, by POSIX: file synced, renamed, folder synced.
        SYNCED: a power cut: written twice, and synced where that takes least, in the log of
            `redo_log`; where there is none, on a journaling file system (ext4, XFS, Btrfs), named
            and then synced once, which commits the journal with the new name in it.
        NONE: the end of the process, not a power cut. It gets its name, with the digest, later; by
            then it says how long it is to be and since which start of the system it is there.
    """

    STRICT = "strict"
    SYNCED = "synced"
    NONE = "none"


class PartFile:
    """A file while it is written, under a name that says that it is not whole yet.

    A context manager: what was not kept when it ends is deleted. Every `OSError` is the caller's
    to translate.
    """

    def __init__(self, beside: str) -> None:
        """Create it, under a name that begins with the path `beside`."""
        self.size = 0
        self._path = f"{beside}.{os.getpid()}-{next(_numbers)}{PART}"
        self._has_name = False
        self.descriptor = os.open(
            self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and delete it if it was not kept."""
        os.close(self.descriptor)
        if not self._has_name:
            os.unlink(self._path)

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Add the bytes of all `pieces`."""
        self.size += write_all(self.descriptor, pieces)

    def mapped(self) -> mmap.mmap:
        """Return what was written."""
        return mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ)

    def keep(self, final: str, durability: Durability = Durability.STRICT) -> None:
        """Give the file its name and make it durable.

        A file that has the name already is replaced, and then always in the strict order: whoever
        was told that it is safe must not lose it to a copy that is not on the disk yet. A sync
        that failed is never tried again: a second one says success of bytes that the kernel has
        dropped. The age of the file stays, which tells when its content came first.
        """
        if os.fstat(self.descriptor).st_size != self.size:
            raise OSError("the file is shorter than what was written")
        if durability is Durability.STRICT or not self._take_name(final):
            with contextlib.suppress(FileNotFoundError):
                before = Path(final).stat()
                os.utime(self.descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
            sync(self.descriptor)
            with open_folder(os.path.dirname(final)) as folder:
                fcntl.flock(folder, fcntl.LOCK_SH)  # keeps `WholeFile._drop` out
                os.replace(self._path, final)
                self._has_name = True
                sync(folder)
        elif durability is Durability.SYNCED:
            sync(self.descriptor)

    def _take_name(self, final: str) -> bool:
        """Take the name if nobody has it, at one blow."""
        try:
            os.link(self._path, final)
        except FileExistsError:
            return False
        os.unlink(self._path)
        self._has_name = True
        return True


class WholeFile:
    """A received file that came in one piece: written when this is made, durable when settled.

    It takes four system calls unless there is a file of its name already. A crash may leave a
    half-written one; the digest in its name tells it from a whole one. Every `OSError` is the
    caller's to translate.
    """

    def __init__(self, final: str, pieces: Sequence[Buffer], durability: Durability) -> None:
        self._final = final
        self._pieces = pieces
        self._durability = durability
        self._descriptor: int | None = None
        if durability is Durability.STRICT:
            return
        with contextlib.suppress(FileExistsError):
            self._descriptor = os.open(
                final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            try:
                write_all(self._descriptor, pieces)
            except BaseException:
                self._drop(self._descriptor)
                raise

    @property
    def is_new(self) -> bool:
        """Whether there was no file of its name."""
        return self._descriptor is not None

    def settle(self, bring: Callable[[], None] | None = None) -> None:
        """Make it as durable as it is to be; if that fails, it is gone.

        Args:
            bring: brings its bytes to the disk, if not a sync of the file is to.
        """
        if self._descriptor is None:
            with PartFile(self._final) as part:
                part.write(self._pieces)
                part.keep(self._final)
            return
        try:
            if bring is not None:
                bring()
            elif self._durability is Durability.SYNCED:
                sync(self._descriptor)
        except BaseException:
            self._drop(self._descriptor)
            raise
        os.close(self._descriptor)

    def _drop(self, descriptor: int) -> None:
        """Give up what may not be whole, but not what another writer has put in its place."""
        try:
            with open_folder(os.path.dirname(self._final)) as folder:
                fcntl.flock(folder, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(descriptor), Path(self._final).stat()):
                    os.unlink(self._final)
        finally:
            os.close(descriptor)


class Store:
    """The files below `root`; a relative name uses `/` and stays below it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._root_text = str(root)

    def open(self) -> Self:
        """Create the folders of a new store, or check that this is one.

        Raises:
            StorageError: the folder holds something, but not our marker: a disk that is not
                mounted, or the wrong folder.
        """
        with translated("open"):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            marked = (self._root / _MARKER).is_file()
            if not marked and any(self._root.iterdir()):
                raise StorageError(
                    f"{self._root} holds files but no '{_MARKER}': mount the disk that belongs "
                    "there, or name an empty folder"
                )
            for folder in (INCOMING, QUARANTINE, DERIVED, REDO):
                self._make_folder(self._root / folder)
            self._fan_out(self._root / INCOMING)
        if not marked:
            self.write(_MARKER, b"The files of a DICOM node. Do not change them by hand.\n")
        return self

    def hold(self, seconds: float) -> int:
        """Keep all others from receiving into this store, and return what holds it: a descriptor.

        The store is free again when every process that has inherited the descriptor has ended.

        Raises:
            StorageError: somebody else holds it, and still does after so many seconds.
        """
        with translated("open"):
            descriptor = os.open(self._root / _MARKER, os.O_RDONLY | os.O_CLOEXEC)
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(_PAUSE_SECONDS)
                    continue
                os.close(descriptor)
                raise StorageError(
                    f"another receiver writes into {self._root}: end it, or name another folder"
                ) from None
            return descriptor

    def namespace(self) -> uuid.UUID:
        """Return this installation's UUID, made once and kept as long as the store."""
        if not self.path(_INSTALLATION).is_file():
            self.write(_INSTALLATION, f"{uuid.uuid4()}\n".encode())
        return uuid.UUID(self.read(_INSTALLATION).decode().strip())

    def path(self, relative: str) -> Path:
        """Return where `relative` lies.

        Raises:
            StorageError: `relative` would leave the store.
        """
        return Path(self._locate(relative))

    def _locate(self, relative: str) -> str:
        """Return where `relative` lies; a `Path` takes longer than to open the file."""
        if relative in {"", "."} or relative[0] == "/" or ".." in relative.split("/"):
            raise StorageError("a file name would leave the store")
        return f"{self._root_text}/{relative}"

    def write(self, relative: str, chunks: bytes | Iterable[bytes]) -> str:
        """Write a file and make it durable, in the place of one of that name.

        Returns:
            The SHA-256 of the bytes.

        Raises:
            StorageError: nothing was stored; an older file of that name is as it was.
        """
        final = self.path(relative)
        digest = hashlib.sha256()
        with translated("write"):
            self._make_folder(final.parent)
            with PartFile(str(final)) as part:
                for chunk in [chunks] if isinstance(chunks, bytes) else chunks:
                    digest.update(chunk)
                    part.write([chunk])
                part.keep(str(final))
        return digest.hexdigest()

    def read(self, relative: str, most: int = -1) -> bytes:
        """Return the bytes of a file, or so many of them from its beginning.

        Raises:
            StorageError: the file cannot be read.
        """
        with translated("read"), FileIO(self._locate(relative)) as file:
            return file.read(most)

    def make_durable(self, relative: str) -> None:
        """Bring a whole file to the disk that a process which has died may have left in the cache.

        Raises:
            StorageError: the disk did not take it.
        """
        path = self.path(relative)
        with translated("sync"):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                sync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(path.parent)

    def delete(self, relative: str) -> None:
        """Delete a file, durably, with the folders below `derived` that it leaves empty.

        A file that is not there is deleted already.

        Raises:
            StorageError: the file could not be deleted.
        """
        path = self.path(relative)
        keep = {self._root / name for name in ("", INCOMING, QUARANTINE, DERIVED)}
        with translated("delete"):
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder in keep or folder.parent == self._root / INCOMING:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break
            while not path.parent.is_dir():
                path = path.parent
            sync_folder(path.parent)

    def quarantine(self, relative: str) -> str:
        """Move a received content to where nothing is a source, durably; return its new name.

        What has been moved before, or is gone, is not missed: a retry comes to the same end.

        Raises:
            StorageError: the file could not be moved.
        """
        source = self.path(relative)
        moved = f"{QUARANTINE}/{source.name}"
        final = self.path(moved)
        if final != source:
            with translated("move"):
                if source.exists():
                    source.replace(final)
                for folder in (final.parent, source.parent):
                    sync_folder(folder)
        return moved

    def set_aside(self, relative: str) -> None:
        """Give a file that is not what its name says a name under which nobody looks for it.

        Raises:
            StorageError: the file could not be renamed.
        """
        path = self.path(relative)
        with translated("rename"):
            path.replace(path.with_name(f"{path.name}{DAMAGED}"))

    def sweep_parts(self) -> int:
        """Delete at start what writers of a dead process left half-written; return how many."""
        parts = [
            path
            for path in self._root.rglob(f"*{PART}")
            if path.is_file() and not self.is_whole(path.relative_to(self._root).as_posix())
        ]
        with translated("sweep"):
            for path in parts:
                path.unlink(missing_ok=True)
        return len(parts)

    def incoming_path(self, relative: str) -> str:
        """Return where a received content lies whose name this class has made; fast."""
        return f"{self._root_text}/{relative}"

    @staticmethod
    def incoming_name(sop_instance_uid: str, sha256: str) -> str:
        """Return the name of a received content: the same content always gets the same."""
        return f"{Store.incoming_stem(sop_instance_uid)}-{sha256[:_DIGEST_DIGITS]}.dcm"

    def unnamed(self, sop_instance_uid: str, size: int) -> str:
        """Return the name of a received content of which no digest is known yet; one of its own."""
        stem = self.incoming_stem(sop_instance_uid)
        return f"{stem}.{size:x}-{_boot()}.{os.getpid()}-{next(_numbers)}{PART}"

    def is_whole(self, relative: str) -> bool:
        """Say whether a part of a file is all of it, as its name says, and in no danger.

        It is not when the system has been started since: a power cut leaves lengths without bytes.
        """
        found = _UNNAMED.search(relative)
        return (
            found is not None
            and found[2] == _boot()
            and self.path(relative).stat().st_size == int(found[1], 16)
        )

    def give_name(self, relative: str) -> tuple[str, str]:
        """Give a content that `unnamed` named its name, which holds its digest; return both.

        Of the same content twice the older file stays.

        Raises:
            StorageError: the file cannot be read, or not be named.
        """
        part = self.incoming_path(relative)
        sha256 = hashlib.sha256(self.read(relative)).hexdigest()
        named = f"{relative.partition('.')[0]}-{sha256[:_DIGEST_DIGITS]}.dcm"
        with translated("name"):
            with contextlib.suppress(FileExistsError):
                os.link(part, self.incoming_path(named))
            os.unlink(part)
        return named, sha256

    @staticmethod
    def incoming_stem(sop_instance_uid: str) -> str:
        """Return what the names of all received contents of one instance begin with."""
        name = hashlib.sha256(sop_instance_uid.encode()).hexdigest()[:_DIGEST_DIGITS]
        return f"{INCOMING}/{name[:2]}/{name}"

    @staticmethod
    def derived_folder(plan_id: str, attempt: int) -> str:
        """Return the folder of one attempt at a plan."""
        return f"{DERIVED}/{plan_id}/{attempt}"

    def iterate_incoming(self) -> Iterator[str]:
        """Yield the relative name of every received file outside the quarantine."""
        return self._iterate(f"{INCOMING}/??")

    def iterate_quarantine(self) -> Iterator[str]:
        """Yield the relative name of every received file in the quarantine."""
        return self._iterate(QUARANTINE)

    def by_age(self, names: Iterable[str]) -> list[str]:
        """Return the names of files, the one that was written first in front."""
        return sorted(names, key=lambda name: (self.path(name).stat().st_mtime_ns, name))

    def _iterate(self, folders: str) -> Iterator[str]:
        for path in sorted(self._root.glob(f"{folders}/*.dcm")):
            yield path.relative_to(self._root).as_posix()

    def _fan_out(self, folder: Path) -> None:
        """Create at once all folders that received files lie in; none is made while they come."""
        missing = [name for name in _FAN_OUT if not (folder / name).is_dir()]
        for name in missing:
            (folder / name).mkdir(mode=0o700)
        if missing:
            sync_folder(folder)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder below the root, durably, with its parents."""
        if folder.is_dir():
            return
        if folder != self._root:
            self._make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)


@functools.cache
def _boot() -> str:
    """Return what names this start of the system; nothing where it does not say."""
    return _BOOT.read_text().strip() if _BOOT.exists() else ""


class translated:  # noqa: N801 - read as `with translated("write"):`
    """Let an `OSError` leave as `StorageError`; no generator, for every instance passes here."""

    __slots__ = ("_verb",)

    def __init__(self, verb: str) -> None:
        self._verb = verb

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            reason = error.strerror or "short write"
            raise StorageError(f"the store could not {self._verb}: {reason}") from error
