"""SynthRAD2023's image metrics for synthetic CT, as the challenge computed them.

Values are HU, the dynamic range is -1024 to 3000 HU. Quirks that are kept: MAE is not clipped
although PSNR and SSIM are; SSIM looks at a volume whose outside is air, so that voxels near the
mask's border compare air with air; the border of three voxels is left out even where the mask
reaches it.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.errors import UnusableInput
from synthesis.types import FloatArray, MaskArray

LOW, HIGH = -1024.0, 3000.0
WINDOW = 7
K1, K2 = 0.01, 0.03
BORDER = WINDOW // 2

Values = NDArray[np.floating]


def mean_absolute_error(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> float:
    """Return the mean absolute error inside the mask in HU; nothing is clipped."""
    check(truth, prediction, mask)
    return float(np.abs(truth[mask].astype(np.float64) - prediction[mask]).mean())


def peak_signal_to_noise(
    truth: FloatArray,
    prediction: FloatArray,
    mask: MaskArray,
    *,
    low: float = LOW,
    high: float = HIGH,
) -> float:
    """Return the PSNR in dB inside the mask after clipping; infinite where nothing differs."""
    check(truth, prediction, mask)
    difference = np.clip(truth, low, high)[mask].astype(np.float64)
    difference -= np.clip(prediction, low, high)[mask]
    error = float(np.mean(difference**2))
    return float("inf") if error == 0 else float(10 * np.log10((high - low) ** 2 / error))


def structural_similarity(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> float:
    """Return the mean over the mask of the SSIM map of the clipped, masked, shifted volumes.

    Uniform window of 7 voxels, sample covariance. Not a number where no voxel of the mask is
    farther than three voxels from the array's border.

    Raises:
        UnusableInput: the window is larger than the array, or the mask is empty.
    """
    check(truth, prediction, mask)
    if min(truth.shape) < WINDOW:
        raise UnusableInput("shape", f"SSIM needs {WINDOW} voxels per axis, not {truth.shape}")
    t, p = (shift(array, mask, LOW, HIGH) for array in (truth, prediction))
    spread = HIGH - LOW
    mean_t, mean_p, variance_t, variance_p, covariance = moments(t, p)
    c1, c2 = (K1 * spread) ** 2, (K2 * spread) ** 2
    similarity = (2 * mean_t * mean_p + c1) * (2 * covariance + c2)
    similarity /= (mean_t**2 + mean_p**2 + c1) * (variance_t + variance_p + c2)
    return mean_inside(similarity, mask)


def check(truth: FloatArray, prediction: FloatArray, mask: MaskArray) -> None:
    """Raise UnusableInput where shapes differ or the mask is empty."""
    if not truth.shape == prediction.shape == mask.shape:
        raise UnusableInput(
            "shape", f"truth {truth.shape}, prediction {prediction.shape}, mask {mask.shape} differ"
        )
    if not mask.any():
        raise UnusableInput("mask", "no voxel is inside the mask")


def shift(array: FloatArray, mask: MaskArray, low: float, high: float) -> Values:
    """Return the array clipped, at `low` outside the mask, moved so that `low` is zero."""
    clipped: Values = np.where(mask, np.clip(array, low, high), np.asarray(low, array.dtype))
    return clipped - np.asarray(low, array.dtype)


def moments(t: Values, p: Values) -> tuple[Values, Values, Values, Values, Values]:
    """Return the local means, variances and covariance in a uniform window, sample estimates."""

    def mean(array: Values) -> Values:
        return np.asarray(ndimage.uniform_filter(array, WINDOW))

    count = WINDOW**t.ndim
    correction = count / (count - 1)
    mean_t, mean_p = mean(t), mean(p)
    return (
        mean_t,
        mean_p,
        correction * (mean(t * t) - mean_t * mean_t),
        correction * (mean(p * p) - mean_p * mean_p),
        correction * (mean(t * p) - mean_t * mean_p),
    )


def mean_inside(values: Values, mask: MaskArray) -> float:
    """Return the mean over the mask of what is three voxels away from the array's border."""
    inner = (slice(BORDER, -BORDER),) * values.ndim
    chosen = values[inner][mask[inner]]
    return float(chosen.mean(dtype=np.float64)) if chosen.size else float("nan")
