"""A real ledger in a real database, on SQLite and on PostgreSQL, with a clock that a test moves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.ledger import Ledger
from doubles.ledger import Clock

DATABASES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.integration))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty ledger may be made."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    made: str = request.getfixturevalue("postgresql").make_url()
    return made


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    with Ledger(url, clock).open() as ledger:
        yield ledger
