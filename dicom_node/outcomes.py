"""What a peer's answer means for an instance that was sent to it, and how long to wait after a no.

Whatever a table does not know may pass, so it is tried again until the time is up. Sources: PS3.4
table B.2-1 for C-STORE, PS3.7 section 9.1.1.1.9 and annex C for the rest.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicom_node.domain import DeliveryState

SENT, WARNED, PENDING, PARKED = (
    DeliveryState.SENT,
    DeliveryState.WARNED,
    DeliveryState.PENDING,
    DeliveryState.PARKED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What follows from an answer; PENDING is tried again.

    Attributes:
        status: of DIMSE; None where the answer has none.
    """

    state: DeliveryState
    reason: str | None = None
    status: int | None = None


_STATUSES: tuple[tuple[int, int, DeliveryState, str | None], ...] = (
    (0x0000, 0x0000, SENT, None),
    # Taken, and something is to be known of it.
    (0x0001, 0x0001, WARNED, "the peer does not support all attributes"),
    (0x0107, 0x0107, WARNED, "the peer did not take all attributes"),
    (0x0111, 0x0111, WARNED, "the peer says that it has it already"),
    (0x0116, 0x0116, WARNED, "the peer found a value out of range"),
    (0xB000, 0xB000, WARNED, "the peer changed elements to make it fit"),
    (0xB006, 0xB006, WARNED, "the peer left elements away"),
    (0xB007, 0xB007, WARNED, "the peer finds that it does not match its SOP class"),
    (0xB000, 0xBFFF, WARNED, "the peer took it with a warning"),
    # The same bytes will get the same answer: a person must look.
    (0x0117, 0x0117, PARKED, "the peer finds the instance invalid"),
    (0x0118, 0x0118, PARKED, "the peer does not know the SOP class"),
    (0x0122, 0x0122, PARKED, "the peer does not support the SOP class"),
    (0x0124, 0x0124, PARKED, "the peer does not authorize this node"),
    (0x0211, 0x0212, PARKED, "the peer does not understand the request"),
    (0xA900, 0xA9FF, PARKED, "the peer finds that it does not match its SOP class"),
    (0xC000, 0xCFFF, PARKED, "the peer cannot understand it"),
    # It may pass.
    (0x0110, 0x0110, PENDING, "the peer failed to process it"),
    (0x0210, 0x0210, PENDING, "the peer says that the message came twice"),
    (0x0213, 0x0213, PENDING, "the peer is out of resources"),
    (0xA700, 0xA7FF, PENDING, "the peer is out of resources"),
)
"""First status, last status, what follows, and why in a sentence; the first that fits counts."""


def judge_status(status: int) -> Outcome:
    """Say what the status of a C-STORE response means for its instance."""
    for first, last, state, reason in _STATUSES:
        if first <= status <= last:
            return Outcome(state=state, reason=reason, status=status)
    return Outcome(
        state=PENDING, reason="the peer failed in a way that it does not explain", status=status
    )


def find_pause(first: timedelta, longest: timedelta, failures: int) -> timedelta:
    """Return the pause after a failure: `first`, doubled by each earlier one, up to `longest`."""
    doublings = min(failures, 30)  # 2**30 seconds are longer than any longest pause
    return min(first * (1 << doublings), longest)


class Rest:
    """How long a worker leaves a peer alone whose associations came to nothing.

    Attributes:
        failures: in a row.
    """

    def __init__(
        self,
        pauses: tuple[timedelta, timedelta],
        jitter: tuple[float, float],
        clock: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        """Describe it.

        Args:
            pauses: the first and the longest, see `find_pause`.
            jitter: the least and the most that a pause is multiplied by.
            clock: gives aware times.
            rng: varies the pauses.
        """
        self.failures = 0
        self._pauses = pauses
        self._jitter = jitter
        self._clock = clock
        self._rng = rng
        self._until: datetime | None = None

    def is_over(self) -> bool:
        """Say whether the peer may be called."""
        return self._until is None or self._clock() >= self._until

    def begin(self) -> None:
        """Leave it alone after one more failure."""
        pause = find_pause(*self._pauses, self.failures) * self._rng.uniform(*self._jitter)
        self.failures += 1
        self._until = self._clock() + pause

    def end(self) -> None:
        """Forget the failures: it answered."""
        self.failures, self._until = 0, None
