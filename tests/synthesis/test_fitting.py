"""A CT is laid on the MR of a body that lay otherwise."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from synthesis.datasets import cached_cases, read_case, read_fit
from synthesis.errors import TrainingError
from synthesis.fitting import Fit, fit_body
from synthesis.people import Person
from synthesis.preparation import prepare, prepare_fitted
from synthesis.preprocessing import mask_body, resample
from synthesis.types import Anchor

SPACING = (3.0, 1.0, 1.0)
SHAPE = (12, 96, 96)
SHIFT_MM = (6.0, -4.0)
"""By which the limb lies otherwise in the CT: rows, columns."""
FAR = 6
"""Voxels, farther than that."""


@dataclass
class Limb:
    mr: sitk.Image
    ct: sitk.Image
    body: np.ndarray
    bone: np.ndarray


def make_limb() -> Limb:
    """Return a limb with fat, muscle and one bone; in the CT it is pressed flat and lies aside."""
    z, y, x = (
        (np.arange(n) - (n - 1) / 2)[tuple(slice(None) if a == k else None for a in range(3))] * s
        for k, (n, s) in enumerate(zip(SHAPE, SPACING, strict=True))
    )

    def draw(values: tuple[float, ...], up: float, aside: float, flat: float) -> np.ndarray:
        air, fat, muscle, cortical, marrow = values
        rows, columns = (y - up) / flat + 0 * z, (x - aside) * flat + 0 * z
        radius = np.hypot(rows, columns)
        image = np.full(SHAPE, air, np.float32)
        image[radius < 34] = fat
        image[radius < 26] = muscle
        image[np.hypot(rows - 14, columns + 8) < 5] = fat  # a vessel's sheath
        image[np.hypot(rows + 4, columns - 6) < 9] = cortical
        image[np.hypot(rows + 4, columns - 6) < 5] = marrow
        return image

    mr = draw((5, 900, 400, 20, 850), 0, 0, 1)
    ct = draw((-1000, -100, 50, 1200, -60), *SHIFT_MM, 0.93)
    images = []
    for array in (mr, ct):
        noise = np.random.default_rng(0).normal(0, 5, SHAPE)
        image = sitk.GetImageFromArray((array + noise).astype(np.float32))
        image.SetSpacing(SPACING[::-1])
        images.append(image)
    return Limb(mr=images[0], ct=images[1], body=mask_body(mr), bone=mr == 20)


@pytest.fixture(scope="module")
def limb() -> Limb:
    return make_limb()


@pytest.fixture(scope="module")
def fit(limb: Limb) -> Fit:
    return fit_body(limb.mr, limb.ct, limb.body)


def test_ct_of_a_body_that_lay_otherwise_lies_on_the_mr(limb: Limb, fit: Fit) -> None:
    placed = sitk.GetArrayFromImage(resample(limb.ct, limb.mr, fit.transform, outside=-1024))
    unmoved = sitk.GetArrayFromImage(limb.ct)

    assert (unmoved[limb.bone] > 600).mean() < 0.6
    assert (placed[limb.bone] > 600).mean() > 0.8
    assert (placed[limb.body] < -400).mean() < 0.2 * (unmoved[limb.body] < -400).mean()


def test_map_to_a_limb_that_lay_far_aside_does_not_fold(limb: Limb) -> None:
    far = np.roll(sitk.GetArrayFromImage(limb.ct), (FAR, FAR // 2), (1, 2))
    ct = sitk.GetImageFromArray(far)
    ct.CopyInformation(limb.ct)

    figures = fit_body(limb.mr, ct, limb.body).record["figures"]

    assert figures["least_volume"] > 0.1
    assert figures["bone_darker_after"] > 0.8
    assert figures["dice_after"] > 0.97 > figures["dice_before"]


def test_record_says_how_the_ct_was_bent(fit: Fit) -> None:
    record = json.loads(json.dumps(fit.record))
    figures = record["figures"]

    assert figures["dice_after"] > 0.97 > figures["dice_before"]
    assert figures["bone_darker_after"] > figures["bone_darker_before"]
    assert 3 < figures["moved_mm"] < 12
    assert 0.3 < figures["least_volume"] <= figures["most_volume"] < 3
    assert np.array(record["knots_mm"]).shape[0] == 3


def test_only_what_both_images_show_is_judged(limb: Limb, tmp_path: Path) -> None:
    cut = sitk.GetArrayFromImage(limb.ct)
    cut[:, 60:] = -1000  # a part of the limb that was not there
    ct = sitk.GetImageFromArray(cut)
    ct.CopyInformation(limb.ct)
    person = write_person(tmp_path, limb.mr, ct)

    [case] = cached_cases(
        [person], tmp_path, tmp_path / "work", spacing_mm=1.0, anchor=Anchor(), fits_ct=True
    )

    assert case.judged is not None
    assert not (case.judged & ~case.mask).any()
    assert 0.3 < case.judged.sum() / case.mask.sum() < 0.95
    assert (case.images["CT"][case.judged] < -0.4).mean() < 0.02
    np.testing.assert_array_equal(read_case(tmp_path / "work" / "one.npz").judged, case.judged)
    figures = read_fit(tmp_path / "work" / "one.npz")
    assert figures is not None
    judged = case.judged.sum() / case.mask.sum()
    assert judged < figures["shared_after"] + 1e-3  # what folds is not judged, either


def write_person(folder: Path, mr: sitk.Image, ct: sitk.Image) -> Person:
    sitk.WriteImage(mr, folder / "mr.nii.gz")
    sitk.WriteImage(ct, folder / "ct.nii.gz")
    images = {"T1w": "mr.nii.gz", "CT": "ct.nii.gz"}
    return Person(subject="one", dataset="set", split="train", mask="body", images=images)


def test_person_without_a_ct_is_not_fitted(limb: Limb, tmp_path: Path) -> None:
    person = write_person(tmp_path, limb.mr, limb.ct)
    alone = person.model_copy(update={"images": {"T1w": "mr.nii.gz"}})

    with pytest.raises(TrainingError, match="only a body"):
        prepare_fitted(alone, tmp_path, spacing_mm=1.0, anchor=Anchor())


def test_people_who_are_not_fitted_are_judged_in_the_whole_mask(limb: Limb, tmp_path: Path) -> None:
    person = write_person(tmp_path, limb.mr, limb.ct)

    assert prepare(person, tmp_path, spacing_mm=1.0, anchor=Anchor()).judged is None


def test_air_full_of_noise_is_no_body(limb: Limb) -> None:
    array = sitk.GetArrayFromImage(limb.mr).astype(np.float32)
    generator = np.random.default_rng(1)
    air = 110 * np.hypot(*generator.normal(0, 1, (2, *SHAPE)))  # Rician without a signal
    noisy = np.where(limb.body, array, air).astype(np.float32)

    found = mask_body(noisy)

    dice = 2 * (found & limb.body).sum() / (found.sum() + limb.body.sum())
    assert dice > 0.95


def test_body_of_a_ct_is_all_of_its_soft_tissue(limb: Limb) -> None:
    soft = np.where(limb.body, np.where(np.arange(SHAPE[2]) % 2 > 0, -100, 60), -1000)

    found = mask_body(soft.astype(np.float32))

    dice = 2 * (found & limb.body).sum() / (found.sum() + limb.body.sum())
    assert dice > 0.95
