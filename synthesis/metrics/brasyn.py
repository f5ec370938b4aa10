"""The brain synthesis challenge's (BraSyn) metrics, as its organizers' script computed them.

Quirks that are kept: truth and prediction are each clipped to their own 0.5th and 99.5th percentile
over the whole volume and stretched to 0 to 1, so that any error of gain is free, and some of
offset; a region's SSIM is the mean over the whole volume of two images that are zero outside the
region, so that a small region scores near one whatever is in it. Look at `ours` for what a lesion
looks like.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.errors import UnusableInput
from synthesis.types import FloatArray, MaskArray

PERCENTILES = (0.5, 99.5)
SIGMA, TRUNCATE = 1.5, 3.5
RADIUS = 5
K1, K2 = 0.01, 0.03


def structural_similarity(
    truth: FloatArray, prediction: FloatArray, tumor: MaskArray
) -> tuple[float, float]:
    """Return the SSIM of the tumor and of all else, each over the whole volume.

    Gaussian window of 11 voxels, standard deviation 1.5, population variance, range of the wider of
    the two images. Not a number where a region, or an image within it, is constant zero; the
    challenge left such tumors out of its mean.

    Raises:
        UnusableInput: shapes differ, or an axis is too short for the window.
    """
    t, p = _normalize(truth, prediction, tumor)
    return _similarity(t * tumor, p * tumor), _similarity(t * ~tumor, p * ~tumor)


def mean_squared_error(
    truth: FloatArray, prediction: FloatArray, tumor: MaskArray
) -> tuple[float, float]:
    """Return the mean squared error of the stretched images inside the tumor and in all else.

    Raises:
        UnusableInput: shapes differ, or an axis is too short for the window.
    """
    t, p = _normalize(truth, prediction, tumor)
    square = (t.astype(np.float64) - p) ** 2
    inside, outside = square[tumor], square[~tumor]
    return (
        float(inside.mean()) if inside.size else float("nan"),
        float(outside.mean()) if outside.size else float("nan"),
    )


def _normalize(
    truth: FloatArray, prediction: FloatArray, tumor: MaskArray
) -> tuple[FloatArray, FloatArray]:
    if not truth.shape == prediction.shape == tumor.shape:
        raise UnusableInput(
            "shape", f"truth {truth.shape}, prediction {prediction.shape}, tumor {tumor.shape}"
        )
    if min(truth.shape) <= RADIUS:
        raise UnusableInput("shape", f"SSIM needs over {RADIUS} voxels per axis, not {truth.shape}")
    return _stretch(truth), _stretch(prediction)


def _stretch(array: FloatArray) -> FloatArray:
    low, high = np.percentile(array, PERCENTILES)
    low = max(low, 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant image has no scale: nan
        return np.asarray((np.clip(array, low, high) - low) / (high - low), np.float32)


def _similarity(t: FloatArray, p: FloatArray) -> float:
    spread = max(float(np.ptp(p)), float(np.ptp(t)))
    c1, c2 = (K1 * spread) ** 2, (K2 * spread) ** 2

    def mean(array: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(array, SIGMA, truncate=TRUNCATE, mode="mirror"))

    a, b = t.astype(np.float64), p.astype(np.float64)
    mean_a, mean_b = mean(a), mean(b)
    variances = np.clip(mean(a * a) - mean_a**2, 0, None) + np.clip(
        mean(b * b) - mean_b**2, 0, None
    )
    covariance = mean(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    with np.errstate(invalid="ignore", divide="ignore"):
        similarity /= (mean_a**2 + mean_b**2 + c1) * (variances + c2)
    return float(similarity.mean())
