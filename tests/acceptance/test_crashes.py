"""The node dies as by a power cut at each step of the walk, once: the study ends the same.

So it does with its ledger in PostgreSQL and its jobs on workers of Dask, whichever of them dies.
"""

import io
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_node.demonstration.pacs import Orthanc
from dicom_node.demonstration.studies import Parcel
from dicom_node.domain import DeliveryState
from dicom_node.jobs import JobState
from doubles.dask import Dask, run_dask
from doubles.dcmtk import storescu
from doubles.forms import CLUSTERED, EMBEDDED
from doubles.node import AE_TITLE, NodeUnderTest
from doubles.orthanc import forget
from doubles.postgresql import PostgreSQL, run_postgresql

pytestmark = pytest.mark.acceptance

INSTALLATION = "5a7c51c3-4f0c-4e56-8a39-7d5f5b8c2d10"
"""One for all runs, so that all of them must come to the same UIDs."""
STEPS = (
    "receive.stored",
    "receive.recorded",
    "assembly.labelled",
    "routing.judged",
    "routing.planned",
    "assembly.recorded",
    "dispatch.claimed",
    "delivery.sent",
)
OWN_STEPS = ("work.read", "work.synthesized", "work.written", "work.recorded")
"""Steps of a worker, with which the node dies where it is its own."""
ELSEWHERE = ("dispatch.claimed", "delivery.sent")
"""Steps at which the node dies with its ledger and its workers elsewhere."""
KILLED = -9

Pixels = Mapping[str, bytes | None]
"""SOP Instance UID to pixel data; None for what has none."""


def send(node: NodeUnderTest, parcel: Parcel) -> bool:
    """Send the study as a scanner would; say whether every instance was taken."""
    return storescu(node.port, parcel.files[0].parents[1], called=AE_TITLE).returncode == 0


def read_pacs(orthanc: Orthanc, study: str) -> Pixels:
    """Return everything that the PACS holds of the study."""
    return {
        uid: dcmread(io.BytesIO(orthanc.read_instance(uid))).get("PixelData")
        for uid in orthanc.find_instances(study)
    }


@pytest.fixture(scope="module")
def sent(phantom: Parcel, tmp_path_factory: pytest.TempPathFactory) -> Parcel:
    """The phantom without the folder of what is held back."""
    folder = tmp_path_factory.mktemp("sent")
    files = []
    for path in phantom.files:
        copy = folder / path.parent.name / path.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
        files.append(copy)
    return Parcel(
        note=phantom.note,
        is_phantom=True,
        study_instance_uid=phantom.study_instance_uid,
        files=tuple(files),
        held_back={},
    )


