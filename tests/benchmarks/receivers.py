"""The receivers that are compared: each is started anew, in an empty folder, on a free port."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import CALLING_AE_TITLE, Meter

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
START_SECONDS = 60.0
OURS = "ours"
OURS_STRICT = "ours, strict"
OURS_FAST = "ours, none"
ORTHANC = "Orthanc"
STORESCP = "storescp +B --fork"
STORESCP_SHIPPED = "storescp as shipped"
ORTHANC_SHIPPED = "Orthanc as shipped"
PYNETDICOM = "pynetdicom"
PYNETDICOM_SYNCED = "pynetdicom, synced"
LIMIT = "C limit"
LIMIT_SYNCED = "C limit, synced"
SINK = "C sink"
SINK_LARGE = "C sink, PDUs of 128 KiB"

_CALLERS = (CALLING_AE_TITLE, "DCMSEND", "STORESCU")
NO_DELAY = {"TCP_NODELAY": "1"}
"""DCMTK's switch for Nagle's algorithm, which it ships with on."""


@dataclass(frozen=True)
class Receiver:
    """How to start one receiver.

    Attributes:
        command: its words; {port}, {folder}, {tools} and {python} are filled in.
        ae_title: what it is called.
        reports: it writes when the first instance of an association came and when it answered the
            last.
    """

    command: tuple[str, ...]
    ae_title: str = "BENCH"
    environment: dict[str, str] = field(default_factory=dict)
    reports: bool = False


def _peer(ae_title: str) -> str:
    """Return the entry of one peer, with the braces that `format` will take off."""
    return f"{ae_title.lower()}: {{{{ae_title: {ae_title}, address: 127.0.0.1, roles: [receive]}}}}"


def _ours(durability: str) -> Receiver:
    # All associations come from one address and one peer here, which the defaults keep apart.
    settings = {
        "ae_title": "BENCH",
        "data_folder": "{folder}/data",
        "receiver.port": "{port}",
        "receiver.durability": durability,
        "receiver.limits.connections": 200,
        "receiver.limits.connections_per_address": 200,
        "receiver.limits.associations": 200,
        "receiver.limits.associations_per_peer": 200,
        "peers": f"{{{{{', '.join(map(_peer, _CALLERS))}}}}}",
    }
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return Receiver(("{python}", "-m", "dicom_node.receiver", str(ROOT / "config"), *options))


RECEIVERS = {
    OURS: _ours("synced"),
    OURS_STRICT: _ours("strict"),
    OURS_FAST: _ours("none"),
    ORTHANC: Receiver(("Orthanc", "{folder}/orthanc.json"), environment=NO_DELAY),
    ORTHANC_SHIPPED: Receiver(("Orthanc", "{folder}/orthanc.json")),
    STORESCP: Receiver(
        ("storescp", "+B", "--fork", "-od", "{folder}", "{port}"), environment=NO_DELAY
    ),
    STORESCP_SHIPPED: Receiver(("storescp", "--fork", "-od", "{folder}", "{port}")),
    PYNETDICOM: Receiver(("{python}", str(HERE / "stock_pynetdicom.py"), "{port}", "{folder}")),
    PYNETDICOM_SYNCED: Receiver(
        ("{python}", str(HERE / "stock_pynetdicom.py"), "{port}", "{folder}", "--sync")
    ),
    LIMIT: Receiver(("{tools}/limit_scp", "{port}", "-o", "{folder}")),
    LIMIT_SYNCED: Receiver(("{tools}/limit_scp", "{port}", "-o", "{folder}", "-f")),
}
SINKS = {
    SINK: Receiver(("{tools}/limit_scp", "{port}", "-r", "-m", "16384"), reports=True),
    SINK_LARGE: Receiver(("{tools}/limit_scp", "{port}", "-r"), reports=True),
}
"""They throw away what they get, to be no hindrance to who sends it."""


class Running:
    """A receiver that listens.

    Attributes:
        folder: where it stores.
    """

    def __init__(self, name: str, folder: Path, tools: Path) -> None:
        receiver = {**RECEIVERS, **SINKS}[name]
        self.name = name
        self.ae_title = receiver.ae_title
        self.reports = receiver.reports
        self.folder = folder
        self.port = find_free_port()
        folder.mkdir(parents=True)
        if receiver.command[0] == "Orthanc":
            _write_orthanc(folder, self.port)
        words = [
            word.format(port=self.port, folder=folder, tools=tools, python=sys.executable)
            for word in receiver.command
        ]
        self._log = folder.parent / f"{folder.name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                words,
                env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
                | receiver.environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not is_listening(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: see {folder}.log")
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """Return what it and its children have used, those that have ended included."""
        ticks = 0
        for pid in self._family():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, words[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        """Return the memory of all its processes; what they share counts once (PSS)."""
        return self._sum_kib("smaps_rollup", "Pss") / 1024

    def peak_mib(self) -> float:
        """Return the most that each process had (RSS), summed: what they share counts for each."""
        return self._sum_kib("status", "VmHWM") / 1024

    def meter(self) -> Meter:
        """Return what it has used so far."""
        return Meter(self.cpu_seconds(), self.memory_mib(), self.peak_mib())

    def _sum_kib(self, file: str, field: str) -> int:
        kib = 0
        for pid in self._family():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/{file}").read_text()
                kib += sum(map(int, re.findall(rf"^{field}:\s+(\d+)", text, re.MULTILINE)))
        return kib

    def read_reports(self) -> tuple[float, float, int]:
        """Return when the first instance came, when the last was answered, and how many they were.

        Of all associations so far; their reports come when they end. Where none came, there are no
        such times (not a number).
        """
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        first = min((each["first"] for each in lines), default=math.nan)
        last = max((each["last"] for each in lines), default=math.nan)
        return first, last, sum(each["instances"] for each in lines)

    def stop(self) -> None:
        """End it and its children."""
        for pid in self._family():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _family(self) -> list[int]:
        family = [self._process.pid]
        for pid in family:
            with contextlib.suppress(OSError):
                tasks = Path(f"/proc/{pid}/task").iterdir()
                family += [
                    int(child)
                    for task in tasks
                    for child in (task / "children").read_text().split()
                ]
        return family


@contextlib.contextmanager
def running(name: str, folder: Path, tools: Path) -> Iterator[Running]:
    """Give a receiver for the length of a `with` block."""
    receiver = Running(name, folder, tools)
    try:
        yield receiver
    finally:
        receiver.stop()


def build_limit(folder: Path) -> None:
    """Compile the C program that marks the limit."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("A C compiler is missing (cc). To install it: apt-get install gcc")
    source, program = HERE / "limit_scp.c", folder / "limit_scp"
    subprocess.run([compiler, "-O2", "-pthread", "-o", program, source], check=True)


def find_free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def is_listening(port: int) -> bool:
    """Say whether somebody listens, without the connection that some receivers would count."""
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[1].endswith(wanted) and words[3] == "0A":
                return True
    return False


def _write_orthanc(folder: Path, port: int) -> None:
    """Write the settings that Orthanc must have; all others are its defaults."""
    settings = {
        "DicomPort": port,
        "DicomAet": "BENCH",
        "HttpPort": find_free_port(),
        "StorageDirectory": str(folder / "data"),
        "IndexDirectory": str(folder / "data"),
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
