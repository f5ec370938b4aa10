from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicom_node.admin.accounts import FILE, RIGHTS, Accounts, Person, Right, Role
from dicom_node.errors import ConfigurationError

NOW = datetime(2026, 1, 2, tzinfo=UTC)
STAPLE = "correct horse staple"


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    accounts = Accounts(tmp_path)
    accounts.put("M. Meier", Role.OPERATOR, STAPLE, NOW)
    return accounts


def test_right_password_opens_and_another_does_not(accounts: Accounts) -> None:
    found = accounts.check("M. Meier", STAPLE)

    assert found is not None
    assert found.role is Role.OPERATOR
    assert accounts.check("M. Meier", f"{STAPLE} ") is None
    assert accounts.check("M. Meier", "x" * 10_000) is None
    assert accounts.check("nobody", STAPLE) is None


def test_file_holds_no_password_and_is_for_its_owner_only(
    accounts: Accounts, tmp_path: Path
) -> None:
    path = tmp_path / FILE

    assert STAPLE not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_same_password_looks_different_in_two_accounts(accounts: Accounts) -> None:
    accounts.put("A. Berg", Role.OPERATOR, STAPLE, NOW)

    first, second = accounts.read().values()
    assert first.password != second.password


def test_account_that_was_taken_away_opens_nothing(accounts: Accounts) -> None:
    accounts.remove("M. Meier")

    assert accounts.check("M. Meier", STAPLE) is None
    with pytest.raises(LookupError):
        accounts.remove("M. Meier")


@pytest.mark.parametrize(
    ("name", "password"), [("M. Meier", "short"), ("<script>", STAPLE), ("", STAPLE)]
)
def test_names_and_passwords_that_will_not_do_are_refused(
    name: str, password: str, accounts: Accounts
) -> None:
    before = accounts.read()

    with pytest.raises(ConfigurationError):
        accounts.put(name, Role.VIEWER, password, NOW)

    assert accounts.read() == before


def test_damaged_file_lets_nobody_in(accounts: Accounts, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"accounts": {"M. Meier": {"role": "root"}}}')

    with pytest.raises(ConfigurationError, match=FILE):
        accounts.check("M. Meier", STAPLE)


def test_each_role_may_more_than_the_one_below_it() -> None:
    assert RIGHTS[Role.VIEWER] < RIGHTS[Role.OPERATOR] < RIGHTS[Role.ADMIN]
    assert not Person(name="V", role=Role.VIEWER).may(Right.DECIDE)
    assert not Person(name="V", role=Role.VIEWER).may(Right.IDENTIFY)
