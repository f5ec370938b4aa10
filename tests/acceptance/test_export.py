"""What the PACS holds complete becomes volumes that tell nobody and can be learnt from."""

import getpass
import gzip
import json
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from highdicom import Volume
from pydicom import Dataset

from dicom_node.cli import main
from dicom_node.demonstration.pacs import Orthanc
from dicom_node.elements import encode
from doubles.forms import Form
from doubles.node import CONFIGURATION, NodeUnderTest
from doubles.series import HEAD_MM, make_head, make_series
from synthesis.people import read_manifest
from synthesis.preparation import prepare
from synthesis.types import Anchor

pytestmark = pytest.mark.acceptance

AE_TITLE = "EXPORTING"
INVERSION = {
    "ScanningSequence": ["SE", "IR"],
    "RepetitionTime": 9000,
    "EchoTime": 120,
    "InversionTime": 2500,
    "SeriesDescription": "FLAIR test",
}
FLUID = {"T1w": 0.2, "T2w": 3.0, "FLAIR": 0.2}
PLANTED = ("CANARYNAME", "CANARYID", "CANARYDESK", "19990101")


def make_contrast(label: str, number: int, **study: object) -> list[Dataset]:
    affine = np.eye(4)
    affine[:3, :3] = np.diag([HEAD_MM] * 3)[:, ::-1]
    head = Volume(np.rint(make_head(FLUID[label])), affine, coordinate_system="PATIENT")
    images = make_series("T2w" if label == "FLAIR" else label, head, number=number, **study)
    for image in images:
        image.BodyPartExamined = "BRAIN"
        image.ReferringPhysicianName = "CANARYDESK"
        image.StudyDate = image.SeriesDate = "19990101"
        for keyword, value in INVERSION.items() if label == "FLAIR" else ():
            setattr(image, keyword, value)
    return images


def make_study(key: str, labels: Sequence[str], **changes: str) -> list[Dataset]:
    facts = {"key": key, "patient_id": f"CANARYID{key}", "patient_name": "CANARYNAME"}
    series = [
        make_contrast(label, number, **(facts | changes)) for number, label in enumerate(labels, 1)
    ]
    return [image for images in series for image in images]


@pytest.fixture(scope="module")
def node(
    orthanc: Orthanc, copying_models: Path, form: Form, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeUnderTest]:
    """A node that receives what the PACS is asked to move."""
    folder = tmp_path_factory.mktemp("exporting") / "node"
    settings = [f"ae_title={AE_TITLE}", f"models_folder={copying_models}", *form.take_ledger()]
    node = NodeUnderTest(folder, orthanc, settings)
    modality = json.dumps({"AET": AE_TITLE, "Host": "127.0.0.1", "Port": node.port})
    request = urllib.request.Request(
        f"{orthanc.http}/modalities/exporting", data=modality.encode(), method="PUT"
    )
    urllib.request.urlopen(request, timeout=30).close()
    node.start()
    yield node
    assert node.stop() == 0


@pytest.fixture(scope="module")
def exported(
    node: NodeUnderTest, orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, object]]:
    """The folder that was written, and what the command told."""
    complete = ("T1w", "T2w", "FLAIR")
    burned = make_study("burned", complete)
    for image in burned:
        image.BurnedInAnnotation = "YES"
    studies = [
        make_study("one", complete),
        make_study("two", complete),
        make_study("again", complete, patient_id="CANARYIDone"),
        make_study("lacking", ("T1w", "T2w")),
        burned,
    ]
    for image in (image for study in studies for image in study):
        request = urllib.request.Request(f"{orthanc.http}/instances", data=encode(image))
        urllib.request.urlopen(request, timeout=30).close()
    out = tmp_path_factory.mktemp("out") / "brains"
    sets = [word for each in node.overrides for word in ("--set", each)]
    words = ["--query", "PatientID=CANARYID*", "--out", str(out), "--json"]
    told = tmp_path_factory.mktemp("told") / "json"
    with pytest.MonkeyPatch.context() as patch, told.open("w") as stream:
        patch.setattr("sys.stdout", stream)
        patch.setattr("dicom_node.cli.configure_logging", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            main(["export", *words, "--config", str(CONFIGURATION), *sets])
    assert not ended.value.code
    return out, json.loads(told.read_text())


def test_one_complete_study_of_each_person_is_exported(exported) -> None:
    out, told = exported

    assert told["exported"] == 2
    assert told["left_out"] == {
        "of a person who is there already": 1,
        "incomplete": 1,
        "with burned-in text": 1,
    }
    people = read_manifest(out / "people.yaml").people
    assert len(people) == 2
    assert all(set(person.images) == {"T1w", "T2w", "FLAIR"} for person in people)


def test_who_exported_is_kept_with_each_study(exported, node) -> None:
    with node.ledger() as ledger:
        acts = [each for each in ledger.find_acts(99) if each.name == "study.exported"]

    assert len({each.study_instance_uid for each in acts}) == exported[1]["exported"]
    assert {each.detail["by"] for each in acts} == {getpass.getuser()}


def test_voxels_and_their_places_are_those_of_the_scanner(exported) -> None:
    out, _ = exported
    person = read_manifest(out / "people.yaml").people[0]

    image = sitk.DICOMOrient(sitk.ReadImage(out / person.images["FLAIR"]), "LPS")

    np.testing.assert_allclose(sitk.GetArrayFromImage(image), np.rint(make_head(FLUID["FLAIR"])))
    np.testing.assert_allclose(image.GetSpacing(), [HEAD_MM] * 3)


def test_nothing_tells_who_it_was(exported) -> None:
    out, _ = exported
    files = [path for path in out.glob("**/*") if path.is_file()]

    assert len(files) == 7
    for path in files:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        for word in (*PLANTED, "1.2.826", "2.25."):
            assert word.encode() not in content
            assert word not in str(path.relative_to(out))


def test_exported_person_can_be_prepared_for_training(exported) -> None:
    out, _ = exported
    person = read_manifest(out / "people.yaml").people[0]

    case = prepare(person, out, spacing_mm=HEAD_MM, anchor=Anchor())

    assert set(case.images) == {"T1w", "T2w", "FLAIR"}
    assert 0.1 < case.mask.mean() < 0.9
