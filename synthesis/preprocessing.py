"""From a person's volumes to arrays on one model grid and back, every step recorded.

The model grid follows the index axes of the reference source (no rotation), turned so that axis 0
runs towards the head, axis 1 to the back and axis 2 to the left. In-plane spacing is the model's;
thick slices stay on their own positions. The way back is one interpolation.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.bias import estimate_field, evaluate_field
from synthesis.errors import UnusableInput
from synthesis.patches import THICK_FROM
from synthesis.types import UNITS_PER_NORMALIZED, Anchor, FloatArray, MaskArray, Volume

KEEP_SPACING_WITHIN = 0.1
"""A spacing this near to the model's (relative) stays as it is: interpolation costs more."""
MOST_VOXELS = 512 * 2**20
"""Of a volume: 2 GiB as float32; a real one has a tenth of that."""
BIAS_SHRINK = 4
EVERYWHERE = (slice(None), slice(None), slice(None))
LOW_PERCENTILE = 0.5
SKIN_SHARE = 0.3
CLOSING = 8
"""Pixels, in plane."""
RIM = 4
"""Pixels of a slice at its edge, where air is looked for."""
NOISE_BINS = 15
NOISE_MARGIN = 1.5
"""Smoothed noise of air seldom goes beyond its commonest value by more."""

Box = tuple[slice, slice, slice]
"""Slices, rows and columns of an array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The linear map of an image to normalized units: low to 0, high to 1; nothing is clipped."""

    low: float
    high: float

    def forward(self, array: FloatArray) -> FloatArray:
        """Return normalized units."""
        return ((array - self.low) / (self.high - self.low)).astype(np.float32)

    def inverse(self, array: FloatArray) -> FloatArray:
        """Return the units of the image."""
        return (array * (self.high - self.low) + self.low).astype(np.float32)


UNIT_SCALES: Mapping[str, Scale] = {
    "HU": Scale(low=0.0, high=UNITS_PER_NORMALIZED),
    "SUVbw": Scale(low=0.0, high=10.0),
    "standard scale": Scale(low=0.0, high=UNITS_PER_NORMALIZED),
    "display": Scale(low=0.0, high=255.0),
}
"""From units to normalized units and back: what has a unit keeps it, in every person alike. On the
standard scale of MR median tissue, 0.5, is 500."""
UNIT_LIMITS: Mapping[str, tuple[float, float]] = {
    "HU": (-1024.0, 3071.0),
    "SUVbw": (0.0, 1000.0),
    "display": (0.0, 255.0),
}
"""Values beyond are no tissue: padding below, metal above."""


def measure_scale(array: FloatArray, mask: MaskArray, anchor: Anchor) -> Scale:
    """Return the scale that sends the 0.5th percentile inside the mask to 0, the anchor to its own.

    Raises:
        UnusableInput: `constant`, the two percentiles are one value.
    """
    low, tissue = np.percentile(array[mask], [LOW_PERCENTILE, anchor.percentile])
    if not tissue > low:
        raise UnusableInput("constant", "the image is constant inside the mask")
    return Scale(low=float(low), high=float(low + (tissue - low) / anchor.value))


def to_image(volume: Volume) -> sitk.Image:
    """Return the volume as a SimpleITK image whose array is (slices, rows, columns), LPS mm."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array))
    matrix = volume.affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    image.SetSpacing([float(s) for s in spacing[::-1]])
    image.SetDirection([float(d) for d in (matrix / spacing)[:, ::-1].ravel()])
    image.SetOrigin([float(o) for o in volume.affine[:3, 3]])
    return image


def affine_of(image: sitk.Image) -> NDArray[np.float64]:
    """Return the 4x4 affine from (slice, row, column) index to LPS millimetres."""
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = (direction * np.array(image.GetSpacing()))[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return affine


def to_canonical(image: sitk.Image) -> sitk.Image:
    """Return the image with its axes permuted and flipped: x, y, z run nearest to L, P, S.

    Values are untouched; oblique stays oblique.
    """
    turned: sitk.Image = sitk.DICOMOrient(image, "LPS")
    return turned


def make_grid(reference: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Return an empty image on the model grid of a canonical reference.

    Each axis whose spacing is near the model's, or whose slices are thick, keeps its positions.

    Raises:
        UnusableInput: `too_large`.
    """
    thick = THICK_FROM * max(spacing_mm, min(reference.GetSpacing()))
    sizes, spacings, starts = [], [], []
    for size, spacing in zip(reference.GetSize(), reference.GetSpacing(), strict=True):
        near = abs(spacing / spacing_mm - 1) <= KEEP_SPACING_WITHIN
        if near or spacing > thick:
            sizes.append(size)
            spacings.append(spacing)
            starts.append(0.0)
        else:
            count = max(1, round(size * spacing / spacing_mm))
            sizes.append(count)
            spacings.append(spacing_mm)
            # keep the center of the field of view where it is
            starts.append(((size - 1) * spacing - (count - 1) * spacing_mm) / 2 / spacing)
    if math.prod(sizes) > MOST_VOXELS:
        raise UnusableInput("too_large", f"the model grid would measure {sizes} voxels")
    grid = sitk.Image(sizes, sitk.sitkFloat32)
    grid.SetSpacing(spacings)
    grid.SetDirection(reference.GetDirection())
    grid.SetOrigin(reference.TransformContinuousIndexToPhysicalPoint(starts))
    return grid


