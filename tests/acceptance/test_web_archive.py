"""A PACS that is a DICOMweb archive: asked, fetched from, and completed for a worklist."""

import json
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_node.demonstration.pacs import PLUGIN, Orthanc
from dicom_node.demonstration.studies import prepare_phantom
from dicom_node.domain import StepState, StudyState
from dicom_node.elements import encode
from dicom_node.jobs import JobState
from doubles.dcmtk import storescu
from doubles.forms import Form
from doubles.node import AE_TITLE, NodeUnderTest
from doubles.series import make_series, write_files
from doubles.task_manager import WORKITEM, TaskManager
from doubles.tools import give_up

pytestmark = pytest.mark.acceptance

RULE = "brain-mr-complete"
INVERSION = {
    "ScanningSequence": ["SE", "IR"],
    "RepetitionTime": 9000,
    "EchoTime": 120,
    "InversionTime": 2500,
    "SeriesDescription": "FLAIR test",
}


@pytest.fixture(scope="module")
def manager() -> Iterator[TaskManager]:
    with TaskManager() as manager:
        yield manager


@pytest.fixture(scope="module")
def node(
    orthanc: Orthanc,
    manager: TaskManager,
    copying_models: Path,
    form: Form,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[NodeUnderTest]:
    """A node whose PACS does not know it, and speaks HTTP only; and a worklist."""
    if not PLUGIN.exists():
        give_up("Orthanc's DICOMweb is missing: apt-get install orthanc-dicomweb")
    pacs = {"dicomweb": {"url": f"{orthanc.http}/dicom-web"}, "roles": ["send", "query"]}
    called = {"ae_title": "MANAGER", "host": "127.0.0.1", "port": manager.port}
    workitem = dict(zip(("value", "scheme", "meaning"), WORKITEM, strict=True))
    overrides = [
        f"peers.pacs={json.dumps(pacs)}",
        f"peers.manager={json.dumps({**called, 'roles': ['worklist']})}",
        f"steps.workitems={json.dumps([workitem])}",
        "steps.sweep_every=300 ms",
        f"models_folder={copying_models}",
        "query.first_retry=1 s",
        *form.take_ledger(),
    ]
    node = NodeUnderTest(tmp_path_factory.mktemp("web") / "node", orthanc, overrides)
    node.start()
    yield node
    assert node.stop() == 0


def store(orthanc: Orthanc, files: Iterable[bytes]) -> None:
    """Put files into the archive as if a scanner had sent them there only."""
    for file in files:
        request = urllib.request.Request(f"{orthanc.http}/instances", data=file)
        urllib.request.urlopen(request, timeout=30).close()


def make_flair(**study: object) -> list[Dataset]:
    images = make_series("T2w", number=3, **study)
    for image in images:
        for keyword, value in INVERSION.items():
            setattr(image, keyword, value)
    return images


def test_series_that_the_archive_has_and_the_node_never_got_is_not_made(node, orthanc, tmp_path):
    facts = {"key": "asked over HTTP", "patient_id": "WEB-ASKED-1"}
    here = [*make_series("T1w", number=1, **facts), *make_series("T2w", number=2, **facts)]
    flair = make_flair(key="another study of the day", patient_id="WEB-ASKED-1")
    store(orthanc, map(encode, flair))
    study = str(here[0].StudyInstanceUID)

    write_files(here, tmp_path / "study")
    assert storescu(node.port, tmp_path / "study", called=AE_TITLE).returncode == 0

    def is_judged() -> bool:
        with node.ledger() as ledger:
            return ledger.study_row(study).state is not StudyState.RECEIVING

    node.wait_until(is_judged)
    with node.ledger() as ledger:
        [inquiry] = ledger.inquiries(study)
        assert str(flair[0].SeriesInstanceUID) in {
            each.series_instance_uid for each in inquiry.found
        }
        judgement = ledger.read_judgement(study)
        assert judgement.slots[RULE]["FLAIR"] == "ambiguous"
        assert str(flair[0].SeriesInstanceUID) in judgement.refusals[0].reason
        assert ledger.jobs(study) == []
    assert "WEB-ASKED-1" not in node.read_log()


def test_step_of_a_worklist_is_done_though_the_node_dies_after_claiming_it(
    node, manager, orthanc, tmp_path
):
    phantom = prepare_phantom(tmp_path / "phantom", seed=12, spacing=(8.0, 4.0, 4.0))
    store(orthanc, (path.read_bytes() for path in phantom.files))
    study = phantom.study_instance_uid

    step = manager.schedule(study, patient_id="PHANTOM12")
    node.wait_until(lambda: manager.state(step) == "IN PROGRESS")
    node.kill()
    node.start()
    node.wait_until(lambda: manager.state(step) in {"COMPLETED", "CANCELED"})

    assert manager.state(step) == "COMPLETED"
    outputs = manager.outputs(step)
    with node.ledger() as ledger:
        [job] = ledger.jobs(study)
        made = {each.sop_instance_uid for each in ledger.derived(job.plan.plan_id)}
        assert [each.state for each in ledger.steps(study)] == [StepState.COMPLETED]
    assert set().union(*outputs.values()) == made
    assert made <= set(orthanc.find_instances(study))
    [performed] = manager.steps[step].UnifiedProcedureStepPerformedProcedureSequence
    for item in performed.OutputInformationSequence:
        [retrieval] = item.WADORSRetrievalSequence
        with urllib.request.urlopen(retrieval.RetrieveURL, timeout=30) as answer:
            assert answer.status == 200
    assert "PHANTOM12" not in node.read_log()


def test_what_is_made_is_made_of_sources_that_the_archive_gave(node, orthanc, tmp_path):
    phantom = prepare_phantom(tmp_path / "phantom", seed=11, spacing=(8.0, 4.0, 4.0))
    store(orthanc, (path.read_bytes() for path in phantom.files))
    study = phantom.study_instance_uid

    assert storescu(node.port, *phantom.files[:2], called=AE_TITLE).returncode == 0

    node.wait_for(study)
    with node.ledger() as ledger:
        [job] = ledger.jobs(study)
        made = {each.sop_instance_uid for each in ledger.derived(job.plan.plan_id)}
        assert len(ledger.read_instances(study)) == len(phantom.files)
    assert (job.plan.target, job.state) == ("T2w", JobState.DONE)
    assert made <= set(orthanc.find_instances(study))
