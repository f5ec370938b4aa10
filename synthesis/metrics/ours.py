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
BINS = 64
DETAIL_SIGMA = 1.5
"""Voxels: the Laplacian of Gaussian whose energy is detail (Ravishankar 2011)."""


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
    """Return the mean of the SSIM map (Wang 2004) over the mask without its rim.

    Uniform window of 7 voxels per axis (fewer along a short axis), sample covariance, both arrays
    set to the low end of the range outside the mask. The rim is where the window reaches beyond
    the mask; where nothing but rim is, the whole mask counts.
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
    within = np.asarray(ndimage.minimum_filter(mask, window, mode="constant", cval=0))
    return float(ssim[within if within.any() else mask].mean())


def coverage(truth: FloatArray, lower: FloatArray, upper: FloatArray, mask: MaskArray) -> float:
    """Return the share of voxels of the mask whose truth lies within the band."""
    inside = (truth[mask] >= lower[mask]) & (truth[mask] <= upper[mask])
    return float(inside.mean())


def gradient_ratio(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> float:
    """Return the prediction's mean gradient magnitude over the truth's: below one is blur.

    Only differences between two voxels of the mask count, so that its edge is no gradient.
    """
    made, real = (
        sum(_mean_difference(array, mask, axis) ** 2 for axis in range(truth.ndim))
        for array in (prediction, truth)
    )
    return float(np.sqrt(made / real)) if real > 0 else float("nan")


def through_plane_ratio(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> float:
    """Return mean |difference between slices| of the prediction over the truth's, in the mask.

    Above one, slices flicker; below one, they are smeared into each other.
    """
    real = _mean_difference(truth, mask, 0)
    return float(_mean_difference(prediction, mask, 0) / real) if real > 0 else float("nan")


def detail_error(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> float:
    """Return the high-frequency error norm: |LoG(prediction - truth)| / |LoG(truth)|, in mask."""
    inside = [np.where(mask, a, 0).astype(np.float64) for a in (prediction - truth, truth)]
    error, real = (
        float(np.linalg.norm(ndimage.gaussian_laplace(a, DETAIL_SIGMA)[mask])) for a in inside
    )
    return error / real if real > 0 else float("nan")


def normalized_mutual_information(
    truth: FloatArray, prediction: FloatArray, mask: MaskArray
) -> float:
    """Return (H(truth) + H(prediction)) / H(both) of 64-bin histograms (Studholme 1999), 1 to 2."""
    counts, _, _ = np.histogram2d(truth[mask], prediction[mask], bins=BINS)
    joint = counts / counts.sum()
    both = _entropy(joint.ravel())
    if both == 0:
        return float("nan")
    return (_entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))) / both


def region_figures(
    truth: FloatArray, prediction: FloatArray, region: MaskArray
) -> tuple[float, float]:
    """Return the mean absolute error and the bias (prediction minus truth) in a region."""
    difference = prediction[region].astype(np.float64) - truth[region]
    return float(np.abs(difference).mean()), float(difference.mean())


def lesion_contrast_ratio(
    truth: FloatArray, prediction: FloatArray, lesion: MaskArray, mask: MaskArray
) -> float:
    """Return the lesion's contrast to its surroundings in the prediction over that in the truth.

    One is faithful, zero erased, negative turned about. The surroundings are the mask's voxels
    within five voxels of the lesion that are no lesion. Not a number where there is no lesion, no
    surroundings, or no contrast in the truth.
    """
    around = ndimage.binary_dilation(lesion, iterations=5) & mask & ~lesion
    inside = lesion & mask
    if not inside.any() or not around.any():
        return float("nan")
    made, real = (float(a[inside].mean() - a[around].mean()) for a in (prediction, truth))
    return made / real if real != 0 else float("nan")


def _mean_difference(array: FloatArray, mask: MaskArray, axis: int) -> float:
    """Return the mean absolute difference of neighbors along an axis that both lie in the mask."""
    ahead = (slice(None),) * axis + (slice(1, None),)
    behind = (slice(None),) * axis + (slice(None, -1),)
    pairs = mask[ahead] & mask[behind]
    if not pairs.any():
        return 0.0
    return float(np.abs(np.diff(array, axis=axis)[pairs]).mean(dtype=np.float64))


def _entropy(shares: NDArray[np.float64]) -> float:
    filled = shares[shares > 0]
    return float(-np.sum(filled * np.log(filled)))
