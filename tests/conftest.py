"""What every ring may use: one PACS that nobody of ours wrote."""

from collections.abc import Iterator

import pytest

from dicom_node.demonstration.pacs import Orthanc
from doubles.tools import require_program


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
