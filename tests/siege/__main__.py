"""Lay siege to a receiver, and print what it did to it.

    make siege                                              all of it, about 6 minutes
    make siege SIEGE_ARGS="--connections 2000 --seconds 10"

100,000 malformed connections, 200 stuck sockets beside a good peer, and storms of associations.
Exits with 1 when a goal is missed.
"""

import argparse
import random
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from siege.attacks import Flood, Storm, Stuck, hold_stuck, raise_storm, send_malformed
from siege.target import Target, besieged

MEBIBYTES, APART, P99_SECONDS, CPU_PERCENT, LEAST_RATE = 20, 2, 1.0, 25, 0.8

Line = tuple[str, str, str, bool]
"""What was measured, its value, the goal, and whether it is met."""


def main() -> int:
    """Attack, and print a table."""
    parser = argparse.ArgumentParser(prog="make siege", description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=100_000, help="malformed connections")
    parser.add_argument("--sockets", type=int, default=200, help="stuck sockets")
    parser.add_argument("--seconds", type=float, default=120, help="that they are held")
    parser.add_argument("--rounds", type=int, default=5, help="storms of associations")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    lines: list[Line] = []
    with (
        tempfile.TemporaryDirectory(prefix="siege-") as folder,
        besieged(Path(folder)) as target,
    ):
        lines += judge_flood(send_malformed(target, options.connections, options.seed), target)
        lines += judge_stuck(hold_stuck(target, options.sockets, options.seconds))
        lines += judge_storm(raise_storm(target, 300, 160, options.rounds))
    table = Table(title=f"seed {options.seed}")
    for name in ("measured", "value", "goal", ""):
        table.add_column(name)
    for name, value, goal, is_met in lines:
        table.add_row(name, value, goal, "" if is_met else "MISSED")
    Console(width=110).print(table)
    return 0 if all(is_met for *_, is_met in lines) else 1


def judge_flood(flood: Flood, target: Target) -> list[Line]:
    """Compare malformed connections with their goals (reliability goals G7, G9)."""
    before, after = flood.before, flood.after
    growth = after.mebibytes - before.mebibytes
    threads, descriptors = after.threads - before.threads, after.descriptors - before.descriptors
    failures = sum("CRITICAL" in line or "error=" in line for line in target.read_log())
    name = f"{flood.connections:,} malformed connections"
    return [
        (name, f"{flood.connections / flood.seconds:.0f}/s", "", target.is_alive()),
        ("memory, MiB", f"{before.mebibytes:.1f} {growth:+.1f}", f"+{MEBIBYTES}", growth <= 20),
        ("threads", f"{before.threads} {threads:+d}", f"±{APART}", abs(threads) <= APART),
        (
            "descriptors",
            f"{before.descriptors} {descriptors:+d}",
            f"±{APART}",
            abs(descriptors) <= APART,
        ),
        (
            "log lines for each connection",
            f"{flood.lines / flood.connections:.4f}",
            "1",
            flood.lines <= flood.connections,
        ),
        ("lines of failures in the log", str(failures), "0", failures == 0),
    ]


def judge_stuck(stuck: Stuck) -> list[Line]:
    """Compare what a good peer noticed of stuck sockets with its goals (goal G8)."""
    name = f"{stuck.sockets} stuck sockets, opened {stuck.opened} times: C-ECHO p99, ms"
    lines = []
    for how, seconds in (("established", stuck.established), ("anew", stuck.anew)):
        p99 = find_p99(seconds)
        lines.append(
            (f"{name}, {how} (n={len(seconds)})", f"{1e3 * p99:.1f}", "1000", p99 < P99_SECONDS)
        )
    return [
        *lines,
        ("good associations turned away", str(stuck.refused), "0", stuck.refused == 0),
        (
            "CPU, percent of a core",
            f"{stuck.cpu_percent:.1f}",
            str(CPU_PERCENT),
            stuck.cpu_percent < CPU_PERCENT,
        ),
    ]


def judge_storm(storm: Storm) -> list[Line]:
    """Compare storms of associations with their goal (row U43 of the catalogue)."""
    ratio = storm.in_storm / storm.alone
    answers = ", ".join(f"{count} {answer}" for answer, count in sorted(storm.answers.items()))
    return [
        ("instances/s of one association alone", f"{storm.alone:.0f}", "", True),
        ("the same in storms of associations", f"{storm.in_storm:.0f}", "", True),
        ("ratio", f"{ratio:.2f}", f"{LEAST_RATE}", ratio >= LEAST_RATE),
        (f"answers to {storm.requests} requests", answers, "", True),
    ]


def find_p99(seconds: list[float]) -> float:
    """Return the 99th percentile; of none, infinity."""
    return sorted(seconds)[int(0.99 * (len(seconds) - 1))] if seconds else float("inf")


if __name__ == "__main__":
    raise SystemExit(main())
