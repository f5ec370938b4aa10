"""A sweep on a timer: what runs, how often, and how it went.

`node` lets it tick. It holds no state that matters: what a sweep was at is in the ledger, and a
tick that comes twice or late does no harm.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from dicom_node.audit import describe_error
from dicom_node.errors import DicomNodeError
from synthesis.errors import SynthesisError

STUCK = timedelta(minutes=15)
"""A sweep that has not come back for so long, beside its own period, is told as a problem."""

logger = logging.getLogger(__name__)


class Timer:
    """A sweep, how often it runs, and how it went.

    Whatever a sweep raises is told in the log and by `problems`, and the next tick tries again.
    """

    def __init__(self, name: str, sweep: Callable[[], object], period: timedelta) -> None:
        self.name = name
        self.period = period
        self._sweep = sweep
        self._busy = threading.Lock()
        self._ended = time.monotonic()
        self._problem: str | None = None

    def tick(self) -> None:
        """Sweep once."""
        with self._busy:
            try:
                self._sweep()
            except (DicomNodeError, SynthesisError) as error:
                self._tell(f"{self.name}: {error}", error)
            except Exception as error:  # noqa: BLE001 - the node goes on, whatever one study did to it
                self._tell(f"{self.name}: {describe_error(error)}", error)
            else:
                self._problem = None
            self._ended = time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Wait until the sweep that runs has ended; False when it goes on after `seconds`."""
        if not self._busy.acquire(timeout=max(0.0, seconds)):
            return False
        self._busy.release()
        return True

    def age(self) -> float:
        """Return how many seconds ago the last sweep ended."""
        return time.monotonic() - self._ended

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with it."""
        if self._problem is not None:
            yield self._problem
        if self.age() > (STUCK + self.period).total_seconds():
            yield f"{self.name}: no sweep has ended for {self.age():.0f} s"

    def _tell(self, problem: str, error: Exception) -> None:
        if problem != self._problem:  # once, not with every tick
            logger.error("sweep.failed name=%s", self.name, exc_info=error)
        self._problem = problem
