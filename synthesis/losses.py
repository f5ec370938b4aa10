"""Losses for training, each a pure function of prediction, truth and weight maps.

Arrays are (batch, 1, rows, columns), normalized units; plain errors and the gradient take slices
before the rows, too.
"""

import torch
from torch import Tensor
from torch.nn import functional

STABILITY = 1e-6


def masked_l1(prediction: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean absolute error."""
    return ((prediction - truth).abs() * weight).sum() / (weight.sum() + STABILITY)


def masked_square(prediction: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean squared error."""
    return ((prediction - truth) ** 2 * weight).sum() / (weight.sum() + STABILITY)


def gradient_l1(prediction: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean absolute difference of the forward differences along each axis."""
    total = prediction.new_zeros(())
    for axis in range(2, prediction.ndim):
        w = weight.narrow(axis, 1, weight.shape[axis] - 1)
        total = total + masked_l1(prediction.diff(dim=axis), truth.diff(dim=axis), w)
    return total


def structural_dissimilarity(prediction: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Return one minus the weighted mean SSIM, 7x7 uniform window, range 1 (Wang 2004)."""

    def mean(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 7, stride=1, padding=3, count_include_pad=False)

    mp, mt = mean(prediction), mean(truth)
    vp, vt = mean(prediction**2) - mp**2, mean(truth**2) - mt**2
    covariance = mean(prediction * truth) - mp * mt
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mp * mt + c1) * (2 * covariance + c2)
    ssim = ssim / ((mp**2 + mt**2 + c1) * (vp.clamp_min(0) + vt.clamp_min(0) + c2))
    return ((1 - ssim) * weight).sum() / (weight.sum() + STABILITY)


def pinball(prediction: Tensor, truth: Tensor, weight: Tensor, quantile: float) -> Tensor:
    """Return the weighted pinball loss of a quantile (Koenker 1978)."""
    difference = truth - prediction
    loss = torch.maximum(quantile * difference, (quantile - 1) * difference)
    return (loss * weight).sum() / (weight.sum() + STABILITY)
