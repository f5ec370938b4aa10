"""The order of the rings, and what each of them may use: one PACS that nobody of ours wrote."""

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache

import pytest

from dicom_node.demonstration.pacs import Orthanc
from doubles.forms import CLUSTERED, EMBEDDED
from doubles.postgresql import PostgreSQL, run_postgresql
from doubles.tools import require_program
from durability.disk import find_obstacle

RINGS = ("integration", "acceptance")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let one form be asked for, see `doubles.forms`."""
    parser.addoption(
        "--form",
        choices=[EMBEDDED, CLUSTERED],
        help="run the acceptance tests whose nodes have a form, all of them in this one",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the fast rings first: a broken unit should be known before a node is started."""
    _leave_out_mounting(config, items)

    def ring(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return max((number for number, name in enumerate(RINGS, 1) if name in marks), default=0)

    items.sort(key=ring)


def _leave_out_mounting(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that mount file systems where nobody may."""
    mounting = [item for item in items if item.get_closest_marker("mounts")]
    if mounting and _find_obstacle() is not None:
        config.hook.pytest_deselected(items=mounting)
        items[:] = [item for item in items if item not in mounting]


def pytest_report_header() -> str:
    """Say whether the tests that mount file systems are run; processes of a run print nothing."""
    obstacle = _find_obstacle()
    return f"tests of a disk: {'run' if obstacle is None else f'left out, {obstacle}'}"


@cache
def _find_obstacle() -> str | None:
    return find_obstacle()


@pytest.fixture(autouse=True)
def log_of_the_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a test that runs a program of ours in this process does to its log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for name, holder in (
        ("raiseExceptions", logging),
        ("showwarning", warnings),
        ("excepthook", sys),
        ("unraisablehook", sys),
        ("excepthook", threading),
    ):
        monkeypatch.setattr(holder, name, getattr(holder, name))
    yield
    if root.level != level:
        root.setLevel(level)
    for handler in [each for each in root.handlers if each not in handlers]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A running Orthanc that takes from the AE titles DICOM_NODE and STORESCU on this machine.

    One for the whole run, as it takes seconds to stop: a test asks it about its own study only.
    """
    require_program("Orthanc", "orthanc orthanc-dicomweb")
    orthanc = Orthanc(tmp_path_factory.mktemp("orthanc"), {"DICOM_NODE": 11112, "STORESCU": 11113})
    orthanc.start()
    yield orthanc
    orthanc.stop()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running PostgreSQL; a test makes a database of its own."""
    with run_postgresql() as server:
        yield server
