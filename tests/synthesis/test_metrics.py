"""The metrics against scikit-image and against numbers known by hand."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity as reference_ssim

from synthesis.metrics import (
    coverage,
    mean_absolute_error,
    measure_range,
    peak_signal_to_noise,
    structural_similarity,
)

GENERATOR = np.random.default_rng(0)
TRUTH = GENERATOR.uniform(0, 1, (20, 22, 24)).astype(np.float32)
MASK = np.ones(TRUTH.shape, bool)


def test_a_known_offset_gives_known_error_and_psnr() -> None:
    prediction = TRUTH + np.float32(0.1)

    expected = 20 * np.log10(measure_range(TRUTH, MASK) / 0.1)

    assert mean_absolute_error(TRUTH, prediction, MASK) == pytest.approx(0.1, abs=1e-6)
    assert peak_signal_to_noise(TRUTH, prediction, MASK) == pytest.approx(expected, abs=1e-3)


def test_error_outside_the_mask_costs_nothing() -> None:
    mask = MASK.copy()
    mask[:5] = False
    prediction = TRUTH.copy()
    prediction[:5] = 99

    assert mean_absolute_error(TRUTH, prediction, mask) == 0
    assert structural_similarity(TRUTH, prediction, mask) == pytest.approx(1, abs=1e-6)


def test_ssim_equals_the_reference_map() -> None:
    prediction = (TRUTH + GENERATOR.normal(0, 0.1, TRUTH.shape)).astype(np.float32)
    low, spread = np.percentile(TRUTH, 0.5), measure_range(TRUTH, MASK)
    _, reference = reference_ssim(
        (TRUTH - low).astype(float), (prediction - low).astype(float), data_range=spread, full=True
    )

    ours = structural_similarity(TRUTH, prediction, MASK)

    assert ours == pytest.approx(float(reference.mean()), abs=1e-5)


def test_coverage_counts_the_truth_inside_the_band() -> None:
    lower, upper = TRUTH - 0.1, TRUTH + 0.1
    lower[:10] = TRUTH[:10] + 0.05

    assert coverage(TRUTH, lower, upper, MASK) == pytest.approx(0.5)
