"""Who is logged in to the admin page, and who has guessed too often.

Kept in memory only: after a restart everybody logs in again. The browser holds a random token, this
process its digest. A session ends with its time, with its account, and when the account changes.
"""

import hashlib
import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicom_node.admin.accounts import Account, Accounts, Person

_MOST_SESSIONS = 1_000
_MOST_GUESSERS = 10_000
_TOKEN_BYTES = 32


@dataclass(slots=True, kw_only=True)
class Session:
    """One log-in of one person.

    Attributes:
        account: as it was then.
        form_token: what every form of the session must bring back.
        since: when the person logged in.
        seen: when the person last asked for something.
        notice: what the next page tells of what was just done: its tone and a sentence.
    """

    name: str
    account: Account
    form_token: str
    since: datetime
    seen: datetime
    notice: tuple[str, str] | None = None

    def takes(self, form_token: str) -> bool:
        """Say whether a form is one of this session's."""
        return hmac.compare_digest(form_token.encode(), self.form_token.encode())


class Sessions:
    """The sessions that are open; safe to share between threads."""

    def __init__(
        self,
        accounts: Accounts,
        clock: Callable[[], datetime],
        *,
        idle: timedelta,
        longest: timedelta,
    ) -> None:
        """Begin with none; `idle` and `longest` are those of `node_settings.Admin`."""
        self._accounts = accounts
        self._clock = clock
        self._idle = idle
        self._longest = longest
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Session] = OrderedDict()

    def begin(self, name: str, account: Account) -> str:
        """Return the token of a new session."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        now = self._clock()
        session = Session(
            name=name,
            account=account,
            form_token=secrets.token_urlsafe(_TOKEN_BYTES),
            since=now,
            seen=now,
        )
        with self._lock:
            self._open[_digest(token)] = session
            while len(self._open) > _MOST_SESSIONS:
                self._open.popitem(last=False)
        return token

    def find(self, token: str, *, counts: bool = True) -> tuple[Session, Person] | None:
        """Return the session of a token and whose it is, or None when it is over.

        Args:
            token: as the browser brought it.
            counts: whether the person did something; a page that refreshes itself does not count.
        """
        now = self._clock()
        with self._lock:
            session = self._open.get(_digest(token))
            if session is None:
                return None
            account = self._accounts.read().get(session.name)
            is_over = now - session.seen > self._idle or now - session.since > self._longest
            if is_over or account != session.account:
                del self._open[_digest(token)]
                return None
            if counts:
                session.seen = now
        return session, Person(name=session.name, role=session.account.role)

    def end(self, token: str) -> None:
        """Log out."""
        with self._lock:
            self._open.pop(_digest(token), None)


class Lockout:
    """Counts wrong passwords by what is guessed or who guesses; safe to share between threads."""

    def __init__(self, clock: Callable[[], datetime], *, attempts: int, lock: timedelta) -> None:
        """Begin with nobody; so many `attempts` in a row lock a key for the time of `lock`."""
        self._clock = clock
        self._attempts = attempts
        self._duration = lock
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, tuple[int, datetime]] = OrderedDict()

    def is_locked(self, key: str) -> bool:
        """Say whether a key has to wait."""
        with self._lock:
            count, last = self._failures.get(key, (0, self._clock()))
            return count >= self._attempts and self._clock() - last < self._duration

    def note_failure(self, key: str) -> bool:
        """Count a wrong password; True when it locks the key."""
        now = self._clock()
        with self._lock:
            count, last = self._failures.pop(key, (0, now))
            count = 1 if now - last >= self._duration else count + 1
            self._failures[key] = (count, now)
            if len(self._failures) > _MOST_GUESSERS:
                self._failures.popitem(last=False)
        return count == self._attempts

    def forget(self, key: str) -> None:
        """Begin anew, after a right password."""
        with self._lock:
            self._failures.pop(key, None)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
