"""What is on the disk when a call returns; every `OSError` is the caller's to translate."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

Buffer = bytes | memoryview

_MOST_PIECES = 1_024  # of one writev (IOV_MAX of Linux)
_NO_ATTRIBUTE = "user.none"
_JOURNAL_IS_WELL = (errno.ENODATA, errno.ENOTSUP)


def write_all(descriptor: int, pieces: Sequence[Buffer]) -> int:
    """Write all bytes of `pieces`, also where the system takes fewer at a time; return how many."""
    wanted = sum(map(len, pieces))
    written = 0
    if len(pieces) <= _MOST_PIECES:
        written = os.writev(descriptor, pieces)
    if written < wanted:
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    return wanted


def sync(descriptor: int) -> None:
    """Return when a file or folder is on the disk, with its name.

    A journal that fails is told to those who wait for its commit, but ext4 says success to whoever
    syncs just after that. So the journal is asked once more, by removing an attribute that nothing
    has: one that has failed answers with an error. No disk takes part in that.
    """
    os.fsync(descriptor)
    _ask_journal(descriptor)


def sync_data(descriptor: int) -> None:
    """Return when the bytes of a file are on the disk, whose blocks were there before."""
    os.fdatasync(descriptor)
    _ask_journal(descriptor)


def _ask_journal(descriptor: int) -> None:
    try:
        os.removexattr(descriptor, _NO_ATTRIBUTE)
    except OSError as error:
        if error.errno not in _JOURNAL_IS_WELL:
            raise


def sync_folder(folder: str | Path) -> None:
    """Return when the names in a folder are on the disk."""
    with open_folder(folder) as descriptor:
        sync(descriptor)


@contextlib.contextmanager
def open_folder(folder: str | Path) -> Iterator[int]:
    """Give a descriptor of a folder for the length of a `with` block."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
