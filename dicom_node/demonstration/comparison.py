"""The volumes behind the pictures: sources, synthetic, band and the real one, on one grid.

The real series, when it was held back, is only looked at here: it is aligned to the reference
source and, for MR, brought to the standard scale, which is the only way to subtract the two.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from dicom_node.domain import ContrastLabel
from dicom_node.volumes import read_map, read_volume
from synthesis.metrics import ours as metrics
from synthesis.preprocessing import measure_scale, resample, to_image
from synthesis.registration import register_rigid
from synthesis.types import UNITS_PER_NORMALIZED, Anchor, FloatArray, MaskArray, Volume

FEWEST_VOXELS = 1000
"""Fewer voxels in common are no comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Volumes of one job, all arrays on the grid of `grid`.

    Attributes:
        grid: the synthetic volume, whose axes and spacing count for all.
        covered: where it is synthesis and not padding.
        half_width: half of the 90 % band, or None.
        real: the held-back series in the target's units, or None.
        figures: real against synthetic inside `covered`; empty without `real`.
    """

    target: ContrastLabel
    units: str
    grid: Volume
    covered: MaskArray
    sources: Mapping[ContrastLabel, FloatArray]
    half_width: FloatArray | None
    real: FloatArray | None
    figures: Mapping[str, float]


def compare(
    *,
    target: ContrastLabel,
    modality: str,
    sources: Mapping[ContrastLabel, Sequence[Path]],
    frames: Mapping[ContrastLabel, Collection[int]],
    image: Sequence[Path],
    uncertainty: Sequence[Path],
    real: Sequence[Path],
    pad_value: float,
    anchor: Anchor,
) -> Comparison:
    """Read the files of one job and lay them on the synthetic volume's grid.

    Args:
        target: what was made.
        modality: of the target.
        sources: label to files; the first is the reference, whose grid the synthetic one has.
        frames: label to the frames that are the source, where its image holds others as well.
        image: files of the synthetic series.
        uncertainty: files of the Parametric Map, or none.
        real: files of the held-back series of the target, or none.
        pad_value: what the synthetic volume holds where the sources do not cover.
        anchor: how the model that made it scales MR.
    """
    synthetic, _ = read_volume(image)
    grid = to_image(synthetic)
    values = np.asarray(synthetic.array, np.float32)
    covered = np.abs(values - pad_value) > np.finfo(np.float32).eps
    volumes = {
        label: to_image(_as_float(read_volume(files, frames.get(label, ()))[0]))
        for label, files in sources.items()
    }
    reference = next(iter(volumes.values()))
    truth: FloatArray | None = None
    figures: dict[str, float] = {}
    if real:
        found = to_image(_as_float(read_volume(real)[0]))
        moved = register_rigid(reference, found, seed=0)
        transform = moved.transform if moved.is_trusted else None
        truth = _array(resample(found, grid, transform, outside=np.nan))
        both = covered & np.isfinite(truth)
        truth = np.nan_to_num(truth)
        if int(both.sum()) >= FEWEST_VOXELS:
            if modality == "MR":
                scaled = measure_scale(truth, both, anchor).forward(truth) * UNITS_PER_NORMALIZED
                truth = np.asarray(scaled, np.float32)
            figures = _measure(truth, values, both)
    return Comparison(
        target=target,
        units={"CT": "HU", "PT": "SUVbw"}.get(modality, "standard scale"),
        grid=synthetic,
        covered=covered,
        sources={label: _array(resample(one, grid)) for label, one in volumes.items()},
        half_width=read_map(uncertainty[0], synthetic) if uncertainty else None,
        real=truth,
        figures=figures,
    )


def _measure(truth: FloatArray, values: FloatArray, mask: MaskArray) -> dict[str, float]:
    constant = np.full_like(truth, np.median(truth[mask]))
    return {
        "voxels": float(mask.sum()),
        "mean_absolute_error": metrics.mean_absolute_error(truth, values, mask),
        "mean_absolute_error_of_a_constant": metrics.mean_absolute_error(truth, constant, mask),
        "psnr_db": metrics.peak_signal_to_noise(truth, values, mask),
        "ssim": metrics.structural_similarity(truth, values, mask),
    }


def _as_float(volume: Volume) -> Volume:
    return volume.with_array(volume.array.astype(np.float32))


def _array(image: sitk.Image) -> NDArray[np.float32]:
    return np.asarray(sitk.GetArrayFromImage(image), np.float32)
