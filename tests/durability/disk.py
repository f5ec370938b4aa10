"""A disk whose power can be cut: a file system in a file, on a loop device.

The ioctl FS_IOC_SHUTDOWN with NOLOGFLUSH ends the file system at once: what it has not written to
its device by then is gone, as when the power fails. Mounting it again replays its journal, as a
boot does. What a disk does with writes that it has in its own cache is beyond this.
"""

import fcntl
import os
import struct
import subprocess
import tempfile
import time
from pathlib import Path

FILE_SYSTEMS = {"ext4": ("mkfs.ext4", "-qF"), "xfs": ("mkfs.xfs", "-qf")}
MIB = 1024**2
_AT_ONCE = ("-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
"""Keeps the blocks of the file, and leaves nothing to do in the background."""

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), of ext4 and XFS alike
_NOLOGFLUSH = 2
_PATIENCE_SECONDS = 30.0


class Disk:
    """One file system, mounted; a context manager that leaves nothing.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(
        self, work: Path, kind: str = "ext4", size: int = 1024 * MIB, *, is_timed: bool = False
    ) -> None:
        """Describe it.

        Args:
            work: where its file is made.
            kind: a key of `FILE_SYSTEMS`; only ext4 may be timed.
            size: bytes.
            is_timed: whether times are measured on it. Then the file has no holes, which take time
                when they are filled, and this machine's page cache is left out.
        """
        self._image = work / "disk.img"
        self.folder = work / "disk"
        self._kind = kind
        self._size = size
        self._is_timed = is_timed

    def __enter__(self) -> "Disk":
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._size)
            if self._is_timed:  # not by writing it: that keeps a disk busy for a minute and more
                os.posix_fallocate(image.fileno(), 0, self._size)
        self._format()
        return self

    def __exit__(self, *_: object) -> None:
        self._unmount()
        self._image.unlink()
        self.folder.rmdir()

    def cut_power(self) -> None:
        """Lose everything that is not on the device by now; whoever uses the disk gets EIO."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(descriptor)

    def renew(self) -> None:
        """Give it a new file system; nobody may be using the old one any more."""
        self._unmount()
        self._format()

    def boot(self) -> None:
        """Mount it again, as after a power cut; nobody may be using it any more."""
        self._unmount()
        self._mount()

    def _format(self) -> None:
        options = _AT_ONCE if self._is_timed else ()
        call(*FILE_SYSTEMS[self._kind], *options, str(self._image))
        self._mount()
        if self._is_timed:
            device = f"/dev/loop{os.minor(self.folder.stat().st_dev)}"
            call("losetup", "--direct-io=on", device)

    def _mount(self) -> None:
        call("mount", "-o", "loop", "-t", self._kind, str(self._image), str(self.folder))

    def _unmount(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return call("umount", str(self.folder))
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)


class Tmpfs:
    """A disk in memory that is small enough to be filled; a context manager."""

    def __init__(self, folder: Path, options: str) -> None:
        self.folder = folder
        self._options = options

    def __enter__(self) -> "Tmpfs":
        self.folder.mkdir()
        call("mount", "-t", "tmpfs", "-o", self._options, "tmpfs", str(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        call("umount", "--lazy", str(self.folder))

    def remount(self, options: str) -> None:
        """Mount it with other options; what it holds stays."""
        call("mount", "-o", f"remount,{options}", str(self.folder))


def find_obstacle(kind: str = "ext4") -> str | None:
    """Return why no power can be cut here, or None when it can."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="durability-") as work,
            Disk(Path(work), kind, 320 * MIB) as disk,
        ):
            disk.cut_power()
    except OSError as error:
        return f"no {kind} in a file can be mounted and shut down here: {error}"
    return None


def call(*words: str) -> None:
    """Run a program of the system.

    Raises:
        OSError: it is not there, or said that it failed.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        words, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"{words[0]}: {done.stderr.strip() or done.returncode}")
