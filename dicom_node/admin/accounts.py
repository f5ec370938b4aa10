"""Who may log in to the admin page, and what each role may do there.

One JSON file in the data folder, mode 0600, written by `dicom-node account`. A password is kept as
scrypt makes it (RFC 7914), never as it is typed. There is no account until somebody makes one.
"""

import base64
import hashlib
import hmac
import json
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from dicom_node.errors import ConfigurationError
from dicom_node.value_types import Strict

FILE = "accounts.json"
"""In the data folder."""

SHORTEST_PASSWORD = 12
"""Characters. NIST SP 800-63B asks for 8 and for no rules of composition; a hospital for more."""

_LONGEST_PASSWORD = 1_024
_COST, _BLOCK, _PARALLEL = 2**15, 8, 1  # 32 MiB and about 0.1 s a guess
_MEMORY = 64 * 1024**2
_SALT_BYTES = 16


class Role(StrEnum):
    """What somebody is to this node."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


class Right(StrEnum):
    """What a role may do."""

    LOOK = "look"  # at everything but names of patients, acts of persons and accounts
    DECIDE = "decide"  # release, reject, requeue, withdraw
    IDENTIFY = "identify"  # see whose study it is, where `admin.patient_names` allows it
    OVERSEE = "oversee"  # see who did what, and who may


RIGHTS: Mapping[Role, frozenset[Right]] = {
    Role.VIEWER: frozenset({Right.LOOK}),
    Role.OPERATOR: frozenset({Right.LOOK, Right.DECIDE, Right.IDENTIFY}),
    Role.ADMIN: frozenset(Right),
}


class Account(Strict):
    """One person.

    Attributes:
        role: what the person may do.
        password: salt and scrypt hash, base64.
        changed_at: when it was made, or its password or role was last set.
    """

    role: Role
    password: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+$")]
    changed_at: datetime


class _File(Strict):
    accounts: Mapping[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w .@-]{0,63}$")], Account]


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who has logged in, as the accounts are now."""

    name: str
    role: Role

    def may(self, right: Right) -> bool:
        """Say whether the role has a right."""
        return right in RIGHTS[self.role]


class Accounts:
    """The accounts of a data folder, as its file says now; safe to share between threads."""

    def __init__(self, data_folder: Path) -> None:
        self._path = data_folder / FILE
        self._one_at_a_time = threading.Lock()
        # Who does not exist is checked as long as who does.
        self._nobody = _hash(secrets.token_hex())

    def read(self) -> dict[str, Account]:
        """Return the accounts by name; none where there is no file.

        Raises:
            ConfigurationError: the file cannot be read, or is not what this class writes.
        """
        try:
            found = _File.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError):
            raise ConfigurationError(
                f"{FILE} : seen a file that cannot be read, wanted what `dicom-node account` writes"
            ) from None
        return dict(found.accounts)

    def check(self, name: str, password: str) -> Account | None:
        """Return the account of a name, if the password is its own; takes 0.1 s in any case."""
        account = self.read().get(name)
        with self._one_at_a_time:  # guesses of many at once would take all memory
            fits = _fits(password, self._nobody if account is None else account.password)
        return account if fits else None

    def put(self, name: str, role: Role, password: str, now: datetime) -> None:
        """Make an account, or give one another password and role.

        Raises:
            ConfigurationError: name or password will not do, or the file cannot be written.
        """
        if not SHORTEST_PASSWORD <= len(password) <= _LONGEST_PASSWORD:
            raise ConfigurationError(
                f"password : seen {len(password)} characters, wanted {SHORTEST_PASSWORD} or more"
            )
        account = Account(role=role, password=_hash(password), changed_at=now)
        self._write({**self.read(), name: account})

    def remove(self, name: str) -> None:
        """Take an account away; who is logged in with it is logged out.

        Raises:
            LookupError: there is none.
            ConfigurationError: the file cannot be written.
        """
        accounts = self.read()
        if accounts.pop(name, None) is None:
            raise LookupError(f"there is no account {name!r}")
        self._write(accounts)

    def _write(self, accounts: Mapping[str, Account]) -> None:
        try:
            file = _File(accounts=accounts)
        except ValidationError:
            raise ConfigurationError(
                "NAME : seen other characters, wanted up to 64 letters, digits, spaces and . @ - _"
            ) from None
        part = self._path.with_suffix(".part")
        text = json.dumps(file.model_dump(mode="json"), indent=1)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as out:
                out.write(text + "\n")
                out.flush()
                os.fsync(out.fileno())
            part.replace(self._path)
        except OSError as error:
            raise ConfigurationError(
                f"{FILE} : seen a folder that takes no file ({error.strerror}), wanted to keep it "
                f"in {self._path.parent}"
            ) from None


def _hash(password: str, salt: bytes | None = None) -> str:
    salt = salt or secrets.token_bytes(_SALT_BYTES)
    made = hashlib.scrypt(
        password.encode(), salt=salt, n=_COST, r=_BLOCK, p=_PARALLEL, maxmem=_MEMORY
    )
    return f"{base64.b64encode(salt).decode()}${base64.b64encode(made).decode()}"


def _fits(password: str, kept: str) -> bool:
    salt = base64.b64decode(kept.partition("$")[0])
    return len(password) <= _LONGEST_PASSWORD and hmac.compare_digest(_hash(password, salt), kept)
