"""The metrics against published code's answers, scikit-image, and numbers known by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.metrics import structural_similarity as reference_ssim

from doubles.metric_pairs import COUNT, Pair, make_pairs
from synthesis.errors import UnusableInput
from synthesis.metrics import brasyn, ours, synthrad2023, synthrad2025
from synthesis.types import FloatArray

PAIRS = list(make_pairs())
PUBLISHED = json.loads((Path(__file__).parent / "metric_pairs.json").read_text())
GENERATOR = np.random.default_rng(0)
TRUTH = GENERATOR.uniform(0, 1, (20, 22, 24)).astype(np.float32)
MASK = np.ones(TRUTH.shape, bool)
CASES = pytest.mark.parametrize(
    ("pair", "published"), list(zip(PAIRS, PUBLISHED, strict=True)), ids=[p.name for p in PAIRS]
)


def same(found: float, published: float | str | None, tolerance: float) -> bool:
    """Whether a value is the published one, not-a-number and infinity included."""
    wanted = float("nan") if published is None else float(published)
    if not math.isfinite(wanted):
        return str(found) == str(wanted)
    return abs(found - wanted) <= tolerance


def test_published_answers_belong_to_the_pairs() -> None:
    assert [row["name"] for row in PUBLISHED] == [pair.name for pair in PAIRS]
    assert len(PAIRS) == COUNT >= 50


@CASES
def test_synthrad2023_equals_the_published_code(pair: Pair, published: dict[str, Any]) -> None:
    wanted = published["synthrad2023"]
    arrays = (pair.truth, pair.prediction, pair.mask)

    assert same(synthrad2023.mean_absolute_error(*arrays), wanted["mae"], 1e-6)
    assert same(synthrad2023.peak_signal_to_noise(*arrays), wanted["psnr"], 1e-6)
    assert same(synthrad2023.structural_similarity(*arrays), wanted["ssim"], 1e-5)


@CASES
def test_synthrad2025_equals_the_published_code(pair: Pair, published: dict[str, Any]) -> None:
    wanted = published["synthrad2025"]
    arrays = (pair.truth, pair.prediction, pair.mask)

    assert same(synthrad2025.mean_absolute_error(*arrays), wanted["mae"], 1e-6)
    assert same(synthrad2025.peak_signal_to_noise(*arrays), wanted["psnr"], 1e-6)
    assert same(synthrad2025.multiscale_similarity(*arrays), wanted["ms_ssim"], 1e-5)


@CASES
def test_brasyn_equals_the_published_code(pair: Pair, published: dict[str, Any]) -> None:
    wanted = published["brasyn"]

    tumor, healthy = brasyn.structural_similarity(pair.truth, pair.prediction, pair.tumor)

    assert same(tumor, wanted["tumor"], 1e-5)
    assert same(healthy, wanted["healthy"], 1e-5)


def test_brasyn_forgives_a_gain_that_ours_counts() -> None:
    mask = np.zeros(TRUTH.shape, bool)
    mask[5:15, 5:15, 5:15] = True

    tumor, healthy = brasyn.mean_squared_error(TRUTH, 3 * TRUTH, mask)

    assert max(tumor, healthy) == pytest.approx(0, abs=1e-9)
    assert ours.mean_absolute_error(TRUTH, 3 * TRUTH, mask) > 0.5


def test_textbook_multiscale_similarity_differs_by_luminance_alone() -> None:
    truth = (2000 * TRUTH).astype(np.float32)

    assert synthrad2025.textbook_multiscale_similarity(truth, truth, MASK) == pytest.approx(1)
    brighter = truth + np.float32(900)
    textbook = synthrad2025.textbook_multiscale_similarity(truth, brighter, MASK)
    assert textbook > synthrad2025.multiscale_similarity(truth, brighter, MASK)


@pytest.mark.parametrize(
    "metric",
    [
        synthrad2023.mean_absolute_error,
        synthrad2023.structural_similarity,
        synthrad2025.multiscale_similarity,
    ],
)
def test_empty_mask_is_an_error_with_a_name(metric: object) -> None:
    with pytest.raises(UnusableInput, match="mask"):
        metric(TRUTH, TRUTH, ~MASK)  # type: ignore[operator]


def test_array_below_the_window_is_an_error_with_a_name() -> None:
    small = TRUTH[:4]

    with pytest.raises(UnusableInput, match="7 voxels"):
        synthrad2023.structural_similarity(small, small, MASK[:4])
    with pytest.raises(UnusableInput, match="5 voxels"):
        brasyn.structural_similarity(small, small, MASK[:4])


def test_a_known_offset_gives_known_error_and_psnr() -> None:
    prediction = TRUTH + np.float32(0.1)

    expected = 20 * np.log10(ours.measure_range(TRUTH, MASK) / 0.1)

    assert ours.mean_absolute_error(TRUTH, prediction, MASK) == pytest.approx(0.1, abs=1e-6)
    assert ours.peak_signal_to_noise(TRUTH, prediction, MASK) == pytest.approx(expected, abs=1e-3)


def test_error_outside_the_mask_costs_nothing() -> None:
    mask = MASK.copy()
    mask[:5] = False
    prediction = TRUTH.copy()
    prediction[:5] = 99

    assert ours.mean_absolute_error(TRUTH, prediction, mask) == 0
    assert ours.structural_similarity(TRUTH, prediction, mask) == pytest.approx(1, abs=1e-6)
    assert ours.gradient_ratio(TRUTH, prediction, mask) == pytest.approx(1)
    assert ours.through_plane_ratio(TRUTH, prediction, mask) == pytest.approx(1)


def test_ssim_equals_the_reference() -> None:
    prediction = (TRUTH + GENERATOR.normal(0, 0.1, TRUTH.shape)).astype(np.float32)
    low, spread = np.percentile(TRUTH, 0.5), ours.measure_range(TRUTH, MASK)
    reference = reference_ssim(
        (TRUTH - low).astype(float), (prediction - low).astype(float), data_range=spread
    )

    found = ours.structural_similarity(TRUTH, prediction, MASK)

    assert found == pytest.approx(float(reference), abs=1e-5)


def test_mask_of_nothing_but_rim_still_has_a_similarity() -> None:
    thin = np.zeros(TRUTH.shape, bool)
    thin[10] = True

    assert ours.structural_similarity(TRUTH, TRUTH, thin) == pytest.approx(1)


def test_coverage_counts_the_truth_inside_the_band() -> None:
    lower, upper = TRUTH - 0.1, TRUTH + 0.1
    lower[:10] = TRUTH[:10] + 0.05

    assert ours.coverage(TRUTH, lower, upper, MASK) == pytest.approx(0.5)


def test_half_the_contrast_is_half_the_gradient_and_twice_the_flicker_shows() -> None:
    flicker = TRUTH.copy()
    flicker[::2] += 10

    assert ours.gradient_ratio(TRUTH, TRUTH / 2, MASK) == pytest.approx(0.5)
    assert ours.detail_error(TRUTH, TRUTH / 2, MASK) == pytest.approx(0.5, abs=1e-3)
    assert ours.through_plane_ratio(TRUTH, flicker, MASK) > 10


def test_mutual_information_tells_a_remapped_image_from_another() -> None:
    other: FloatArray = GENERATOR.uniform(0, 1, TRUTH.shape).astype(np.float32)

    assert ours.normalized_mutual_information(TRUTH, 1 - TRUTH, MASK) > 1.9
    assert ours.normalized_mutual_information(TRUTH, other, MASK) < 1.2


def test_lesion_that_was_wiped_has_no_contrast_left() -> None:
    lesion = np.zeros(TRUTH.shape, bool)
    lesion[8:12, 8:12, 8:12] = True
    truth = np.where(lesion, np.float32(2), np.float32(1))

    assert ours.lesion_contrast_ratio(truth, truth, lesion, MASK) == pytest.approx(1)
    wiped = ours.lesion_contrast_ratio(truth, np.ones_like(truth), lesion, MASK)
    assert wiped == pytest.approx(0)
    assert ours.region_figures(truth, np.ones_like(truth), lesion) == (1, -1)
