"""The senders that are compared: each is given the same files, and the same sink."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.receivers import HERE, NO_DELAY, ROOT, Running

OURS = "ours"
OURS_FOUR = "ours × 4"
DCMSEND = "dcmsend"
DCMSEND_SHIPPED = "dcmsend as shipped"
STORESCU = "storescu"
PYNETDICOM = "pynetdicom, no delay"
PYNETDICOM_SHIPPED = "pynetdicom as shipped"

_OURS = ("{python}", str(HERE / "our_sender.py"), "{port}", "{ae_title}", "{files}", "{work}")
_STOCK = ("{python}", str(HERE / "stock_sender.py"), "{port}", "{ae_title}", "{files}")
_DCMSEND = ("dcmsend", "-aec", "{ae_title}", "+sd", "127.0.0.1", "{port}", "{files}")
_STORESCU = ("storescu", "-aec", "{ae_title}", "+sd", "127.0.0.1", "{port}", "{files}")


@dataclass(frozen=True)
class Sender:
    """How to start one sender.

    Attributes:
        command: its words; {python}, {port}, {ae_title}, {files} and {work} are filled in.
        most: instances that it is given; some would take minutes.
    """

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    most: int | None = None


SENDERS = {
    OURS: Sender(_OURS),
    OURS_FOUR: Sender((*_OURS, "--associations", "4")),
    DCMSEND: Sender(_DCMSEND, NO_DELAY),
    STORESCU: Sender(_STORESCU, NO_DELAY),
    DCMSEND_SHIPPED: Sender(_DCMSEND, most=40),
    PYNETDICOM: Sender((*_STOCK, "--no-delay"), most=200),
    PYNETDICOM_SHIPPED: Sender(_STOCK, most=40),
}


@dataclass(frozen=True)
class Sent:
    """How one sender did.

    Attributes:
        rate: instances in a second, from the first to the last answer where the sink says so; by
            the sender's own clock else, and by ours, from its start to its end, where it has none.
        bad: instances that were not answered with success; every one when it does not say.
    """

    instances: int
    rate: float
    bad: int


def send_files(
    name: str, sink: Running, files: Path, work: Path, options: tuple[str, ...] = ()
) -> Sent:
    """Let a sender send all `files`, and measure."""
    sender = SENDERS[name]
    words = [
        word.format(
            python=sys.executable, port=sink.port, ae_title=sink.ae_title, files=files, work=work
        )
        for word in (*sender.command, *options)
    ]
    path = os.pathsep.join(map(str, (ROOT, HERE.parent)))
    began = time.perf_counter()
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": path} | sender.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    count = len(list(files.iterdir()))
    bad = count if done.returncode else 0
    lines = done.stdout.splitlines()
    if lines and lines[-1].startswith("{"):
        told = json.loads(lines[-1])
        count, seconds, bad = told["sent"], told["seconds"], told["sent"] - told["taken"]
    elif done.returncode:
        print(done.stderr, file=sys.stderr)  # noqa: T201
    arrived = count
    if sink.reports:
        first, last, arrived = sink.read_reports()
        seconds, bad = last - first, max(bad, count - arrived)
    return Sent(instances=count, rate=arrived / seconds, bad=bad)
