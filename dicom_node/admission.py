"""How many may come in at once: connections that have not said who they are, and associations.

The two have budgets of their own, so that whoever only connects cannot keep the known peers out.
"""

import threading
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most at once.

    Attributes:
        connections: open connections without an association, from everywhere.
        connections_per_address: the same, from one address.
        associations: associations of all peers.
        associations_per_peer: associations of one peer.
    """

    connections: int = 64
    connections_per_address: int = 16
    associations: int = 20
    associations_per_peer: int = 8


class Admission:
    """Who is in now; safe to share between threads."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()
        self._associated: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count a new connection, or say that there is no room for it."""
        with self._lock:
            if (
                self._waiting.total() >= self._budget.connections
                or self._waiting[address] >= self._budget.connections_per_address
            ):
                return False
            self._waiting[address] += 1
            return True

    def leave(self, address: str) -> None:
        """Count a connection out that has no association, or no longer."""
        with self._lock:
            self._waiting[address] -= 1
            self._waiting += Counter()  # forget addresses of whom none is left

    def associate(self, address: str, peer: str) -> bool:
        """Count a connection as an association of `peer`, or say that there is no room for it."""
        with self._lock:
            if (
                self._associated.total() >= self._budget.associations
                or self._associated[peer] >= self._budget.associations_per_peer
            ):
                return False
            self._waiting[address] -= 1
            self._associated[peer] += 1
            return True

    def part(self, address: str, peer: str) -> None:
        """Count an association as a mere connection again."""
        with self._lock:
            self._waiting[address] += 1
            self._associated[peer] -= 1

    def total(self) -> int:
        """Return how many connections and associations there are."""
        with self._lock:
            return self._waiting.total() + self._associated.total()
