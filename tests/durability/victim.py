"""The receiving process that is to die.

It is `dicom_node.receiver.main` in a process that is forked from one that has imported it already:
that takes a tenth of the time of `python -m dicom_node.receiver`, and so ten times the deaths.
"""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from dicom_node import node_settings, receiver

CALLED = "NODE"
CALLING = "SCANNER"

_START_SECONDS = 60.0
_END_SECONDS = 60.0
_NODE = """
ae_title: NODE
data_folder: {data}
models_folder: models
peers:
  scanner: {{ae_title: SCANNER, address: 127.0.0.1, roles: [receive]}}
receiver:
  port: 0
  processes: 2
  minimum_free: 0 B
  durability: {durability}
  storage_classes:
    image: [MRImageStorage]
"""


def write_configuration(folder: Path, data: Path, durability: str, dsn_env: str = "") -> None:
    """Write the node.yaml of a receiver; `dsn_env` says where its PostgreSQL is."""
    folder.mkdir(exist_ok=True, parents=True)
    text = _NODE.format(data=data, durability=durability)
    if dsn_env:
        text += f"ledger: {{kind: postgresql, dsn_env: {dsn_env}}}\n"
    (folder / "node.yaml").write_text(text)


class Victim:
    """One receiver with its serving processes, in a process group of its own.

    Attributes:
        port: where it listens, since `start`.
    """

    def __init__(self, folder: Path, overrides: Sequence[str] = ()) -> None:
        """Describe it: `folder` holds its node.yaml, and gets its log."""
        self.port = 0
        options = [word for each in overrides for word in ("--set", each)]
        self._arguments = [str(folder), *options]
        self._log = folder / "receiver.log"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([receiver.__name__, node_settings.__name__, __name__])
        self._process: multiprocessing.process.BaseProcess | None = None
        self._lifeline: Connection | None = None

    def start(self, environment: Mapping[str, str] | None = None) -> bool:
        """Start it; say whether it lived to listen."""
        lifeline, self._lifeline = self._context.Pipe(duplex=False)
        news, writing = self._context.Pipe(duplex=False)
        self._process = self._context.Process(
            target=_live,
            args=(self._arguments, dict(environment or {}), self._log, lifeline, writing),
        )
        self._process.start()
        lifeline.close()
        writing.close()
        with news:
            if not news.poll(_START_SECONDS):
                raise TimeoutError("the receiver neither listens nor ends")
            told = os.read(news.fileno(), 65_536)
        if not told:
            self.end()
            return False
        heard = json.loads(told)
        if isinstance(heard, dict):
            self.end()
            raise RuntimeError(f"the receiver did not start: {heard}")
        self.port = int(heard[1])
        return True

    @property
    def pid(self) -> int:
        """The receiver; the id of its process group, too."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill the receiver alone; its serving processes end by themselves."""
        os.kill(self.pid, signal.SIGKILL)

    def kill_one_serving(self, choice: random.Random) -> None:
        """Kill one serving process; the receiver ends by itself then."""
        os.kill(choice.choice(children(self.pid)), signal.SIGKILL)

    def strike(self) -> None:
        """Kill all of it at one blow: none of its threads says anything more."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = _END_SECONDS) -> int | None:
        """Wait for its end, and return its exit status; None when it lives on."""
        assert self._process is not None
        self._process.join(seconds)
        return self._process.exitcode

    def is_gone(self, seconds: float = _END_SECONDS) -> bool:
        """Wait for the end of all its processes; say whether they have ended."""
        deadline = time.monotonic() + seconds
        while is_there(self.pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        self.wait()
        self._process = None
        if self._lifeline is not None:
            self._lifeline.close()
        return True

    def end(self) -> None:
        """Strike, and wait until every process has gone."""
        if self._process is None:
            return
        self.strike()
        if not self.is_gone():
            raise TimeoutError("a process that was killed is still there")


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(each) for task in tasks for each in (task / "children").read_text().split()]


def is_there(group: int) -> bool:
    """Say whether a process group has a process that is not only a name."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[2]) == group and words[0] not in "ZX":
            return True
    return False


def _live(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    lifeline: Connection,
    news: Connection,
) -> None:
    """Be a receiver."""
    os.setpgid(0, 0)
    os.environ.update(environment)
    os.dup2(lifeline.fileno(), sys.stdin.fileno())
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    descriptor = os.dup(news.fileno())
    news.close()
    raise SystemExit(receiver.main([*arguments, "--child", str(descriptor)]))
