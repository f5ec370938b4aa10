"""Loops of life and death: load a receiver, let it die, start it again, look for what is lost."""

import contextlib
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dicom_node.node_settings import read_node
from dicom_node.recorder import LINGER_SECONDS
from doubles.postgresql import PostgreSQL, removed_at_the_end
from durability.disk import Disk
from durability.sender import SUCCESS, Key, Senders
from durability.verdict import Verdict, examine
from durability.victim import Victim, write_configuration

KILL = "kill"
CUT = "cut"
POSTGRESQL = "postgresql"
DSN_ENV = "DURABILITY_DSN"
REBUILD = "rebuild.recorded"
POWER_CUT = "power cut"
DEAD_DISK = "dead disk"
RETURN = "power cut after a kill and a start"
OF_EACH_INSTANCE = ("receive.written", "receive.stored")
AT_COMMIT = ("receive.quarantined", "receive.recorded")
POINTS = (*OF_EACH_INSTANCE, *AT_COMMIT, REBUILD)
"""Every crash point of reception (see `dicom_node.crashpoints`)."""

_ODDS = 15
"""One in so many instances dies at a crash point, so that there is something to lose."""

_MOST_ACKNOWLEDGED = 400
"""It dies after so many instances or fewer: counted, for machines are fast or slow.

Enough for its processes to have the logs that make instances durable, and to do without at first.
"""

_LOAD_SECONDS = 10.0
_INSTANT_SECONDS = 0.02
_AFTER_CUT_SECONDS = 0.1
_POINT_SECONDS = 1.0
_COMMIT_SECONDS = LINGER_SECONDS + 2.0
_CYCLES_A_DISK = 25
"""Then the data folder is made anew, so that no cycle is about the files of all others."""

