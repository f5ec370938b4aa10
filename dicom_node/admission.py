"""How many may come in, and how fast: connections that have not said who they are, associations.

The two have budgets of their own, so that whoever only connects cannot keep the known peers out.
Half of the first is for addresses of peers, so that strangers leave them a way in. Among the known
peers, none can keep out another: the last places are for peers that have none.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

_SAVED_SECONDS = 5.0
"""Who has asked for nothing for so long may ask for all of that at once."""


class Entry(StrEnum):
    """What is said to a peer that asks for an association; a refusal is its word in the log."""

    WELCOME = "welcome"
    NOT_YET = "not_yet"
    FULL = "too_many_associations"
    TOO_FAST = "too_fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most at once.

    Attributes:
        connections: open connections without an association, from everywhere; half of them from
            addresses that no peer calls from.
        connections_per_address: the same, from one address.
        associations: associations of all peers.
        associations_per_peer: associations of one peer.
        associations_per_second: new associations of one peer.
        peers: how many peers there are that may ask for one.
    """

    connections: int = 64
    connections_per_address: int = 16
    associations: int = 20
    associations_per_peer: int = 8
    associations_per_second: int = 100
    peers: int = 1


class Pace:
    """A token bucket: so many a second, and at once what was saved up in a few seconds."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1.0 / per_second
        self._clock = clock
        self._due = 0.0

    def take(self) -> float:
        """Count one in and return 0, or return the seconds until one more is due."""
        now = self._clock()
        due = max(self._due, now - _SAVED_SECONDS) + self._interval
        if due > now:
            return due - now
        self._due = due
        return 0.0


class Admission:
    """Who is in now; safe to share between threads."""

    def __init__(self, budget: Budget, is_known: Callable[[str], bool] = lambda _: True) -> None:
        """Describe it; `is_known` says whether any peer calls from an address."""
        self._budget = budget
        self._is_known = is_known
        self._strangers = 0
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()
        self._associated: Counter[str] = Counter()
        self._paces: dict[str, Pace] = {}

    def enter(self, address: str) -> bool:
        """Count a new connection, or say that there is no room for it."""
        is_stranger = not self._is_known(address)
        with self._lock:
            if (
                self._waiting.total() >= self._budget.connections
                or self._waiting[address] >= self._budget.connections_per_address
                or (is_stranger and 2 * self._strangers >= self._budget.connections)
            ):
                return False
            self._waiting[address] += 1
            self._strangers += is_stranger
            return True

    def leave(self, address: str) -> None:
        """Count a connection out that has no association, or no longer."""
        with self._lock:
            self._waiting[address] -= 1
            self._waiting += Counter()  # forget addresses of whom none is left
            self._strangers -= not self._is_known(address)

    def associate(self, address: str, peer: str) -> Entry:
        """Count a connection as an association of `peer`, which is configured, or refuse it.

        Returns:
            WELCOME, or what stands in the way: NOT_YET when room is worth waiting for a moment.
        """
        with self._lock:
            if not self._has_room(peer):
                return Entry.FULL if self._is_crowded(address) else Entry.NOT_YET
            pace = self._paces.setdefault(peer, Pace(self._budget.associations_per_second))
            if pace.take():
                return Entry.TOO_FAST
            self._waiting[address] -= 1
            self._associated[peer] += 1
            return Entry.WELCOME

    def part(self, address: str, peer: str) -> None:
        """Count an association as a mere connection again."""
        with self._lock:
            self._waiting[address] += 1
            self._associated[peer] -= 1
            self._associated += Counter()

    def total(self) -> int:
        """Return how many connections and associations there are."""
        with self._lock:
            return self._waiting.total() + self._associated.total()

    def _has_room(self, peer: str) -> bool:
        """Say whether a peer may have one association more.

        One that has some already leaves a place to each peer that has none, as far as half of the
        places go.
        """
        budget, own = self._budget, self._associated[peer]
        kept_free = 0
        if own:
            kept_free = min(budget.peers - len(+self._associated), budget.associations // 2)
        return (
            own < budget.associations_per_peer
            and self._associated.total() + kept_free < budget.associations
        )

    def _is_crowded(self, address: str) -> bool:
        """Say whether so many connections wait that one more should not be kept waiting."""
        return (
            2 * self._waiting.total() > self._budget.connections
            or 2 * self._waiting[address] > self._budget.connections_per_address
        )
