"""Kill the receiver and cut its power, again and again, and count what is lost: it must be 0.

    make durability                            1,000 kills and 1,000 power cuts; about an hour
    make durability DURABILITY_ARGS="--fault cut --durability strict --cycles 200 --seed 7"

A receiver gets instances over several associations, dies, and is started again; then every instance
that was ever acknowledged must be there with the right digest in its file and its row, with no row
without a file, no file without a row and nothing half-written. `--durability none` is the control,
which must lose when the power is cut.

Ends with 1 when anything was lost or broken.
"""

import argparse
import json
import secrets
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from durability.cycles import CUT, KILL, POSTGRESQL, Plan, Result, run
from durability.disk import FILE_SYSTEMS, find_obstacle

CYCLES = 1_000


def main() -> int:
    """Run the loops, and print a table and JSON."""
    options = read_options()
    console = Console()
    plan = Plan(
        fault=KILL,
        durability=options.durability,
        cycles=options.cycles,
        seed=options.seed,
        file_system=options.file_system,
        ledger=options.ledger,
    )
    console.print(f"seed {plan.seed}")

    def tell(result: Result) -> None:
        console.print(
            f"{result.plan.fault}: {result.cycles} cycles, {result.acknowledged} acknowledged, "
            f"{result.lost} lost, {result.broken} broken, {result.seconds:.0f} s"
        )

    results = []
    for fault in options.fault.split(","):
        obstacle = find_obstacle(plan.file_system) if fault == CUT else None
        if obstacle is not None:
            console.print(f"{fault}: left out: {obstacle}")
            continue
        result = run(replace(plan, fault=fault), options.work, tell)
        results.append(result)
        console.print_json(json.dumps(result.record()))
        if options.results:
            with options.results.open("a") as file:
                file.write(json.dumps(result.record()) + "\n")
    console.print(draw(results))
    return int(any(each.lost or each.broken for each in results))


def read_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="make durability", description=__doc__.splitlines()[0])
    parser.add_argument("--fault", default=f"{KILL},{CUT}", help="kill, cut, or both")
    parser.add_argument("--durability", default="synced", choices=("synced", "strict", "none"))
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9))
    parser.add_argument("--file-system", default="ext4", choices=tuple(FILE_SYSTEMS))
    parser.add_argument("--ledger", default="sqlite", choices=("sqlite", POSTGRESQL))
    parser.add_argument(
        "--work",
        type=Path,
        help="where disks and data folders are made; PostgreSQL wants it below no closed folder",
    )
    parser.add_argument("--results", type=Path, help="append each result to this file, as JSON")
    return parser.parse_args()


def draw(results: list[Result]) -> Table:
    """Return the table that is printed at the end."""
    table = Table(
        "fault", "durability", "ledger", "cycles", "acknowledged", "refused", "lost", "broken"
    )
    for each in results:
        table.add_row(
            each.plan.fault,
            each.plan.durability,
            each.plan.ledger,
            f"{each.cycles:,}",
            f"{each.acknowledged:,}",
            f"{each.refused:,}",
            f"{each.lost:,}",
            f"{each.broken:,}",
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
