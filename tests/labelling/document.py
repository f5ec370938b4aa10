"""Tables for a terminal, and for the part of a Markdown document below its mark."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

Table = tuple[str, Sequence[str], list[Sequence[str]]]
"""Title, head and rows."""

_MARK = "<!-- tables: make labels -->"


def print_tables(tables: Iterable[Table], console: Console) -> None:
    """Print all tables."""
    for title, head, rows in tables:
        shown = RichTable(*head, title=title)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)


def write_tables(tables: Iterable[Table], path: Path) -> None:
    """Put the tables below the mark of a document; what stands above it stays."""
    lines = [path.read_text().partition(_MARK)[0] + _MARK, ""]
    for title, head, rows in tables:
        lines += [f"## {title}", "", _line(head), _line(["---"] * len(head))]
        lines += [*map(_line, rows), ""]
    path.write_text("\n".join(lines).rstrip() + "\n")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
