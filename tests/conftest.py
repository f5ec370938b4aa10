"""Fixtures for every ring: a PACS of our own, and where the real images are."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dicom_node.demonstration.pacs import Orthanc
from doubles.tools import require_program

StartOrthanc = Callable[..., Orthanc]


@pytest.fixture
def start_orthanc(tmp_path: Path) -> Iterator[StartOrthanc]:
    """Give a function that starts an Orthanc which knows the given AE titles at loopback ports."""
    with ExitStack() as stack:

        def start(ae_title: str = "ORTHANC", **peers: int) -> Orthanc:
            require_program("Orthanc", "orthanc orthanc-dicomweb")
            orthanc = Orthanc(tmp_path / f"orthanc-{ae_title}", peers, ae_title)
            stack.callback(orthanc.stop)
            orthanc.start()
            return orthanc

        yield start


@pytest.fixture
def orthanc(start_orthanc: StartOrthanc) -> Orthanc:
    """A running Orthanc that takes from the AE titles DICOM_NODE and STORESCU on this machine."""
    return start_orthanc(DICOM_NODE=11112, STORESCU=11113)
