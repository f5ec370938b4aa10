"""One prediction beside its truth: every figure that the table of results holds."""

from collections.abc import Callable, Mapping

import numpy as np

from synthesis.metrics import ours, synthrad2025
from synthesis.preprocessing import UNIT_SCALES
from synthesis.segmentation import classify, dice, mean_dice, measure_cuts
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    Case,
    ContrastLabel,
    FloatArray,
    MaskArray,
    Prediction,
)

CT = ContrastLabel("CT")
PET = ContrastLabel("FDG PET")
TISSUES_BY_BRIGHTNESS = ("dark", "middle", "bright")
HU_CLASSES = {"air": (-np.inf, -400.0), "soft": (-400.0, 200.0), "bone": (200.0, np.inf)}
FEWEST_VOXELS = 50
"""Fewer voxels are no region."""

Judge = Callable[[Case, ContrastLabel, Prediction], dict[str, float]]


def judge(case: Case, target: ContrastLabel, answer: Prediction) -> dict[str, float]:
    """Return the figures of an answer, see `synthesis.metrics.ours`; errors in the target's units.

    MR is in units of the standard scale, where median tissue is 500; CT is in HU. A figure that
    cannot be said (no lesion, no band) is absent.
    """
    scale = np.float32(UNITS_PER_NORMALIZED)
    truth, made, mask = case.images[target] * scale, answer.mean * scale, case.mask
    figures = {
        "psnr_db": ours.peak_signal_to_noise(truth, made, mask),
        "ssim": ours.structural_similarity(truth, made, mask),
        "mae": ours.mean_absolute_error(truth, made, mask),
        "gradient_ratio": ours.gradient_ratio(truth, made, mask),
        "through_plane_ratio": ours.through_plane_ratio(truth, made, mask),
        "detail_error": ours.detail_error(truth, made, mask),
        "mutual_information": ours.normalized_mutual_information(truth, made, mask),
    }
    if answer.lower is not None and answer.upper is not None:
        lower, upper = answer.lower * scale, answer.upper * scale
        figures["band_coverage"] = ours.coverage(truth, lower, upper, mask)
    figures |= _judge_ct(truth, made, mask) if target == CT else _judge_tissues(truth, made, mask)
    if case.labels is not None:
        figures |= _judge_lesions(truth, made, mask, case.labels > 0)
    return {name: float(value) for name, value in figures.items() if np.isfinite(value)}


def judge_uptake(case: Case, target: ContrastLabel, answer: Prediction) -> dict[str, float]:
    """Return the figures of a PET, errors in SUV; what cannot be said is absent.

    Of a tumor: error and bias of its uptake, its highest uptake as a share of the true one, and its
    contrast to the surroundings.
    """
    scale = np.float32(UNIT_SCALES["SUVbw"].high)
    truth, made, mask = case.images[target] * scale, answer.mean * scale, case.mask
    figures = {
        "psnr_db": ours.peak_signal_to_noise(truth, made, mask),
        "ssim": ours.structural_similarity(truth, made, mask),
        "suv_mae": ours.mean_absolute_error(truth, made, mask),
        "gradient_ratio": ours.gradient_ratio(truth, made, mask),
    }
    if answer.lower is not None and answer.upper is not None:
        lower, upper = answer.lower * scale, answer.upper * scale
        figures["band_coverage"] = ours.coverage(truth, lower, upper, mask)
    lesion = np.zeros_like(mask) if case.labels is None else (case.labels > 0) & mask
    if int(lesion.sum()) >= FEWEST_VOXELS:
        error, bias = ours.region_figures(truth, made, lesion)
        figures |= {
            "lesion_suv_mae": error,
            "lesion_suv_bias": bias,
            "lesion_suv_max": float(made[lesion].max() / truth[lesion].max()),
            "lesion_contrast": ours.lesion_contrast_ratio(truth, made, lesion, mask),
        }
    return {name: float(value) for name, value in figures.items() if np.isfinite(value)}


def find_judge(target: ContrastLabel) -> Judge:
    """Return what judges answers for a target."""
    return judge_uptake if target == PET else judge


def _judge_tissues(truth: FloatArray, made: FloatArray, mask: MaskArray) -> Mapping[str, float]:
    """Return what is lost of three tissues, parted by the truth's brightness."""
    cuts = measure_cuts(truth, mask)
    real, found = classify(truth, mask, cuts), classify(made, mask, cuts)
    figures = {"tissue_dice": mean_dice(real, found)}
    for label, name in enumerate(TISSUES_BY_BRIGHTNESS, start=1):
        region = real == label
        if int(region.sum()) >= FEWEST_VOXELS:
            error, bias = ours.region_figures(truth, made, region)
            figures |= {f"{name}_mae": error, f"{name}_bias": bias}
    return figures


def _judge_lesions(
    truth: FloatArray, made: FloatArray, mask: MaskArray, lesion: MaskArray
) -> Mapping[str, float]:
    inside = lesion & mask
    if int(inside.sum()) < FEWEST_VOXELS:
        return {}
    error, bias = ours.region_figures(truth, made, inside)
    return {
        "lesion_mae": error,
        "lesion_bias": bias,
        "lesion_contrast": ours.lesion_contrast_ratio(truth, made, inside, mask),
    }


def _judge_ct(truth: FloatArray, made: FloatArray, mask: MaskArray) -> Mapping[str, float]:
    figures = {
        "synthrad2025_psnr_db": synthrad2025.peak_signal_to_noise(truth, made, mask),
        "synthrad2025_ms_ssim": synthrad2025.multiscale_similarity(truth, made, mask),
    }
    for name, (low, high) in HU_CLASSES.items():
        region = mask & (truth > low) & (truth <= high)
        if int(region.sum()) >= FEWEST_VOXELS:
            found = mask & (made > low) & (made <= high)
            error, bias = ours.region_figures(truth, made, region)
            figures |= {
                f"{name}_mae": error,
                f"{name}_bias": bias,
                f"{name}_dice": dice(region, found),
            }
    return figures
