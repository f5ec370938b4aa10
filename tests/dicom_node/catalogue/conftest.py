"""Doors for the tests of the catalogue: two for all of a file, emptied before each test."""

from collections.abc import Iterator

import pytest

from doubles.door_watch import HASTY, wait_until
from doubles.receiver import Door, open_door


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("shared")) as door:
        yield door


@pytest.fixture(scope="module")
def shared_hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("hasty"), no_context="500 ms", **HASTY) as door:
        yield door


def refresh(door: Door, caplog: pytest.LogCaptureFixture) -> Door:
    """Let the door be empty, and tell everything as if for the first time."""
    wait_until(lambda: door.connections() == 0)
    door.complaints._said.clear()
    caplog.clear()
    return door


@pytest.fixture
def door(shared: Door, caplog: pytest.LogCaptureFixture) -> Door:
    return refresh(shared, caplog)


@pytest.fixture
def hasty(shared_hasty: Door, caplog: pytest.LogCaptureFixture) -> Door:
    return refresh(shared_hasty, caplog)
