"""Real studies go in by `storescu` and come back to Orthanc completed, with the shipped models."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

import nifti_to_dicom
from dicom_node import conformance, settings
from dicom_node.demonstration.validators import find_errors
from dicom_node.jobs import JobState
from dicom_node.volumes import read_volume
from doubles.dcmtk import storescu
from doubles.forms import CLUSTERED, EMBEDDED
from doubles.node import AE_TITLE, CONFIGURATION
from doubles.orthanc import forget
from doubles.tools import require_data, require_program
from synthesis.registry import load_cards

pytestmark = pytest.mark.acceptance

PEOPLE = {"adi", "openms_long-04", "sts-015"}
"""Everybody whom this ring looks at, as the cards of the models name them."""


@dataclass(frozen=True)
class RealStudy:
    """A study without one contrast, and what the node must do about it."""

    folder: Path
    targets: dict[str, str]
    """What is to be made, and the modality of it."""

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


def prepare_adi(folder: Path) -> RealStudy:
    """Whole head of a volunteer, T2w held back: T1w and two derived perfusion maps are there."""
    with tarfile.open(require_data("dicom_brain_adi", "adi.tar.xz")) as tar:
        tar.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        if path.is_file() and dcmread(path).SeriesDescription == "AX FSE T2":
            path.unlink()
    return RealStudy(folder, {"T2w": "MR", "FLAIR": "MR"})


def prepare_openms(folder: Path) -> RealStudy:
    """Multiple sclerosis, raw and thick, another site: T1w and T2w, FLAIR held back."""
    data = require_data("brain_mr_openms_long_p04")
    images = [f"{label}={data / f'study1_{label.upper()}.nii.gz'}" for label in ("T1w", "T2w")]
    options = [word for image in images for word in ("--series", image)]
    nifti_to_dicom.main([str(folder), "--patient", "P04", *options])
    return RealStudy(folder, {"FLAIR": "MR"})


def prepare_sts(folder: Path) -> RealStudy:
    """A limb with a sarcoma: T1w, its CT held back."""
    return RealStudy(require_data("sts_ctmrpet_dicom", "STS_015", "MR_T1", "image"), {"CT": "CT"})


@pytest.mark.parametrize(
    ("form", "prepare"),
    [
        (EMBEDDED, prepare_adi),
        (EMBEDDED, prepare_openms),
        (EMBEDDED, prepare_sts),
        (CLUSTERED, prepare_sts),
    ],
    indirect=["form"],
)
def test_real_study_comes_back_completed(prepare, orthanc, make_node, tmp_path):
    validators = (
        require_program("dciodvfy", "dicom3tools"),
        require_program("dcentvfy", "dicom3tools"),
    )
    study = prepare(tmp_path / "study")
    headers = [dcmread(path, stop_before_pixels=True) for path in study.files]
    uid = str(headers[0].StudyInstanceUID)
    forget(orthanc, uid)
    node = make_node()
    node.start()

    answer = storescu(node.port, study.folder, called=AE_TITLE)
    assert answer.returncode == 0, answer.stderr
    node.wait_for(uid)

    with node.ledger() as ledger:
        jobs = ledger.jobs(uid)
        derived = {job.plan.target: ledger.derived(job.plan.plan_id) for job in jobs}
    assert {job.plan.target: job.state for job in jobs} == dict.fromkeys(
        study.targets, JobState.DONE
    ), [job.reason for job in jobs]
    held = orthanc.find_instances(uid)
    assert set(held) == {one.sop_instance_uid for group in derived.values() for one in group}
    for job in jobs:
        instances = [
            dcmread(io.BytesIO(orthanc.read_instance(one.sop_instance_uid)))
            for one in derived[job.plan.target]
        ]
        used = {instance for instance, _ in job.plan.source_instances}
        sources = [header for header in headers if header.SOPInstanceUID in used]
        assert conformance.check(instances, sources) == []
        paths = save(instances, tmp_path / job.plan.target)
        assert find_errors(validators, paths, study.files) == []
        images = [one for one in instances if one.Modality == study.targets[job.plan.target]]
        check_honesty(images, job.plan.target)
        reference = next(iter(job.plan.sources.values()))
        by_uid = {
            header.SOPInstanceUID: path for header, path in zip(headers, study.files, strict=True)
        }
        check_grid(
            save(images, tmp_path / "images" / job.plan.target),
            [by_uid[h.SOPInstanceUID] for h in sources if h.SeriesInstanceUID == reference],
        )
    assert node.stop() == 0


def test_nobody_here_was_in_training():
    cards = load_cards(settings.load(CONFIGURATION).node.models_folder)

    assert set().union(*(card.training.test for card in cards)) >= PEOPLE
    for card in cards:
        assert PEOPLE.isdisjoint({*card.training.subjects, *card.training.validation}), card.id


def save(instances: Sequence[Dataset], folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{index:04d}.dcm" for index in range(len(instances))]
    for path, instance in zip(paths, instances, strict=True):
        instance.save_as(path)
    return paths


def check_honesty(images: Sequence[Dataset], target: str) -> None:
    """Every image says what it is where a reader, an archive and a program look."""
    assert images
    for image in images:
        assert image.SyntheticData == "YES"
        assert image.ImageType[0] == "DERIVED"
        assert image.SeriesDescription.startswith(f"AI SYNTH {target}")
        assert image.ContentQualification == "RESEARCH"
        assert image.SourceImageSequence
        purposes = {
            item.PurposeOfReferenceCodeSequence[0].CodeValue
            for item in image.ContributingEquipmentSequence
        }
        assert {"109100", "109101"} <= purposes


def check_grid(images: Sequence[Path], reference: Sequence[Path]) -> None:
    """The synthetic series lies on the reference's voxels."""
    synthetic, _ = read_volume(images)
    source, _ = read_volume(reference)
    assert synthetic.array.shape == source.array.shape
    np.testing.assert_allclose(synthetic.affine, source.affine, atol=1e-3)
    assert synthetic.frame_of_reference_uid == source.frame_of_reference_uid
