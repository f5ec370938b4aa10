"""How the pages write times, durations, sizes, long names, and what people did."""

from collections.abc import Mapping
from datetime import datetime, timedelta

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_UID_END = 10


def ago(then: datetime, now: datetime) -> str:
    """Return how long ago something was."""
    return f"{duration((now - then).total_seconds())} ago"


def duration(seconds: float | timedelta) -> str:
    """Return a duration with one unit."""
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    for unit, length in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def moment(then: datetime) -> str:
    """Return a time for a person, in UTC."""
    return f"{then:%Y-%m-%d %H:%M:%S}"


def short(name: str) -> str:
    """Return the end of a UID, or the beginning of a digest; the whole stands beside, as title."""
    return f"…{name[-_UID_END:]}" if "." in name else name[:12]


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number of things: `1 image`, `1,024 images`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def sentence(text: str) -> str:
    """Return a text with a capital letter in front."""
    return f"{text[:1].upper()}{text[1:]}"


ACTS: Mapping[str, str] = {
    "account.removed": "took an account away",
    "account.set": "set an account",
    "archive.asked": "asked an archive",
    "delivery.requeue": "had it sent again",
    "job.reject": "rejected a result",
    "job.release": "released a result",
    "job.requeue": "queued a job again",
    "job.withdrawn": "withdrew a result",
    "page.acts_seen": "looked at the acts",
    "page.locked": "was locked out",
    "page.login": "logged in",
    "page.login_failed": "failed to log in",
    "page.logout": "logged out",
    "page.patient_seen": "saw whose study it is",
    "page.right_missing": "asked for what the role may not do",
    "study.exported": "exported a study",
    "study.rejected": "closed a study",
    "study.released": "released a study",
    "study.reopened": "had a study judged again",
}
"""What a person did, by the name of its event."""


def act(name: str) -> str:
    """Return what a person did, in words."""
    return ACTS.get(name, name.replace(".", " ").replace("_", " "))


def query(keys: Mapping[str, str]) -> str:
    """Return the keys of a query, with the values that are told."""
    return ", ".join(f"{key} {value}".rstrip() for key, value in keys.items())


FILTERS = {
    "act": act,
    "ago": ago,
    "count": count,
    "duration": duration,
    "moment": moment,
    "query": query,
    "sentence": sentence,
    "short": short,
}
