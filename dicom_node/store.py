"""Durable instance files, in one folder: written whole or not at all.

    <root>/node-store                     marks the folder as ours
    <root>/installation                   the UUID under which every derived UID is made
    <root>/incoming/ab/<digests>.dcm      as received, verbatim
    <root>/derived/<plan_id>/<attempt>/   as written by the node

A write goes to `.part` in the final folder, is checked for shortness, synced, renamed, and the
folder (and each new parent) is synced: when `write` returns, bytes and name survive a power cut.
Names are digests, never text from a peer. Folders are 0700 and files 0600.
"""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Self

from dicom_node.errors import StorageError

INCOMING = "incoming"
DERIVED = "derived"
PART = ".part"

_MARKER = "node-store"
_INSTALLATION = "installation"


class Store:
    """The files below `root`; a relative name uses `/` and stays below it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self) -> Self:
        """Create the folders of a new store, or check that this is one.

        Raises:
            StorageError: the folder holds something, but not our marker: a disk that is not
                mounted, or the wrong folder.
        """
        with _translated("open"):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            marked = (self._root / _MARKER).is_file()
            if not marked and any(self._root.iterdir()):
                raise StorageError(
                    f"{self._root} holds files but no '{_MARKER}': mount the disk that belongs "
                    "there, or name an empty folder"
                )
            for folder in (INCOMING, DERIVED):
                self._make_folder(self._root / folder)
        if not marked:
            self.write(_MARKER, b"The files of a DICOM node. Do not change them by hand.\n")
        return self

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
        parts = PurePosixPath(relative).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise StorageError("a file name would leave the store")
        return self._root.joinpath(*parts)

    def write(self, relative: str, chunks: bytes | Iterable[bytes]) -> str:
        """Write a file and make it durable, in the place of one of that name.

        Returns:
            The SHA-256 of the bytes.

        Raises:
            StorageError: nothing was stored; an older file of that name is as it was.
        """
        final = self.path(relative)
        part = final.with_name(f"{final.name}.{uuid.uuid4().hex[:8]}{PART}")
        with _translated("write"):
            self._make_folder(final.parent)
            try:
                digest = _write_synced(part, [chunks] if isinstance(chunks, bytes) else chunks)
                part.replace(final)
                _sync_folder(final.parent)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        return digest

    def read(self, relative: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            StorageError: the file cannot be read.
        """
        with _translated("read"):
            return self.path(relative).read_bytes()

    def delete(self, relative: str) -> None:
        """Delete a file, durably, with the folders below `derived` that it leaves empty.

        A file that is not there is deleted already.

        Raises:
            StorageError: the file could not be deleted.
        """
        path = self.path(relative)
        keep = {self._root, self._root / INCOMING, self._root / DERIVED}
        with _translated("delete"):
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
            _sync_folder(path.parent)

    def sweep_parts(self) -> int:
        """Delete at start what writers of a dead process left half-written; return how many."""
        parts = [path for path in self._root.rglob(f"*{PART}") if path.is_file()]
        with _translated("sweep"):
            for path in parts:
                path.unlink(missing_ok=True)
        return len(parts)

    @staticmethod
    def incoming_name(sop_instance_uid: str, sha256: str) -> str:
        """Return the name of a received content: the same content always gets the same."""
        name = hashlib.sha256(sop_instance_uid.encode()).hexdigest()[:32]
        return f"{INCOMING}/{name[:2]}/{name}-{sha256[:16]}.dcm"

    @staticmethod
    def derived_folder(plan_id: str, attempt: int) -> str:
        """Return the folder of one attempt at a plan."""
        return f"{DERIVED}/{plan_id}/{attempt}"

    def iterate_incoming(self) -> Iterator[str]:
        """Yield the relative name of every received file."""
        for path in sorted((self._root / INCOMING).glob("??/*.dcm")):
            yield path.relative_to(self._root).as_posix()

    def _make_folder(self, folder: Path) -> None:
        """Create a folder below the root, durably, with its parents."""
        if folder.is_dir():
            return
        if folder != self._root:
            self._make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(folder.parent)


def _write_synced(path: Path, chunks: Iterable[bytes]) -> str:
    """Write `chunks` and sync them; never sync twice, for a second one lies (fsyncgate)."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        if os.fstat(descriptor).st_size != size:
            raise OSError("the file is shorter than what was written")
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or "short write"
        raise StorageError(f"the store could not {verb}: {reason}") from error
