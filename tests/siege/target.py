"""The receiving process under siege, and what can be seen of it from outside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from doubles.certificates import make_authority, make_certificate

CONFIGURATION = """
ae_title: NODE
data_folder: data
models_folder: models
peers:
  scanner: {ae_title: SCANNER, address: 127.0.0.1, roles: [receive]}
  broken: {ae_title: BROKEN, address: 127.0.1.0/28, roles: [receive]}
receiver:
  port: 0
  processes: 2
  tls: {certificate: node.pem, key: node.key, ca: authority.pem}
  storage_classes:
    image: [MRImageStorage, CTImageStorage]
    passed_over: [SecondaryCaptureImageStorage]
"""
"""As shipped, but for the ports and the peers: one that is well, and some that are not."""

_TICKS = os.sysconf("SC_CLK_TCK")
_START_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the process and its children use now."""

    mebibytes: float
    threads: int
    descriptors: int
    cpu_seconds: float


class Target:
    """A running receiver; its log is a file."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self.folder = folder
        self.port = 0
        self._process = process
        self._log = log

    def wait(self) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + _START_SECONDS
        while not self.port and time.monotonic() < deadline and self.is_alive():
            time.sleep(0.05)
            for line in self.read_log():
                if line.startswith("["):
                    self.port = int(json.loads(line)[1])
        if not self.port:
            raise RuntimeError("the receiver did not start: " + "; ".join(self.read_log()))

    def is_alive(self) -> bool:
        """Say whether it runs."""
        return self._process.poll() is None

    def read_log(self) -> list[str]:
        """Return its log so far."""
        return self._log.read_text().splitlines()

    def read(self) -> Reading:
        """Return what it uses now."""
        return Reading(
            mebibytes=sum(map(_read_memory, self._family())) / 2**20,
            threads=sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in self._family()),
            descriptors=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self._family()),
            cpu_seconds=sum(map(_read_cpu, self._family())),
        )

    def settle(self, like: Reading, seconds: float = 30) -> Reading:
        """Return what it uses once threads and descriptors are as before, or time is up."""
        deadline = time.monotonic() + seconds
        while True:
            now = self.read()
            apart = max(abs(now.threads - like.threads), abs(now.descriptors - like.descriptors))
            if apart <= 2 or time.monotonic() > deadline:
                return now
            time.sleep(0.2)

    def stop(self) -> int:
        """End it, and return its exit status."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()

    def _family(self) -> list[int]:
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        return [self._process.pid, *children]


@contextlib.contextmanager
def besieged(folder: Path) -> Iterator[Target]:
    """Give a running receiver for the length of a `with` block."""
    (folder / "node.yaml").write_text(CONFIGURATION)
    make_certificate(folder, make_authority(folder), "node")
    log = folder / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "dicom_node.receiver", str(folder)], stderr=stderr
        )
    target = Target(folder, process, log)
    try:
        target.wait()
        yield target
    finally:
        target.stop()


def _read_memory(pid: int) -> int:
    """Return the memory that is a process's own, in bytes: of what is shared, its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1_024
    raise LookupError(pid)


def _read_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
