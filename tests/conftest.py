"""The order of the rings, and what each of them may use: one PACS that nobody of ours wrote."""

from collections.abc import Iterator

import pytest

from dicom_node.demonstration.pacs import Orthanc
from doubles.postgresql import PostgreSQL, run_postgresql
from doubles.tools import require_program

RINGS = ("integration", "acceptance")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the fast rings first: a broken unit should be known before a node is started."""

    def ring(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return max((number for number, name in enumerate(RINGS, 1) if name in marks), default=0)

    items.sort(key=ring)


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
