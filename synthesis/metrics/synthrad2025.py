"""SynthRAD2025's image metrics for synthetic CT, as the evaluation container computed them.

Values are HU, the dynamic range is -1024 to 3071 HU (the challenge's metrics repository says 3000;
the container, which ranked, does not). Quirks that are kept in `multiscale_similarity`: luminance
was meant to count at the last scale only, but its weights were never used, so that it counts at
every scale; weights are exponents of every voxel and not of each scale's mean; the halving filter
takes zeros from beyond the first voxel of each axis, which darkens that border at every scale.
`textbook_multiscale_similarity` is the measure of the paper.
"""

import numpy as np

from synthesis.errors import UnusableInput
from synthesis.metrics import synthrad2023
from synthesis.metrics.synthrad2023 import (
    K1,
    K2,
    Values,
    check,
    mean_absolute_error,
    mean_inside,
    moments,
    shift,
)
from synthesis.types import FloatArray, MaskArray

__all__ = [
    "mean_absolute_error",
    "multiscale_similarity",
    "peak_signal_to_noise",
    "textbook_multiscale_similarity",
]

LOW, HIGH = -1024.0, 3071.0
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST = 97
"""Voxels per axis that five scales need: smaller volumes are padded by their edges."""


def peak_signal_to_noise(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> float:
    """Return the PSNR in dB inside the mask after clipping; infinite where nothing differs."""
    return synthrad2023.peak_signal_to_noise(truth, prediction, mask, low=LOW, high=HIGH)


def multiscale_similarity(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> float:
    """Return the masked multi-scale SSIM of the evaluation container, see the module.

    Not a number where a scale has no voxel of the mask away from its border.

    Raises:
        UnusableInput: shapes differ or the mask is empty.
    """
    t, p, inside = _pad(truth, prediction, mask)
    scores = []
    for weight in WEIGHTS:
        luminance, contrast, structure = _terms(t, p)
        similarity = luminance**weight * contrast**weight * structure**weight
        scores.append(mean_inside(similarity, inside))
        t, p, inside = _halve(t), _halve(p), inside[::2, ::2, ::2]
    return float(np.prod(np.clip(scores, 0, 1)))


def textbook_multiscale_similarity(
    truth: FloatArray, prediction: FloatArray, mask: MaskArray
) -> float:
    """Return the masked multi-scale SSIM after Wang 2003, equation 7, on the same scales.

    The mean of contrast times structure inside the mask is raised to each scale's weight, and
    luminance counts at the last scale only.

    Raises:
        UnusableInput: shapes differ or the mask is empty.
    """
    t, p, inside = _pad(truth, prediction, mask)
    score = 1.0
    for level, weight in enumerate(WEIGHTS):
        luminance, contrast, structure = _terms(t, p)
        similarity = contrast * structure
        if level == len(WEIGHTS) - 1:
            similarity = luminance * similarity
        score *= max(mean_inside(similarity, inside), 0.0) ** weight
        t, p, inside = _halve(t), _halve(p), inside[::2, ::2, ::2]
    return score


def _pad(
    truth: FloatArray, prediction: FloatArray, mask: MaskArray
) -> tuple[Values, Values, MaskArray]:
    check(truth, prediction, mask)
    if truth.ndim != 3:  # noqa: PLR2004 - volumes
        raise UnusableInput("shape", f"MS-SSIM needs a volume, not an array {truth.shape}")
    missing = [max(SMALLEST - size, 0) for size in truth.shape]
    width = [(short // 2, short - short // 2) for short in missing]
    t, p = (
        np.pad(shift(array, mask, LOW, HIGH), width, mode="edge") for array in (truth, prediction)
    )
    return t, p, np.pad(mask, width, mode="edge")


def _terms(t: Values, p: Values) -> tuple[Values, Values, Values]:
    """Return luminance, contrast and structure, each at least zero."""
    spread = HIGH - LOW
    c1, c2 = (K1 * spread) ** 2, (K2 * spread) ** 2
    c3 = c2 / 2
    mean_t, mean_p, variance_t, variance_p, covariance = moments(t, p)
    deviations = np.sqrt(np.clip(variance_t, 0, None)) * np.sqrt(np.clip(variance_p, 0, None))
    luminance = (2 * mean_t * mean_p + c1) / (mean_t**2 + mean_p**2 + c1)
    contrast = (2 * deviations + c2) / (variance_t + variance_p + c2)
    structure = (covariance + c3) / (deviations + c3)
    return (
        np.clip(luminance, 0, None),
        np.clip(contrast, 0, None),
        np.clip(structure, 0, None),
    )


def _halve(array: Values) -> Values:
    """Return every other voxel of the mean over 2x2x2 voxels, zeros before the first ones."""
    for axis in range(array.ndim):
        before = np.roll(array, 1, axis)
        before[(slice(None),) * axis + (slice(0, 1),)] = 0
        pairs = (array + before) / 2
        array = pairs[(slice(None),) * axis + (slice(None, None, 2),)]
    return array
