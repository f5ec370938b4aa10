"""Image metrics, in mask; arrays (slices, rows, columns) of truth and prediction in the same units.

Namespace `ours`: the range is the 0.5th to 99.5th percentile of the truth inside the mask, and a
prediction is never rescaled by its own values, so that an intensity error costs what it costs.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.types import FloatArray, MaskArray

SSIM_WINDOW = 7
K1, K2 = 0.01, 0.03


def measure_range(truth: FloatArray, mask: MaskArray) -> float:
    """Return the 99.5th minus the 0.5th percentile of the truth inside the mask."""
    low, high = np.percentile(truth[mask], [0.5, 99.5])
    return float(high - low)


def mean_absolute_error(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> float:
    """Return the mean absolute error inside the mask, in the arrays' units."""
    return float(np.mean(np.abs(truth[mask].astype(np.float64) - prediction[mask])))


def peak_signal_to_noise(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> float:
    """Return 10 log10(range^2 / mean squared error) inside the mask, in decibels."""
    error = np.mean((truth[mask].astype(np.float64) - prediction[mask]) ** 2)
    return float(10 * np.log10(measure_range(truth, mask) ** 2 / max(float(error), 1e-20)))


def structural_similarity(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> float:
    """Return the mean of the SSIM map (Wang 2004) inside the mask.

    Uniform window of 7 voxels per axis (fewer along a short axis), sample covariance, and both
    arrays set to the low end of the range outside the mask.
    """
    low = float(np.percentile(truth[mask], 0.5))
    spread = measure_range(truth, mask)
    t: NDArray[np.float64] = np.where(mask, truth - low, 0).astype(np.float64)
    p: NDArray[np.float64] = np.where(mask, prediction - low, 0).astype(np.float64)
    window = [min(SSIM_WINDOW, size) for size in truth.shape]
    count = float(np.prod(window))
    correction = count / max(count - 1, 1)

    def mean(a: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.uniform_filter(a, window))

    mt, mp = mean(t), mean(p)
    vt = correction * (mean(t * t) - mt * mt)
    vp = correction * (mean(p * p) - mp * mp)
    covariance = correction * (mean(t * p) - mt * mp)
    c1, c2 = (K1 * spread) ** 2, (K2 * spread) ** 2
    ssim = (2 * mt * mp + c1) * (2 * covariance + c2)
    ssim /= (mt**2 + mp**2 + c1) * (vt + vp + c2)
    return float(ssim[mask].mean())


def coverage(truth: FloatArray, lower: FloatArray, upper: FloatArray, mask: MaskArray) -> float:
    """Return the share of voxels of the mask whose truth lies within the band."""
    inside = (truth[mask] >= lower[mask]) & (truth[mask] <= upper[mask])
    return float(inside.mean())
