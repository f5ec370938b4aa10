"""The PACS is asked first: what it has is fetched or respected, and nothing is made instead."""

import json
import urllib.request
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from dicom_node.demonstration.pacs import Orthanc
from dicom_node.domain import StudyState
from dicom_node.elements import encode
from dicom_node.jobs import JobState
from doubles.dcmtk import storescu
from doubles.forms import IN_BOTH_FORMS, IN_ONE_FORM, Form
from doubles.node import NodeUnderTest
from doubles.orthanc import forget
from doubles.series import make_series, write_files

pytestmark = pytest.mark.acceptance

AE_TITLE = "ASKING_NODE"
RULE = "brain-mr-complete"
INVERSION = {
    "ScanningSequence": ["SE", "IR"],
    "RepetitionTime": 9000,
    "EchoTime": 120,
    "InversionTime": 2500,
    "SeriesDescription": "FLAIR test",
}


def make_flair(number: int, **study: object) -> list[Dataset]:
    images = make_series("T2w", number=number, **study)
    for image in images:
        for keyword, value in INVERSION.items():
            setattr(image, keyword, value)
    return images


def store(orthanc: Orthanc, images: Sequence[Dataset]) -> None:
    """Put images into the PACS as if a scanner had sent them there only."""
    for image in images:
        request = urllib.request.Request(f"{orthanc.http}/instances", data=encode(image))
        urllib.request.urlopen(request, timeout=30).close()


@pytest.fixture(scope="module")
def node(
    orthanc: Orthanc, copying_models: Path, form: Form, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeUnderTest]:
    """A node to which the PACS moves what it is asked for."""
    folder = tmp_path_factory.mktemp("asking") / "node"
    overrides = [f"ae_title={AE_TITLE}", f"models_folder={copying_models}", *form.take_ledger()]
    node = NodeUnderTest(folder, orthanc, [*overrides, "query.first_retry=1 s"])
    modality = json.dumps({"AET": AE_TITLE, "Host": "127.0.0.1", "Port": node.port})
    request = urllib.request.Request(
        f"{orthanc.http}/modalities/asking", data=modality.encode(), method="PUT"
    )
    urllib.request.urlopen(request, timeout=30).close()
    node.start()
    yield node
    assert node.stop() == 0


def send_and_wait(node: NodeUnderTest, images: Sequence[Dataset], folder: Path) -> str:
    write_files(images, folder)
    assert storescu(node.port, folder, called=AE_TITLE).returncode == 0
    study = str(images[0].StudyInstanceUID)

    def is_judged() -> bool:
        with node.ledger() as ledger:
            return ledger.study_row(study).state is not StudyState.RECEIVING

    node.wait_until(is_judged)
    return study


@IN_ONE_FORM
def test_what_the_pacs_has_and_did_not_send_is_fetched(node, orthanc, tmp_path):
    facts = {"key": "not routed", "patient_id": "ASKED-1"}
    t1w, t2w = (make_series(label, number=k, **facts) for k, label in ((1, "T1w"), (2, "T2w")))
    flair = make_flair(3, **facts)
    store(orthanc, [*t1w, *t2w, *flair])

    study = send_and_wait(node, [*t1w, *t2w[:-2]], tmp_path / "study")

    with node.ledger() as ledger:
        assert len(ledger.read_instances(study)) == len(t1w) + len(t2w) + len(flair)
        slots = ledger.read_judgement(study).slots[RULE]
        assert [slots[label] for label in ("T1w", "T2w", "FLAIR")] == ["present"] * 3
        assert ledger.jobs(study) == []
    assert "ASKED-1" not in node.read_log()


@IN_ONE_FORM
def test_contrast_in_another_study_of_the_day_is_not_made(node, orthanc, tmp_path):
    patient = {"patient_id": "ASKED-2"}
    store(orthanc, make_flair(3, key="split off", **patient))
    images = [
        image
        for number, label in enumerate(("T1w", "T2w"), 1)
        for image in make_series(label, number=number, key="main part", **patient)
    ]

    study = send_and_wait(node, images, tmp_path / "study")

    with node.ledger() as ledger:
        assert ledger.read_judgement(study).slots[RULE]["FLAIR"] == "ambiguous"
        assert ledger.jobs(study) == []
    assert "ASKED-2" not in node.read_log()


@IN_BOTH_FORMS
def test_real_series_that_comes_late_withdraws_the_synthetic_one(node, orthanc, phantom, tmp_path):
    study = phantom.study_instance_uid
    forget(orthanc, study)
    assert storescu(node.port, *phantom.files, called=AE_TITLE).returncode == 0
    node.wait_for(study)
    with node.ledger() as ledger:
        [job] = ledger.jobs(study)
        made = {each.sop_instance_uid for each in ledger.derived(job.plan.plan_id)}
    assert job.state is JobState.DONE
    assert made <= set(orthanc.find_instances(study))

    late = phantom.held_back[job.plan.target]
    assert storescu(node.port, *late, called=AE_TITLE).returncode == 0

    def find_withdrawals() -> list[Dataset]:
        files = (orthanc.read_instance(uid) for uid in orthanc.find_instances(study))
        found = (dcmread(BytesIO(each)) for each in files)
        return [each for each in found if each.Modality == "KO"]

    node.wait_until(lambda: len(find_withdrawals()) == 1)
    [document] = find_withdrawals()
    assert document.ConceptNameCodeSequence[0].CodeValue == "113001"
    [evidence] = document.CurrentRequestedProcedureEvidenceSequence
    named = {
        item.ReferencedSOPInstanceUID
        for series in evidence.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert named == made
    with node.ledger() as ledger:
        [job] = ledger.jobs(study)
        assert (job.state, job.reason) == (
            JobState.SUPERSEDED,
            f"withdrawn by rule: the real {job.plan.target} came",
        )


@IN_ONE_FORM
def test_what_the_pacs_has_not_either_is_made(node, tmp_path):
    facts = {"key": "really missing", "patient_id": "ASKED-3"}
    images = [
        image
        for number, label in enumerate(("T1w", "T2w"), 1)
        for image in make_series(label, number=number, **facts)
    ]

    study = send_and_wait(node, images, tmp_path / "study")

    with node.ledger() as ledger:
        assert [job.plan.target for job in ledger.jobs(study)] == ["FLAIR"]
        assert [each.state for each in ledger.inquiries(study)] == ["answered"]
