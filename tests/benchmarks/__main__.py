"""Measure receivers and senders beside each other, and say which goals were reached.

    make bench                                all of it: five rounds, about 40 minutes
    make bench BENCH_ARGS="--rounds 1 --only reception --receivers 'ours;C limit, synced'"
    make bench BENCH_ARGS="--only sending,answers"

Every round starts every receiver and every sender anew, in another order; ratios are between
medians of the same rounds. Records go to bench/results.jsonl as they come: a run that was broken
off goes on with --resume. With --document the tables go to docs/benchmarks.md.

Each round has a new file system, an ext4 with a journal, for what is on a disk and what was deleted
from it has an effect on how quickly files are made there. --work measures a disk as it is.
"""

import argparse
import contextlib
import json
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

from rich.console import Console

from benchmarks import receivers, senders
from benchmarks.goals import Results
from benchmarks.measurements import (
    Record,
    measure_answers,
    measure_disk,
    measure_idleness,
    measure_into_shipped,
    measure_ledger,
    measure_reception,
    measure_sending,
    measure_set_up,
    measure_shipped_senders,
)
from benchmarks.report import write_document, write_tables
from benchmarks.studies import Study
from durability.disk import MIB, Disk, find_obstacle

ALL_CASES = "mr:1,mr:4,mr:16,small:1,small:4,small:16,ct:1,ct:4,ct:16"
KIND_NAMES = ("disk", "reception", "shipped", "set-up", "idle", "ledger", "sending", "answers")
RESULTS = receivers.ROOT / "bench" / "results.jsonl"
_INTO_SHIPPED = {senders.OURS, senders.DCMSEND_SHIPPED}
_SENT = {"mr": 720, "ct": 600, "small": 4000}
"""Instances of each study that are sent: a quick sender is done with fewer in no time."""
SLOW = {receivers.ORTHANC, receivers.PYNETDICOM, receivers.PYNETDICOM_SYNCED}
_DISK_BYTES = 12 * 1024 * MIB  # a round of everything takes some 10 GB
_SLOW_SMALL = 400  # instances of `small` are as many as a slow receiver takes in a second or two


Step = tuple[str, partial[Iterator[Record]]]

build_study = cache(Study)
"""A study as `Study` builds it, which takes a while: once for all rounds."""


def main() -> int:
    """Measure, and print tables."""
    options = read_options()
    results = options.results
    results.parent.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        results.unlink(missing_ok=True)
    records = read_records(results)
    done = {(record["round"], record["step"]) for record in records}
    obstacle = None if options.work else find_obstacle()
    with results.open("a") as file, open_rooms(options.work, obstacle) as make_room:
        for number in range(options.rounds):
            if {(number, step) for step, _ in list_steps(options, Path(), number)} <= done:
                continue
            room = make_room()
            receivers.build_limit(room)
            for step, measure in rotate(list_steps(options, room, number), number):
                if (number, step) in done:
                    continue
                for record in measure():
                    record |= {"round": number, "step": step}
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    print(json.dumps(record), flush=True)  # noqa: T201
    found = Results(read_records(results))
    write_tables(found, Console())
    if options.document:
        disk = "an ext4 with a journal, new in each round, in a file on a loop device"
        if options.work or obstacle:
            disk = f"as it was ({obstacle or '--work'})"
        rounds = str(1 + max(record["round"] for record in found.records))
        machine = describe_machine() | {"Disk": disk, "Rounds": rounds}
        write_document(found, machine, options.document)
    return 0


@contextlib.contextmanager
def open_rooms(work: Path | None, obstacle: str | None) -> Iterator[Callable[[], Path]]:
    """Give a function that gives a round its folder.

    It is in `work`, else on a new file system, unless there is an obstacle. What receivers stored
    is deleted at the very end, for some file systems make files slowly afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", dir=work, ignore_cleanup_errors=True) as name:
        if work or obstacle:
            yield lambda: Path(tempfile.mkdtemp(dir=name))
            return
        with Disk(Path(name), size=_DISK_BYTES, is_timed=True) as disk:

            def make_room() -> Path:
                disk.renew()
                return disk.folder

            yield make_room


def read_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(KIND_NAMES), help="kinds of measurements")
    parser.add_argument("--cases", default=ALL_CASES, help="study:associations, ...")
    parser.add_argument("--receivers", default=";".join(receivers.RECEIVERS), help="names; by ;")
    parser.add_argument("--senders", default=";".join(senders.SENDERS), help="names; by ;")
    parser.add_argument("--answers", type=int, default=10_000, help="that must all come")
    parser.add_argument("--instances", type=int, help="of each study, for a short run")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="where receivers store, to measure that disk")
    parser.add_argument("--resume", action="store_true", help="go on with the results that exist")
    parser.add_argument("--document", type=Path, help="write the tables into this Markdown file")
    return parser.parse_args()


def read_records(results: Path) -> list[Record]:
    """Return the records that a run has written so far."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


