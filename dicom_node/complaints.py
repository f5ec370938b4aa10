"""Log lines about peers: our own words and numbers, never theirs, and not as many as they like.

A peer that misbehaves a thousand times a second must not fill the disk with lines about it: one
line in ten seconds for each peer and event, with the number of those left out.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

QUIET_SECONDS = 10.0

AUDIT = 35
"""Level of lines for whoever watches over security; between WARNING and ERROR."""

SECURITY_ALERT = 110113
"""What PS3.15 section A.5 calls somebody who is not who they should be."""

_ALERTS = frozenset({"called_ae_title", "calling_ae_title", "plain_not_allowed", "tls_failed"})
_REMEMBERED = 1_024

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Somebody is not who they should be.

    Attributes:
        event: short stable word.
        who: the peer's alias in the configuration, or its address when it has none.
        facts: counts and codes of our own.
    """

    event: str
    who: str
    facts: Mapping[str, int | str]


class Complains(Protocol):
    """Tells of a peer, see `Complaints`; perhaps in another process."""

    def note(self, event: str, *, who: str, **numbers: int | str) -> None:
        """Write one warning, or count it."""


class Complaints:
    """What was said of whom, and when."""

    def __init__(self, keep: Callable[[Alert], None] = lambda _: None) -> None:
        """Describe it; `keep` gets each alert, beside the log."""
        self._keep = keep
        self._lock = threading.Lock()
        self._said: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def note(
        self, event: str, *, who: str, level: int = logging.WARNING, **numbers: int | str
    ) -> None:
        """Write one line, or count it when the same was said a moment ago.

        What is a matter of identity is written a second time, as a security alert.

        Args:
            event: short stable word.
            who: the peer's alias in the configuration, or its address when it has none.
            level: ERROR for what a person must see.
            numbers: counts and codes of our own.
        """
        now = time.monotonic()
        with self._lock:
            said, left_out = self._said.get((who, event), (0.0, 0))
            if said and now - said < QUIET_SECONDS:
                self._said[who, event] = (said, left_out + 1)
                return
            self._said[who, event] = (now, 0)
            self._said.move_to_end((who, event))
            if len(self._said) > _REMEMBERED:
                self._said.popitem(last=False)
        counts = {**numbers, "left_out": left_out} if left_out else numbers
        _logger.log(level, "receive.%s", event, extra={"peer": who, **counts})
        if event in _ALERTS:
            raise_alert(event, who=who, **counts)
            self._keep(Alert(event=event, who=who, facts=counts))


def raise_alert(event: str, *, who: str, **facts: int | str) -> None:
    """Write a security alert; the arguments are those of `Complaints.note`."""
    extra = {"code": SECURITY_ALERT, "event": event, "peer": who, **facts}
    _logger.log(AUDIT, "security.alert", extra=extra)