_MOST_FINDINGS = 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One loop.

    Attributes:
        fault: `kill` or `cut`.
        durability: of the receiver.
        cycles: how many times it dies.
        seed: of every random choice.
        file_system: that the power is cut of.
        ledger: `sqlite`, or `postgresql` whose data lie on the same disk.
    """

    fault: str
    durability: str = "synced"
    cycles: int = 20
    seed: int = 0
    file_system: str = "ext4"
    ledger: str = "sqlite"


@dataclass(kw_only=True)
class Result:
    """What a loop has come to.

    Attributes:
        acknowledged: instances that were answered with success.
        refused: responses that were none.
        lost: acknowledged instances that were not there after a start.
        broken: findings beside them; at most a few are told.
        deaths: how often it died of what.
        unhappy: starts at which something was lost or broken.
    """

    plan: Plan
    cycles: int = 0
    acknowledged: int = 0
    refused: int = 0
    lost: int = 0
    broken: int = 0
    unhappy: int = 0
    seconds: float = 0.0
    deaths: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def record(self) -> dict[str, object]:
        """Return it as JSON takes it."""
        return {**asdict(replace(self, deaths=Counter())), "deaths": dict(self.deaths)}


def run(
    plan: Plan, work: Path | None = None, tell: Callable[[Result], None] = lambda _: None
) -> Result:
    """Go through all cycles of a plan, and call `tell` now and then.

    Args:
        plan: what to do.
        work: where disks and data folders are made.
        tell: hears of the cycles so far.
    """
    result = Result(plan=plan)
    began = time.monotonic()
    while result.cycles < plan.cycles:
        cycles = range(result.cycles, min(plan.cycles, result.cycles + _CYCLES_A_DISK))
        with tempfile.TemporaryDirectory(prefix="durability-", dir=work) as folder:
            _Life(plan, result, Path(folder)).go_through(cycles)
        result.seconds = round(time.monotonic() - began, 1)
        tell(result)
    return result


class _Life:
    """A data folder, and the receivers that live and die on it."""

    def __init__(self, plan: Plan, result: Result, folder: Path) -> None:
        self._plan = plan
        self._result = result
        self._folder = folder
        self._acknowledged: set[Key] = set()
        self._known: set[str] = set()
        self._server: PostgreSQL | None = None

    def go_through(self, cycles: range) -> None:
        with contextlib.ExitStack() as stack:
            data, disk = self._folder / "data", None
            if self._plan.fault == CUT:
                disk = stack.enter_context(Disk(self._folder, self._plan.file_system))
                data = disk.folder / "data"
            if self._plan.ledger == POSTGRESQL:
                self._server = stack.enter_context(_serve_postgresql(self._folder, data.parent))
            write_configuration(
                self._folder / "config",
                data,
                self._plan.durability,
                DSN_ENV if self._server else "",
            )
            victim = Victim(self._folder / "config")
            stack.callback(victim.end)
            for cycle in cycles:
                choice = random.Random(f"{self._plan.seed} {cycle}")
                if disk is None:
                    self._kill(victim, choice, cycle)
                else:
                    self._cut(victim, disk, choice, cycle)
                self._result.cycles += 1
            victim.start()
            self._examine(cycles.stop)

    def _kill(self, victim: Victim, choice: random.Random, cycle: int) -> None:
        """Let the receiver, one of its serving processes, or whoever comes to a point die."""
        death = choice.choice(("receiver", "serving process", *POINTS))
        environment = {}
        if death in POINTS:
            odds = choice.randint(1, _ODDS) if death in OF_EACH_INSTANCE else 1
            environment = {"DICOM_NODE_CRASH_AT": death, "DICOM_NODE_CRASH_ODDS": str(odds)}
        if not victim.start(environment):
            self._result.deaths[death] += 1
            victim.start()
        if death == REBUILD:
            death = "receiver"
        self._examine(cycle)
        with self._load(victim, cycle) as senders:
            if death in POINTS:
                if victim.wait(_COMMIT_SECONDS if death in AT_COMMIT else _POINT_SECONDS) is None:
                    death = "receiver"  # nobody came to that point
            else:
                _wait_for_instant(senders, choice)
            if death == "serving process":
                victim.kill_one_serving(choice)
            elif death == "receiver":
                victim.kill()
            victim.wait()
        self._result.deaths[death] += 1
        if not victim.is_gone():
            self._note(Verdict(broken=["a serving process outlived its receiver"]), cycle)
            victim.end()

    def _cut(self, victim: Victim, disk: Disk, choice: random.Random, cycle: int) -> None:
        """Cut the power while instances come in, or soon after a killed receiver has come back.

        Or let the disk alone die: then the receiver goes on for a while, and must not say success
        of anything that is not on the disk.
        """
        victim.start()
        self._examine(cycle)
        server = None if self._server is None else self._server.pid
        death = choice.choice((POWER_CUT, POWER_CUT, DEAD_DISK, DEAD_DISK, RETURN))
        with self._load(victim, cycle) as senders:
            _wait_for_instant(senders, choice)
            if death == DEAD_DISK:
                disk.cut_power()
                time.sleep(_AFTER_CUT_SECONDS)
            victim.strike()
            if death == POWER_CUT:
                disk.cut_power()
            victim.end()
        if death == RETURN:
            victim.start()
            victim.strike()
            disk.cut_power()
            victim.end()
        if server is not None:
            with contextlib.suppress(ProcessLookupError):  # without its disk it may have ended
                os.kill(server, signal.SIGKILL)  # its children end with it
        disk.boot()
        if self._server is not None:
            _forget_process(self._server)
            self._server.start()
        self._result.deaths[death] += 1

    @contextlib.contextmanager
    def _load(self, victim: Victim, cycle: int) -> Iterator[Senders]:
        senders = Senders(victim.port, f"{self._plan.seed}.{cycle}")
        senders.start()
        try:
            yield senders
        finally:
            told = senders.stop()
            self._acknowledged |= told.acknowledged
            self._result.acknowledged += told.statuses[SUCCESS]
            self._result.refused += told.statuses.total() - told.statuses[SUCCESS]

    def _examine(self, cycle: int) -> None:
        """Look, after a start, for what the cycles before have lost."""
        node = read_node(self._folder / "config")
        verdict = examine(node.data_folder, node.ledger_url, self._acknowledged, self._known)
        self._acknowledged -= set(verdict.lost)  # is told once
        self._note(verdict, cycle)

    def _note(self, verdict: Verdict, cycle: int) -> None:
        result = self._result
        result.lost += len(verdict.lost)
        result.broken += len(verdict.broken)
        result.unhappy += bool(verdict.lost or verdict.broken)
        found = [f"before cycle {cycle}: lost {uid}" for uid, _ in verdict.lost]
        found += [f"before cycle {cycle}: {line}" for line in verdict.broken]
        result.findings += found[: _MOST_FINDINGS - len(result.findings)]


@contextlib.contextmanager
def _serve_postgresql(work: Path, disk: Path) -> Iterator[PostgreSQL]:
    """Give a PostgreSQL server whose data lie on `disk`, and say in the environment where it is."""
    work.chmod(0o711)  # it runs as a user of its own
    folder = disk / "postgresql"
    folder.mkdir()
    with removed_at_the_end(folder):
        server = PostgreSQL(folder)
        server.create()
        os.sync()  # which it did not
        server.start()
        os.environ[DSN_ENV] = server.make_url()
        try:
            yield server
        except RuntimeError as error:
            error.add_note(server.read_logs())
            raise
        finally:
            server.stop()


def _forget_process(server: PostgreSQL) -> None:
    """Remove the locks of a server that was killed.

    After a boot no process has its number; here one may still have it, if only a zombie.
    """
    for lock in (server.data / "postmaster.pid", *server.folder.glob(".s.PGSQL.*")):
        lock.unlink()


def _wait_for_instant(senders: Senders, choice: random.Random) -> None:
    """Wait until it is time to die."""
    count, deadline = choice.randint(0, _MOST_ACKNOWLEDGED), time.monotonic() + _LOAD_SECONDS
    while senders.told.statuses[SUCCESS] < count and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(choice.uniform(0, _INSTANT_SECONDS))
