"""A PACS that is a DICOMweb archive: asked by QIDO-RS, fetched from by WADO-RS."""

import json
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_node.demonstration.pacs import PLUGIN, Orthanc
from dicom_node.demonstration.studies import prepare_phantom
from dicom_node.domain import StudyState
from dicom_node.elements import encode
from dicom_node.jobs import JobState
from doubles.dcmtk import storescu
from doubles.node import AE_TITLE, NodeUnderTest
from doubles.series import make_series, write_files
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
def node(
    orthanc: Orthanc, copying_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeUnderTest]:
    """A node whose PACS does not know it, and speaks HTTP only."""
    if not PLUGIN.exists():
        give_up("Orthanc's DICOMweb is missing: apt-get install orthanc-dicomweb")
    pacs = {"dicomweb": {"url": f"{orthanc.http}/dicom-web"}, "roles": ["send", "query"]}
    overrides = [
        f"peers.pacs={json.dumps(pacs)}",
        f"models_folder={copying_models}",
        "query.first_retry=1 s",
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


def test_what_is_made_is_made_of_sources_that_the_archive_gave(node, orthanc, tmp_path):
    phantom = prepare_phantom(tmp_path / "phantom", seed=11, spacing=(6.0, 3.0, 3.0))
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
