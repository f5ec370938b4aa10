from datetime import timedelta
from pathlib import Path

import pytest

from dicom_node.admin.accounts import Accounts, Role
from dicom_node.admin.sessions import Lockout, Sessions
from doubles.ledger import Clock

IDLE, LONGEST = timedelta(minutes=15), timedelta(hours=8)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(tmp_path: Path, clock: Clock) -> Accounts:
    accounts = Accounts(tmp_path)
    accounts.put("M. Meier", Role.OPERATOR, "correct horse staple", clock())
    return accounts


@pytest.fixture
def sessions(accounts: Accounts, clock: Clock) -> Sessions:
    return Sessions(accounts, clock, idle=IDLE, longest=LONGEST)


@pytest.fixture
def token(sessions: Sessions, accounts: Accounts) -> str:
    return sessions.begin("M. Meier", accounts.read()["M. Meier"])


def test_session_says_who_it_is(sessions: Sessions, token: str) -> None:
    found = sessions.find(token)

    assert found is not None
    session, person = found
    assert (person.name, person.role) == ("M. Meier", Role.OPERATOR)
    assert session.takes(session.form_token)
    assert not session.takes("")
    assert sessions.find(f"{token}x") is None


def test_who_does_nothing_is_logged_out(sessions: Sessions, token: str, clock: Clock) -> None:
    clock.advance(minutes=14)
    assert sessions.find(token)
    clock.advance(minutes=14)
    assert sessions.find(token)
    clock.advance(minutes=16)
    assert sessions.find(token) is None


def test_page_that_refreshes_itself_keeps_nobody_logged_in(
    sessions: Sessions, token: str, clock: Clock
) -> None:
    for _ in range(4):
        clock.advance(minutes=4)
        found = sessions.find(token, counts=False)

    assert found is None


def test_nobody_stays_for_longer_than_a_day_of_work(
    sessions: Sessions, token: str, clock: Clock
) -> None:
    for _ in range(48):
        clock.advance(minutes=10)
        assert sessions.find(token)
    clock.advance(minutes=10)

    assert sessions.find(token) is None


def test_session_ends_when_its_account_changes(
    sessions: Sessions, token: str, accounts: Accounts, clock: Clock
) -> None:
    accounts.put("M. Meier", Role.ADMIN, "correct horse staple", clock())

    assert sessions.find(token) is None


def test_session_ends_by_logging_out(sessions: Sessions, token: str) -> None:
    sessions.end(token)

    assert sessions.find(token) is None


def test_too_many_guesses_lock_for_a_while(clock: Clock) -> None:
    lockout = Lockout(clock, attempts=3, lock=timedelta(minutes=5))

    assert [lockout.note_failure("M. Meier") for _ in range(3)] == [False, False, True]
    assert lockout.is_locked("M. Meier")
    assert not lockout.is_locked("A. Berg")
    clock.advance(minutes=5)
    assert not lockout.is_locked("M. Meier")
    assert not lockout.note_failure("M. Meier")


def test_right_password_begins_anew(clock: Clock) -> None:
    lockout = Lockout(clock, attempts=2, lock=timedelta(minutes=5))
    lockout.note_failure("M. Meier")
    lockout.forget("M. Meier")

    assert not lockout.note_failure("M. Meier")
