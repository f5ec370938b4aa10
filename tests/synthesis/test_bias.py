"""The bias field against a field that was put there, and against ITK's filter."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from synthesis.bias import evaluate_field
from synthesis.phantom import render
from synthesis.preprocessing import BIAS_SHRINK, EVERYWHERE, Box, correct_bias
from synthesis.types import FloatArray, MaskArray

SPACING = (3.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def uneven() -> tuple[FloatArray, FloatArray, MaskArray]:
    """Return an uneven T1w, the field in it, and the brain."""
    phantom = render(seed=6, spacing=SPACING)
    image = phantom.images["T1w"]
    up, back, left = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape), indexing="ij")
    field = np.exp(0.4 * left - 0.3 * up * back + 0.2 * up**2).astype(np.float32)
    return (image * field).astype(np.float32), field, phantom.brain


def place(array: FloatArray, mask: MaskArray) -> tuple[sitk.Image, sitk.Image]:
    images = sitk.GetImageFromArray(array), sitk.GetImageFromArray(mask.astype(np.uint8))
    for image in images:
        image.SetSpacing(SPACING[::-1])
    return images


def ask_itk(image: sitk.Image, mask: sitk.Image) -> FloatArray:
    shrink = [min(BIAS_SHRINK, n // 16) for n in image.GetSize()]
    small, inside = sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([30, 20])
    corrector.Execute(small, inside * sitk.Cast(small > 0, sitk.sitkUInt8))
    answer: FloatArray = sitk.GetArrayFromImage(
        image / sitk.Exp(corrector.GetLogBiasFieldAsImage(image))
    )
    return answer


def test_corrected_values_are_those_of_itk(
    uneven: tuple[FloatArray, FloatArray, MaskArray],
) -> None:
    image, _, mask = uneven
    pair = place(image, mask)

    ours, theirs = correct_bias(*pair), ask_itk(*pair)

    np.testing.assert_allclose(ours[mask], theirs[mask], rtol=1e-4)


def test_field_that_was_put_there_is_taken_away(
    uneven: tuple[FloatArray, FloatArray, MaskArray],
) -> None:
    image, field, mask = uneven

    rest = (correct_bias(*place(image, mask)) / (image / field))[mask & (image > 0)]

    assert rest.std() / rest.mean() < 0.35 * field[mask].std() / field[mask].mean()


def test_box_holds_what_the_whole_image_does(
    uneven: tuple[FloatArray, FloatArray, MaskArray],
) -> None:
    image, _, mask = uneven
    pair = place(image, mask)
    box: Box = (slice(5, 30), slice(40, 80), slice(16, 64))

    np.testing.assert_array_equal(correct_bias(*pair, box), correct_bias(*pair)[box])


def test_flat_image_has_no_field() -> None:
    mask = np.ones((20, 40, 40), bool)

    corrected = correct_bias(*place(np.full(mask.shape, 7.0, np.float32), mask))

    np.testing.assert_allclose(corrected, 7.0, rtol=1e-6)
    assert evaluate_field(np.zeros((5, 5, 5)), mask.shape, EVERYWHERE).shape == mask.shape
