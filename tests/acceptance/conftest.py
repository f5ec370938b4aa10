"""What the acceptance ring shares: a small phantom, a quick model, a node in one of two forms."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from dicom_node.demonstration.pacs import Orthanc
from dicom_node.demonstration.studies import Parcel, prepare_phantom
from doubles.dask import run_dask
from doubles.forms import EMBEDDED, MOST_NODES, Form
from doubles.models import write_copying_model
from doubles.node import CONFIGURATION, NodeUnderTest
from doubles.postgresql import PostgreSQL

StartNode = Callable[..., NodeUnderTest]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where one form is asked for, leave out what runs no node in it, and what would run twice."""
    asked = config.getoption("--form")
    if asked is None:
        return
    kept: dict[tuple[object, ...], pytest.Item] = {}
    for item in items:
        has_form = "form" in getattr(item, "fixturenames", ())
        if has_form and (asked == EMBEDDED or not item.get_closest_marker(EMBEDDED)):
            params = item.callspec.params if hasattr(item, "callspec") else {}
            others = {name: value for name, value in params.items() if name != "form"}
            kept.setdefault((item.path, item.name.partition("[")[0], repr(others)), item)
    wanted = set(kept.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = [item for item in items if item in wanted]


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


@pytest.fixture(scope="session")
def embedded() -> Form:
    """The form in which the node comes: SQLite, and workers of its own."""
    return Form()


@pytest.fixture(scope="session")
def clustered(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Form]:
    """The form for many machines: a ledger in PostgreSQL, jobs on a worker of Dask."""
    with pytest.MonkeyPatch.context() as patch:
        names = [f"DICOM_NODE_LEDGER_{number}" for number in range(MOST_NODES)]
        for name in names:
            patch.setenv(name, postgresql.make_url())
        with run_dask(tmp_path_factory.mktemp("dask")) as dask:
            yield Form(names, dask.describe())


@pytest.fixture(scope="session")
def form(request: pytest.FixtureRequest) -> Form:
    """The form of the nodes of a test: embedded, where `doubles.forms` says no other."""
    asked = request.config.getoption("--form")
    found = request.getfixturevalue(asked or getattr(request, "param", EMBEDDED))
    assert isinstance(found, Form)
    return found


@pytest.fixture
def make_node(tmp_path: Path, orthanc: Orthanc, form: Form) -> Iterator[StartNode]:
    """Give a function that describes a node, which is stopped at the end."""
    with ExitStack() as stack:

        def make(
            overrides: Sequence[str] = (),
            name: str = "node",
            configuration: Path = CONFIGURATION,
        ) -> NodeUnderTest:
            settings = (*form.take_ledger(), *overrides)
            node = NodeUnderTest(tmp_path / name, orthanc, settings, configuration)
            stack.callback(node.stop)
            return node

        yield make
