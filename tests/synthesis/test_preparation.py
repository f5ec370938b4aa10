"""Reading what manifests name: series with missing slices, images of another digest, units."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from doubles.series import make_series, make_volume, write_files
from synthesis.errors import TrainingError
from synthesis.people import Person, digest_images
from synthesis.preparation import CT, PET, prepare, read_image
from synthesis.types import Anchor

SHAPE = (8, 20, 24)
BLANK = make_volume(SHAPE)
RAMP = BLANK.with_array(
    np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None] * 100, SHAPE).copy()
)


def test_slices_about_a_missing_one_stay_where_they_are(tmp_path: Path) -> None:
    instances = make_series("T1w", RAMP)
    del instances[3]
    write_files(instances, tmp_path / "series")

    image = read_image(tmp_path, "series")

    array = sitk.GetArrayFromImage(image)
    assert image.GetSize()[2] == 8
    assert image.GetSpacing()[2] == pytest.approx(2.5)
    middle = array.mean(axis=(1, 2))
    assert np.abs(np.diff(middle)).max() == pytest.approx(100, abs=2)
    place = image.TransformIndexToPhysicalPoint((0, 0, 7))
    ends = [RAMP.affine @ np.array([k, 0, 0, 1]) for k in (0, 7)]
    assert min(np.abs(np.array(place) - end[:3]).max() for end in ends) < 1e-3


def test_series_of_uneven_slices_is_refused(tmp_path: Path) -> None:
    instances = make_series("T1w", RAMP)
    moved = [float(v) for v in instances[3].ImagePositionPatient]
    instances[3].ImagePositionPatient = [moved[0], moved[1], moved[2] + 0.9]
    write_files(instances, tmp_path / "series")

    with pytest.raises(TrainingError, match="mm apart"):
        read_image(tmp_path, "series")


def test_images_of_another_digest_are_refused(tmp_path: Path) -> None:
    for label in ("t1", "t2"):
        image = sitk.GetImageFromArray(np.random.default_rng(0).random((6, 8, 8)))
        sitk.WriteImage(image, tmp_path / f"{label}.nii.gz")
    person = Person(
        subject="one",
        dataset="set",
        split="train",
        mask="nonzero",
        images={"T1w": "t1.nii.gz", "T2w": "t2.nii.gz"},
    )
    known = person.model_copy(update={"sha256": digest_images(person, tmp_path)})
    sitk.WriteImage(image * 2, tmp_path / "t2.nii.gz")

    with pytest.raises(TrainingError, match="others than the manifest says"):
        prepare(known, tmp_path, spacing_mm=1.0, anchor=Anchor())


def test_ct_and_pet_keep_their_units(tmp_path: Path) -> None:
    """A body in air: its fat shows on T1w, its uptake is 3.2 SUV, its HU are 40."""
    side = np.arange(-16, 16) ** 2
    body = np.broadcast_to(np.add.outer(side, side) < 12**2, (8, 32, 32))
    texture = np.random.default_rng(0).normal(0, 20, body.shape)
    images = {
        "T1w": np.where(body, 500 + texture, 0),
        "CT": np.where(body, 40, -3000),
        "FDG PET": np.where(body, 3.2, 0),
    }
    for label, array in images.items():
        image = sitk.GetImageFromArray(array.astype(np.float32))
        image.SetSpacing((4.0, 4.0, 4.0))
        sitk.WriteImage(image, tmp_path / f"{label}.nii.gz")
    person = Person(
        subject="one",
        dataset="set",
        split="train",
        mask="body",
        images={label: f"{label}.nii.gz" for label in images},
    )

    case = prepare(person, tmp_path, spacing_mm=4.0, anchor=Anchor())

    middle = tuple(size // 2 for size in case.mask.shape)
    assert case.images[PET][middle] == pytest.approx(0.32)  # as the engine scales SUV
    assert case.images[CT][middle] == pytest.approx(0.04)
    assert case.images[PET].min() == 0
    assert case.images[CT].min() == pytest.approx(-1.024)
