"""Rigid registration against known moves."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from synthesis.phantom import render
from synthesis.registration import register_rigid


def as_image(array: np.ndarray, spacing: tuple[float, float, float]) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    return image


@pytest.fixture(scope="module")
def head() -> tuple[sitk.Image, sitk.Image]:
    phantom = render(seed=4, spacing=(3.0, 2.0, 2.0))
    return (
        as_image(phantom.images["T1w"], phantom.spacing),
        as_image(phantom.images["T2w"], phantom.spacing),
    )


@pytest.mark.parametrize("move", [(4.0, -3.0, 5.0, 0.05), (-6.0, 2.0, -2.0, -0.08)])
def test_a_known_move_between_contrasts_is_recovered(
    head: tuple[sitk.Image, sitk.Image], move: tuple[float, float, float, float]
) -> None:
    fixed, still = head
    center = fixed.TransformContinuousIndexToPhysicalPoint([s / 2 for s in fixed.GetSize()])
    applied = sitk.Euler3DTransform(center, 0.0, 0.0, move[3], move[:3])
    moved = sitk.Resample(still, still, applied.GetInverse(), sitk.sitkLinear, 0.0)

    found = register_rigid(fixed, moved, seed=0)

    corners = [
        fixed.TransformIndexToPhysicalPoint([10 + 40 * (i >> axis & 1) for axis in range(3)])
        for i in range(8)
    ]
    errors = [
        np.linalg.norm(np.subtract(found.transform.TransformPoint(c), applied.TransformPoint(c)))
        for c in corners
    ]
    assert max(errors) < 0.5
    assert found.is_trusted


def test_images_that_agree_stay_where_they_are(head: tuple[sitk.Image, sitk.Image]) -> None:
    fixed, moving = head

    found = register_rigid(fixed, moving, seed=0)

    assert found.shift_mm < 0.3
    assert found.similarity_after >= found.similarity_before


def test_the_same_seed_gives_the_same_transform(head: tuple[sitk.Image, sitk.Image]) -> None:
    first, second = (register_rigid(*head, seed=5).transform.GetParameters() for _ in range(2))

    assert first == second


def test_another_head_is_not_trusted(head: tuple[sitk.Image, sitk.Image]) -> None:
    fixed, _ = head
    generator = np.random.default_rng(0)
    shape = sitk.GetArrayFromImage(fixed).shape
    other = as_image(generator.uniform(0, 500, shape).astype(np.float32), (3.0, 2.0, 2.0))

    assert not register_rigid(fixed, other, seed=0).is_trusted
