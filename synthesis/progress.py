"""How far a long command is: a bar with the time that is left, or lines where no terminal is."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SPEED_OVER_SECONDS = 300.0
"""What is left is told by the speed of the last minutes: now and then a training stops to look."""
LINES = 20
"""In a whole command, where no terminal is."""

logger = logging.getLogger(__name__)


@contextmanager
def show_progress(name: str, console: Console) -> Iterator[Callable[[float], None]]:
    """Yield what is to be told how much is over, from 0 to 1.

    On a terminal, log lines go above the bar for as long as it is there.
    """
    if not console.is_terminal:
        yield _tell_by_lines(name, time.monotonic)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    root = logging.getLogger()
    handlers = list(root.handlers)
    root.handlers = [RichHandler(console=console, show_path=False, show_level=False)]
    try:
        with Progress(*columns, console=console, speed_estimate_period=SPEED_OVER_SECONDS) as bar:
            task = bar.add_task(name, total=None)  # it moves to and fro until something is told
            yield lambda share: bar.update(task, total=1.0, completed=share)
    finally:
        root.handlers = handlers


def _tell_by_lines(name: str, clock: Callable[[], float]) -> Callable[[float], None]:
    first: tuple[float, float] | None = None
    told = 0

    def tell(share: float) -> None:
        nonlocal first, told
        if first is None:
            first, told = (clock(), share), int(LINES * share)
        if int(LINES * share) == told:
            return
        told = int(LINES * share)
        began, at = first
        left = (clock() - began) * (1 - share) / (share - at)
        logger.info("%s: %.0f %%, %s left", name, 100 * share, timedelta(seconds=round(left)))

    return tell