def list_steps(options: argparse.Namespace, work: Path, number: int) -> list[Step]:
    """Return name and function of everything that a round measures."""
    cases = [
        (name, int(count))
        for name, _, count in (c.partition(":") for c in options.cases.split(","))
    ]
    steps = [
        *list_receiver_steps(options, work, number, cases),
        *list_sender_steps(options, work, number, [name for name, _ in cases]),
    ]
    for kind, function in (("ledger", measure_ledger), ("disk", measure_disk)):
        if kind in options.only.split(","):
            steps.append((kind, partial(function, work / f"{number}-{kind}")))
    return steps


def list_receiver_steps(
    options: argparse.Namespace, work: Path, number: int, cases: list[tuple[str, int]]
) -> list[Step]:
    """Return what a round measures of receivers."""
    kinds = set(options.only.split(","))
    shipped = {receivers.STORESCP_SHIPPED, receivers.ORTHANC_SHIPPED}
    mr = build_study("mr", options.instances)
    steps: list[Step] = []

    def add(step: str, function: object, *arguments: object) -> None:
        folder = work / f"{number}-{len(steps)}"
        steps.append((step, partial(function, *arguments[:1], folder, *arguments[1:])))

    for name in options.receivers.split(";"):
        if "reception" in kinds and name not in shipped:
            mine = [
                (build_study(study, count_instances(options, study, name)), count)
                for study, count in cases
            ]
            add(f"reception {name}", measure_reception, name, work, mine)
        if "shipped" in kinds and name in {receivers.OURS, *shipped}:
            add(f"shipped {name}", measure_shipped_senders, name, work, mr)
        if "set-up" in kinds and name in {receivers.OURS, receivers.STORESCP}:
            add(f"set-up {name}", measure_set_up, name, work)
        if "idle" in kinds and name == receivers.OURS:
            add(f"idle {name}", measure_idleness, name, work)
    return steps


def count_instances(options: argparse.Namespace, study: str, receiver: str) -> int | None:
    """Return how many instances of a study a receiver is given; None: all."""
    if study == "small" and receiver in SLOW:
        return min(options.instances or _SLOW_SMALL, _SLOW_SMALL)
    return options.instances


def list_sender_steps(
    options: argparse.Namespace, work: Path, number: int, names: list[str]
) -> list[Step]:
    """Return what a round measures of senders."""
    kinds = set(options.only.split(","))
    steps: list[Step] = []
    if "sending" in kinds:
        counts = {name: options.instances or _SENT[name] for name in dict.fromkeys(names)}
        studies = [build_study(name, count) for name, count in counts.items()]
        for name in options.senders.split(";"):
            folder = work / f"{number}-sending-{len(steps)}"
            step = partial(measure_sending, name, folder, work, studies)
            steps.append((f"sending {name}", step))
            if name in _INTO_SHIPPED:
                folder = work / f"{number}-sending-{len(steps)}"
                study = build_study("mr", options.instances)
                step = partial(measure_into_shipped, name, folder, work, study)
                steps.append((f"sending to storescp {name}", step))
    if "answers" in kinds:
        step = partial(measure_answers, work / f"{number}-answers", work, options.answers)
        steps.append(("answers", step))
    return steps


def rotate(steps: list, number: int) -> list:
    """Return `steps` in the order of round `number`."""
    turn = number % max(len(steps), 1)
    return steps[turn:] + steps[:turn]


def describe_machine() -> dict[str, str]:
    """Return what a reader must know to compare figures."""

    def ask(*words: str) -> str:
        program = shutil.which(words[0], path="/usr/sbin:/usr/bin:/usr/local/bin")
        if program is None:
            return "not installed"
        done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).strip().splitlines()[0]

    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "Machine": f"{len(cpu)} cores ({cpu[0] if cpu else platform.machine()}), "
        f"Linux {platform.release()}",
        "Python": platform.python_version(),
        "DCMTK": ask("storescp", "--version"),
        "Orthanc": ask("Orthanc", "--version"),
    }


if __name__ == "__main__":
    raise SystemExit(main())
