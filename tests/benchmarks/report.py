"""The tables of a run, for a terminal and for docs/benchmarks.md."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.goals import GOALS, Results
from benchmarks.receivers import RECEIVERS, STORESCP_SHIPPED
from benchmarks.senders import SENDERS
from benchmarks.studies import KINDS

_MARK = "<!-- tables: make bench BENCH_ARGS=... -->"


def write_tables(results: Results, console: Console) -> None:
    """Print all tables."""
    for title, head, rows in _list_tables(results):
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def write_document(results: Results, machine: Mapping[str, str], path: Path) -> None:
    """Put the tables below the mark of a Markdown file; what stands above it stays."""
    text = path.read_text().partition(_MARK)[0]
    lines = [_MARK, "", *(f"- {key}: {value}" for key, value in machine.items()), ""]
    for title, head, rows in _list_tables(results):
        lines += [f"## {title}", "", _line(head), _line(["---"] * len(head))]
        lines += [*map(_line, rows), ""]
    path.write_text(text + "\n".join(lines).rstrip() + "\n")


def _list_tables(
    results: Results,
) -> Iterator[tuple[str, Sequence[str], list[Sequence[str]]]]:
    """Yield title, head and rows of each table."""
    goals = [
        (goal.name, goal.text, _number(value), ("≤ " if goal.at_most else "≥ ") + _number(goal.bar),
         "yes" if goal.is_reached(value) else "no")
        for goal in GOALS
        if not math.isnan(value := goal.measure(results))
    ]  # fmt: skip
    yield "Goals", ("Goal", "What", "Measured", "Bar", "Reached"), goals
    received = sorted(
        {
            (list(KINDS).index(record["study"]), record["associations"])
            for record in results.records
            if record["kind"] == "reception"
        }
    )
    cases = [(list(KINDS)[study], count) for study, count in received]
    for title, figure in (
        ("Instances received a second", "rate"),
        ("Server CPU, ms an instance", "cpu_ms"),
        ("p99 of a C-STORE, ms", "p99"),
        ("Memory (PSS), MiB", "memory_mib"),
        ("Memory (peak RSS of each process, summed), MiB", "peak_mib"),
    ):
        rows = []
        for name in RECEIVERS:
            values = [results.received(name, study, count, figure) for study, count in cases]
            if not all(map(math.isnan, values)):
                rows.append((name, *map(_number, values)))
        if rows:
            yield title, ("Receiver", *(f"{study} × {count}" for study, count in cases)), rows
    yield from _list_sending(results)
    others = [
        (f"{record['kind']}: {record.get('receiver', '')} {record.get('sender', '')}".strip(), key,
         _number(results.median(record["kind"], key, **_same(record))))
        for record in results.records
        if record["kind"] not in {"reception", "sending"} and record["round"] == 0
        for key, value in record.items()
        if isinstance(value, float)
    ]  # fmt: skip
    yield "Other figures", ("What", "Figure", "Median"), others


def _list_sending(
    results: Results,
) -> Iterator[tuple[str, Sequence[str], list[Sequence[str]]]]:
    """Yield the table of the senders, if they were measured."""
    sent = [record for record in results.records if record["kind"] == "sending"]
    cases = list(dict.fromkeys((record["study"], record["receiver"]) for record in sent))
    cases.sort(key=lambda case: (case[1] == STORESCP_SHIPPED, list(KINDS).index(case[0])))
    rows = []
    for name in SENDERS:
        values = [
            results.median("sending", "rate", sender=name, study=study, receiver=receiver)
            for study, receiver in cases
        ]
        if not all(map(math.isnan, values)):
            rows.append((name, *map(_number, values)))
    if rows:
        head = ("Sender", *(f"{study} into {receiver}" for study, receiver in cases))
        yield "Instances sent a second", head, rows


def _same(record: Mapping[str, object]) -> dict[str, object]:
    return {key: record[key] for key in ("receiver", "sender", "grouped") if key in record}


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