@pytest.fixture(scope="module")
def undisturbed(
    sent: Parcel, orthanc: Orthanc, copying_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Pixels:
    """What the PACS holds at the end when nothing goes wrong."""
    forget(orthanc, sent.study_instance_uid)
    overrides = (f"installation={INSTALLATION}", f"models_folder={copying_models}")
    node = NodeUnderTest(tmp_path_factory.mktemp("undisturbed") / "node", orthanc, overrides)
    try:
        node.start()
        assert send(node, sent)
        node.wait_for(sent.study_instance_uid)
    finally:
        assert node.stop() == 0
    held = read_pacs(orthanc, sent.study_instance_uid)
    assert held
    return held


@pytest.mark.parametrize(
    ("form", "step"),
    [
        *((EMBEDDED, step) for step in STEPS),
        *(pytest.param(EMBEDDED, step, marks=pytest.mark.embedded) for step in OWN_STEPS),
        *((CLUSTERED, step) for step in ELSEWHERE),
    ],
    indirect=["form"],
)
def test_study_ends_the_same_after_a_kill(
    step, sent, orthanc, undisturbed, copying_models, make_node, tmp_path
):
    forget(orthanc, sent.study_instance_uid)
    node = make_node([f"installation={INSTALLATION}", f"models_folder={copying_models}"])
    once = tmp_path / "died"
    node.start({"DICOM_NODE_CRASH_AT": step, "DICOM_NODE_CRASH_ONCE": str(once)})

    was_taken = send(node, sent)
    assert node.wait_for_death() == KILLED
    node.start()
    if not was_taken:
        assert send(node, sent)
    node.wait_for(sent.study_instance_uid)

    assert once.exists(), f"the walk never came to {step}"
    assert read_pacs(orthanc, sent.study_instance_uid) == undisturbed
    with node.ledger() as ledger:
        assert [job.state for job in ledger.jobs(sent.study_instance_uid)] == [JobState.DONE]
        deliveries = ledger.deliveries(sent.study_instance_uid)
        assert {one.state for one in deliveries} == {DeliveryState.SENT}
        assert len(deliveries) == len(undisturbed)
        ledger.check()
    assert list((tmp_path / "node").rglob("*.part")) == []
    assert node.stop() == 0


def test_deletion_goes_on_after_a_kill(
    sent, orthanc, undisturbed, copying_models, make_node, tmp_path
):
    forget(orthanc, sent.study_instance_uid)
    node = make_node(
        [
            f"installation={INSTALLATION}",
            f"models_folder={copying_models}",
            "retention.received=1 s",
            "retention.derived=1 s",
            "retention.sweep_every=300 ms",
        ]
    )
    node.start(
        {
            "DICOM_NODE_CRASH_AT": "retention.deleted",
            "DICOM_NODE_CRASH_ONCE": str(tmp_path / "died"),
        }
    )

    assert send(node, sent)
    assert node.wait_for_death() == KILLED
    node.start()
    node.wait_for(sent.study_instance_uid)
    node.wait_until(lambda: list((tmp_path / "node" / "data").rglob("*.dcm")) == [])

    assert read_pacs(orthanc, sent.study_instance_uid) == undisturbed
    with node.ledger() as ledger:
        assert len(ledger.jobs(sent.study_instance_uid)) == 1
        assert len(ledger.derived(ledger.jobs(sent.study_instance_uid)[0].plan.plan_id)) == len(
            undisturbed
        )
    assert node.stop() == 0


DSN = "DICOM_NODE_LEDGER"


@pytest.fixture
def database(monkeypatch) -> Iterator[PostgreSQL]:
    """A server with an empty database, of which nodes and workers hear by their environment."""
    with run_postgresql() as server:
        monkeypatch.setenv(DSN, server.make_url())
        yield server


@pytest.fixture
def dask(tmp_path, database) -> Iterator[Dask]:
    folder = tmp_path / "dask"
    folder.mkdir()
    with run_dask(folder, workers=0) as dask:
        yield dask


@pytest.mark.parametrize("victim", ["worker", "database"])
def test_study_ends_the_same_when_another_machine_dies(
    victim, sent, orthanc, undisturbed, copying_models, make_node, database, dask, tmp_path
):
    forget(orthanc, sent.study_instance_uid)
    once = tmp_path / "died"
    crash = {"DICOM_NODE_CRASH_ONCE": str(once), "DICOM_NODE_CRASH_AT": "work.read"}
    dask.add_worker(environment=crash if victim == "worker" else {})
    node = make_node(
        [
            f"installation={INSTALLATION}",
            f"models_folder={copying_models}",
            f"ledger={{kind: postgresql, dsn_env: {DSN}}}",
            f"executor={dask.describe()}",
        ]
    )
    node.start()

    assert send(node, sent)
    for _ in range(3 if victim == "database" else 0):
        time.sleep(1.0)  # at another step each time
        database.restart()
    node.wait_for(sent.study_instance_uid)

    assert once.exists() == (victim == "worker")
    assert read_pacs(orthanc, sent.study_instance_uid) == undisturbed
    with node.ledger() as ledger:
        (job,) = ledger.jobs(sent.study_instance_uid)
        assert (job.state, job.losses) == (JobState.DONE, int(victim == "worker"))
        deliveries = ledger.deliveries(sent.study_instance_uid)
        assert {one.state for one in deliveries} == {DeliveryState.SENT}
    assert node.stop() == 0
    assert not list((tmp_path / "node").rglob("ledger.sqlite"))
