"""What the acceptance ring shares: a small phantom, a quick model, a node at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from dicom_node.demonstration.pacs import Orthanc
from dicom_node.demonstration.studies import Parcel, prepare_phantom
from doubles.models import write_copying_model
from doubles.node import CONFIGURATION, NodeUnderTest

StartNode = Callable[..., NodeUnderTest]


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Parcel:
    """A coarse phantom head: T1w and FLAIR to send, T2w held back."""
    return prepare_phantom(tmp_path_factory.mktemp("phantom") / "study", spacing=(6.0, 3.0, 3.0))


@pytest.fixture(scope="session")
def copying_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that is quick and of no worth."""
    folder = tmp_path_factory.mktemp("models")
    write_copying_model(folder)
    return folder


@pytest.fixture
def make_node(tmp_path: Path, orthanc: Orthanc) -> Iterator[StartNode]:
    """Give a function that describes a node, which is stopped at the end."""
    with ExitStack() as stack:

        def make(
            overrides: Sequence[str] = (),
            name: str = "node",
            configuration: Path = CONFIGURATION,
        ) -> NodeUnderTest:
            node = NodeUnderTest(tmp_path / name, orthanc, overrides, configuration)
            stack.callback(node.stop)
            return node

        yield make
