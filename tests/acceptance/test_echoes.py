"""What nodes make comes back to them, from a PACS or from each other, and nothing is made of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicom_node.demonstration.studies import Parcel
from dicom_node.domain import DeliveryState, StudyState
from dicom_node.jobs import JobState
from dicom_node.ledger import Ledger
from doubles.dcmtk import storescu
from doubles.forms import Form
from doubles.node import AE_TITLE, NodeUnderTest

pytestmark = pytest.mark.acceptance

PACS = "ORTHANC"
"""The AE title under which the PACS of the shipped configuration calls."""

ECHOES = 10_000
"""How many instances the PACS sends back, over and over the same, as they are."""

IDENTITIES = 5
"""As how many other patients it sends each result."""

REST_SECONDS = 2.0
"""Several sweeps of everything: what would go on by itself has gone on."""

MakeNode = Callable[..., NodeUnderTest]


@pytest.fixture
def make(tmp_path: Path, copying_models: Path, form: Form) -> Iterator[MakeNode]:
    """Give a function that describes a node that asks nobody, and is stopped at the end."""
    with ExitStack() as stack:

        def make(name: str, *overrides: str) -> NodeUnderTest:
            settings = (f"models_folder={copying_models}", "query.enabled=false")
            overrides = (*settings, *form.take_ledger(), *overrides)
            node = NodeUnderTest(tmp_path / name, None, overrides)
            stack.callback(node.stop)
            return node

        yield make


@pytest.fixture
def study(phantom: Parcel, tmp_path: Path) -> Path:
    """A folder with the phantom, without what is held back."""
    folder = tmp_path / "sent"
    for path in phantom.files:
        copy = folder / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return folder


def is_made(ledger: Ledger) -> bool:
    jobs = ledger.jobs()
    return bool(jobs) and all(job.state is JobState.DONE for job in jobs)


def is_at_rest(ledger: Ledger) -> bool:
    return is_made(ledger) and not ledger.find_receiving_studies()


def reidentify(results: list[Path], folder: Path, *, study: str | None, name: str) -> Path:
    """Write results under new UIDs, as those of somebody else, in `study` or a new one."""
    folder.mkdir(parents=True)
    study = study or generate_uid()
    series: dict[str, str] = {}
    for number, path in enumerate(results):
        image = dcmread(path)
        image.StudyInstanceUID = study
        image.SeriesInstanceUID = series.setdefault(image.SeriesInstanceUID, generate_uid())
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.PatientID = image.PatientName = name
        image.save_as(folder / f"{number}.dcm")
    return folder


def test_pacs_that_sends_everything_back_makes_no_job(make, study, phantom, tmp_path):
    node = make("node")
    node.start()
    assert storescu(node.port, study, called=AE_TITLE).returncode == 0
    with node.ledger() as ledger:
        node.wait_until(lambda: is_at_rest(ledger))
        [before] = ledger.jobs()
        made = [
            tmp_path / "node" / "data" / "store" / each.path
            for each in ledger.derived(before.plan.plan_id)
        ]
        times = str(-(-ECHOES // len(made)))
        back = storescu(
            node.port, *made, called=AE_TITLE, calling=PACS, options=["--repeat", times]
        )
        assert back.returncode == 0, back.stderr
        patient = dcmread(made[0]).PatientID
        others = [
            reidentify(made, tmp_path / "others" / str(k), study=None, name=f"OTHER-{k}")
            for k in range(IDENTITIES)
        ]
        others.append(
            reidentify(made, tmp_path / "same", study=phantom.study_instance_uid, name=patient)
        )
        for folder in others:
            back = storescu(node.port, folder, called=AE_TITLE, calling=PACS)
            assert back.returncode == 0, back.stderr
        node.wait_until(lambda: len(ledger.studies()) == 1 + IDENTITIES and is_at_rest(ledger))

        [after] = ledger.jobs()

    assert (after.plan.plan_id, after.attempt) == (before.plan.plan_id, before.attempt)


def test_two_nodes_that_feed_each_other_come_to_rest_after_one_job_each(make, study):
    first = make("first", "ae_title=FIRST", "peers.pacs.ae_title=SECOND")
    second = make("second", "ae_title=SECOND", "peers.pacs.ae_title=FIRST")
    first.overrides += (f"peers.pacs.port={second.port}",)
    second.overrides += (f"peers.pacs.port={first.port}",)
    for node in (first, second):
        node.start()
    for node, title in ((first, "FIRST"), (second, "SECOND")):
        assert storescu(node.port, study, called=title).returncode == 0

    with first.ledger() as one, second.ledger() as other:
        ledgers = (one, other)

        def is_all_exchanged() -> bool:
            return all(
                is_at_rest(ledger)
                and all(each.state is DeliveryState.SENT for each in ledger.deliveries())
                for ledger in ledgers
            )

        first.wait_until(is_all_exchanged)
        time.sleep(REST_SECONDS)
        first.wait_until(is_all_exchanged)

        for mine, theirs in (ledgers, ledgers[::-1]):
            [job] = mine.jobs()
            assert job.attempt == 1
            made = {each.sop_instance_uid for each in mine.derived(job.plan.plan_id)}
            assert made == {each.instance.sop_instance_uid for each in mine.deliveries()}
            [row] = theirs.studies()
            assert row.state is StudyState.JUDGED
            received = theirs.read_instances(row.study_instance_uid)
            assert made <= {each.sop_instance_uid for each in received}
