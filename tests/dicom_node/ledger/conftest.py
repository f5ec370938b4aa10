"""A real ledger on a real file, with a clock that a test moves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.ledger import Ledger
from doubles.ledger import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock).open() as ledger:
        yield ledger