def resample(
    image: sitk.Image,
    grid: sitk.Image,
    transform: sitk.Transform | None = None,
    *,
    outside: float = 0.0,
    nearest: bool = False,
) -> sitk.Image:
    """Return `image` on `grid`; the transform maps points of the grid to points of the image.

    Going to a coarser grid, the image is smoothed first (Gaussian, half the coarser spacing), so
    that fine detail does not alias.
    """
    if nearest:
        interpolator = sitk.sitkNearestNeighbor
    else:
        interpolator = sitk.sitkLinear
        image = _smooth_for(image, grid)
    return sitk.Resample(
        image, grid, transform or sitk.Transform(3, sitk.sitkIdentity), interpolator, outside
    )


def _smooth_for(image: sitk.Image, grid: sitk.Image) -> sitk.Image:
    ratio = [
        grid.GetSpacing()[_nearest_axis(grid, image, axis)] / spacing
        for axis, spacing in enumerate(image.GetSpacing())
    ]
    for axis, r in enumerate(ratio):
        if r > 1 + KEEP_SPACING_WITHIN:
            sigma = 0.5 * image.GetSpacing()[axis] * float(np.sqrt(r * r - 1)) / 1.2
            image = sitk.RecursiveGaussian(image, sigma, direction=axis)
    return image


def _nearest_axis(grid: sitk.Image, image: sitk.Image, axis: int) -> int:
    mine = np.array(image.GetDirection()).reshape(3, 3)[:, axis]
    theirs = np.array(grid.GetDirection()).reshape(3, 3)
    return int(np.argmax(np.abs(theirs.T @ mine)))


def correct_bias(image: sitk.Image, mask: sitk.Image, box: Box = EVERYWHERE) -> FloatArray:
    """Return the image's values in a box, divided by the bias field of all of it.

    The field is estimated on a coarse grid, see `bias`.

    Args:
        image: float32, (slices, rows, columns).
        mask: where the field is looked for, on the same grid.
        box: where it is wanted.
    """
    shrink = [max(1, min(BIAS_SHRINK, n // 16)) for n in image.GetSize()]
    small = sitk.GetArrayFromImage(sitk.Shrink(image, shrink)).astype(np.float32)
    inside = (sitk.GetArrayFromImage(sitk.Shrink(mask, shrink)) > 0) & (small > 0)
    values = sitk.GetArrayViewFromImage(image)
    field = evaluate_field(estimate_field(small, inside), values.shape, box)
    np.divide(values[box], np.exp(field, out=field), out=field)
    return field


def mask_body(array: FloatArray) -> MaskArray:
    """Return the body: Otsu's threshold on a smoothed image, largest part, holes filled.

    Raises:
        UnusableInput: `mask`, nothing is above the threshold.
    """
    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(array), 1.0)
    threshold = sitk.OtsuThresholdImageFilter()
    threshold.SetInsideValue(0)
    threshold.SetOutsideValue(1)
    threshold.Execute(image)
    smooth = sitk.GetArrayFromImage(image)
    # Otsu splits fat from muscle when there is little air; a part of its threshold finds the skin.
    skin = SKIN_SHARE * threshold.GetThreshold()
    return solidify(smooth > max(skin, NOISE_MARGIN * _find_noise(smooth, skin)))


def solidify(body: MaskArray) -> MaskArray:
    """Return the largest part of what is thought to be body, without bays and holes.

    Raises:
        UnusableInput: `mask`, nothing is left.
    """
    body = ndimage.binary_opening(body, iterations=1)
    # Cortical bone is as dark as air, and at the edge of the field of view it is no closed hole.
    wide = np.pad(body, ((0, 0), (CLOSING, CLOSING), (CLOSING, CLOSING)), mode="edge")
    disk = sitk.GetArrayFromImage(
        sitk.BinaryMorphologicalClosing(
            sitk.GetImageFromArray(wide.astype(np.uint8)), (CLOSING, CLOSING, 0)
        )
    )
    body = disk[:, CLOSING:-CLOSING, CLOSING:-CLOSING] > 0
    labels, count = ndimage.label(body)
    if count == 0:
        raise UnusableInput("mask", "no body was found in the image")
    sizes = ndimage.sum_labels(body, labels, range(1, count + 1))
    body = labels == 1 + int(np.argmax(sizes))
    for index in range(body.shape[0]):
        body[index] = ndimage.binary_fill_holes(body[index])
    return np.asarray(body, dtype=bool)


def _find_noise(smooth: FloatArray, below: float) -> float:
    """Return the commonest value of the dark rim of the field of view: the noise of air.

    Minus infinity where nothing is dark and above zero, as in a CT.
    """
    rim = smooth.copy()
    rim[:, RIM:-RIM, RIM:-RIM] = 0
    # what a scanner or a resampling wrote about the image is no noise
    dark = rim[(rim > below / NOISE_BINS) & (rim < below)]
    if dark.size == 0:
        return -np.inf
    counts, edges = np.histogram(dark, NOISE_BINS, (0.0, below))
    commonest = int(np.argmax(counts))
    return float(edges[commonest] + edges[commonest + 1]) / 2


def describe_transform(transform: sitk.Transform) -> dict[str, Any]:
    """Return a transform as JSON-able parameters that rebuild it exactly."""
    return {
        "kind": transform.GetName(),
        "parameters": [float(p) for p in transform.GetParameters()],
        "fixed_parameters": [float(p) for p in transform.GetFixedParameters()],
    }


def rebuild_transform(described: Mapping[str, Any]) -> sitk.Transform:
    """Return the rigid transform that `describe_transform` told of."""
    transform = sitk.Euler3DTransform()
    transform.SetFixedParameters(described["fixed_parameters"])
    transform.SetParameters(described["parameters"])
    return transform
