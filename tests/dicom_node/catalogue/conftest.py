"""Doors for the tests of the catalogue: two for all of a file, emptied after each test."""

from collections.abc import Iterator

import pytest

from doubles.door_watch import HASTY
from doubles.receiver import Door, lend, open_door


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("shared")) as door:
        yield door


@pytest.fixture(scope="module")
def shared_hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("hasty"), no_context="500 ms", **HASTY) as door:
        yield door


@pytest.fixture
def door(shared: Door) -> Iterator[Door]:
    with lend(shared) as door:
        yield door


@pytest.fixture
def hasty(shared_hasty: Door) -> Iterator[Door]:
    with lend(shared_hasty) as door:
        yield door
