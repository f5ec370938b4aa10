"""The receiving process as its node sees it: started, watched, started again, drained.

The child is a program of its own and not a `multiprocessing` one: that would first import whatever
the node was started from, codecs and all.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from select import select

from dicom_node.errors import ConfigurationError, StorageError

START_SECONDS = 60.0
"""For the rebuild of a large store, too."""

STOP_SECONDS = 40.0
"""Longer than the receiver drains."""


class ReceiverProcess:
    """One child process that receives."""

    def __init__(self, folder: Path, overrides: Sequence[str] = ()) -> None:
        """Describe it: `folder` is the configuration's, `overrides` go over its node.yaml."""
        self._folder = folder
        self._overrides = list(overrides)
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    def start(self, tenure: int | None = None) -> tuple[str, int]:
        """Start it, wait until it listens, and return host and port.

        Started again after it died, it listens on the same port, also when that was any free one.
        `tenure` is the number under which its node has the ledger.

        Raises:
            ConfigurationError: it says that the configuration is wrong, or that the port is taken.
            StorageError: it says that store or ledger cannot be used, or it says nothing.
        """
        self.stop()
        reading, writing = os.pipe()
        overrides = self._overrides + ([f"receiver.port={self._port}"] if self._port else [])
        options = [part for each in overrides for part in ("--set", each)]
        if tenure is not None:
            options += ["--tenure", str(tenure)]
        command = [sys.executable, "-m", "dicom_node.receiver", str(self._folder), *options]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                [*command, "--child", str(writing)],
                stdin=subprocess.PIPE,
                pass_fds=[writing],
                process_group=0,  # Ctrl-C at the terminal reaches the node, which then stops this
            )
        finally:
            os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            news = _read(pipe.fileno(), START_SECONDS)
        if isinstance(news, list):
            self._port = int(news[1])
            return str(news[0]), self._port
        self.stop()
        if isinstance(news, dict) and ConfigurationError.__name__ in news:
            raise ConfigurationError(str(news[ConfigurationError.__name__]))
        said = "; ".join(str(text) for text in news.values()) if isinstance(news, dict) else ""
        raise StorageError(f"the receiver did not start: {said or 'see its log'}")

    def is_alive(self) -> bool:
        """Say whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id while there is a process."""
        return None if self._process is None else self._process.pid

    def stop(self) -> int | None:
        """Let it drain, kill it if it does not, and return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.terminate()
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            if process.stdin is not None:
                process.stdin.close()


def _read(descriptor: int, seconds: float) -> object:
    """Return what the child tells before it closes its end; None when it tells nothing in time."""
    deadline = time.monotonic() + seconds
    told = b""
    while (left := deadline - time.monotonic()) > 0 and select([descriptor], [], [], left)[0]:
        more = os.read(descriptor, 65_536)
        if not more:
            break
        told += more
    try:
        return json.loads(told)
    except ValueError:
        return None
