"""What the pixels of a head tell of its contrast: whether its fluid is dark or bright.

A check for series whose headers are silent, asked for by `assembly`. Cerebrospinal fluid is far
darker than brain in T1w and FLAIR, and far brighter in T2w; no scale of intensities is needed to
see that. Only the middle of the head is looked at, as deep below its surface as the ventricles, so
that scalp, skull and the air of the sinuses say nothing. What is not clear is not said.
"""

from enum import StrEnum
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

COARSE_MM = 3.0
"""Spacing at which a volume is looked at; ventricles are wider."""
FOREGROUND = 0.12
"""Share of the 98th percentile above which a voxel is no air."""
DEPTH_MM = 24.0
"""Below the surface of the head, or of a brain that was stripped of it."""
TOP_MM, BOTTOM_MM = 25.0, 85.0
"""Below the vertex, between which the lateral ventricles lie."""
FEWEST_VOXELS = 1000
"""Of the coarse volume, 27 ml: a smaller middle is none of a head."""
VERY_DARK, DARK, EVEN, BRIGHT = 0.45, 0.6, 1.5, 1.8
"""Against the median of the middle: its darkest hundredth in T1w and FLAIR is below `VERY_DARK`, or
below `DARK` with a brightest fiftieth below `EVEN` (lesions are bright in FLAIR); in T2w the
darkest is not below `DARK` and the brightest fiftieth is above `BRIGHT`. `make labels` measures on
real heads how often that holds."""


class Fluid(StrEnum):
    """How the fluid of a head looks beside its brain."""

    DARK = "dark"
    BRIGHT = "bright"


def find_fluid(array: NDArray[np.floating[Any]], affine: NDArray[np.float64]) -> Fluid | None:
    """Return how the fluid of an MR of a head looks, or None where that is not clear.

    Args:
        array: three axes, in any unit.
        affine: (4, 4) from index to patient coordinates in mm, whose third axis points to the head
            (LPS and RAS alike).
    """
    coarse, spacing = _coarsen(*_point_up(array, affine))
    positive = coarse[coarse > 0]
    if not positive.size:
        return None
    head = _fill(coarse > FOREGROUND * np.percentile(positive, 98), spacing)
    if not head.any():
        return None
    depth = SimpleITK.GetArrayFromImage(
        SimpleITK.SignedMaurerDistanceMap(
            _to_image(head, spacing),
            insideIsPositive=True,
            squaredDistance=False,
            useImageSpacing=True,
        )
    )
    levels = np.flatnonzero(head.any(axis=(1, 2)))
    below = (levels[-1] - np.arange(len(head))) * spacing[0]
    is_middle = (depth >= DEPTH_MM) & ((below >= TOP_MM) & (below <= BOTTOM_MM))[:, None, None]
    middle = coarse[is_middle]
    if middle.size < FEWEST_VOXELS:
        return None
    darkest, median, brightest = np.percentile(middle, (1, 50, 98))
    if median <= 0:
        return None
    if darkest <= VERY_DARK * median or (darkest <= DARK * median and brightest <= EVEN * median):
        return Fluid.DARK
    return Fluid.BRIGHT if darkest > DARK * median and brightest >= BRIGHT * median else None


Spacing = tuple[float, float, float]


def _point_up(
    array: NDArray[np.floating[Any]], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], Spacing]:
    """Return the array with its axis that is nearest to the body's first and rising."""
    spacings = np.linalg.norm(affine[:3, :3], axis=0)
    rise = affine[2, :3] / spacings
    axis = int(np.abs(rise).argmax())
    turned = np.moveaxis(np.asarray(array, np.float32), axis, 0)
    if rise[axis] < 0:
        turned = turned[::-1]
    rest = [float(spacings[k]) for k in range(3) if k != axis]
    return turned, (float(spacings[axis]), rest[0], rest[1])


def _coarsen(array: NDArray[np.float32], spacing: Spacing) -> tuple[NDArray[np.float32], Spacing]:
    """Return the means of blocks of about `COARSE_MM`."""
    steps = [max(1, round(COARSE_MM / step)) for step in spacing]
    sizes = [size // step for size, step in zip(array.shape, steps, strict=True)]
    cropped = array[tuple(slice(n * k) for n, k in zip(sizes, steps, strict=True))]
    blocks = cropped.reshape(sizes[0], steps[0], sizes[1], steps[1], sizes[2], steps[2])
    coarse = (spacing[0] * steps[0], spacing[1] * steps[1], spacing[2] * steps[2])
    return blocks.mean(axis=(1, 3, 5)), coarse


def _fill(mask: NDArray[np.bool_], spacing: Spacing) -> NDArray[np.bool_]:
    """Return the largest part of a mask without the holes in its levels: dark fluid is inside."""
    parts = SimpleITK.RelabelComponent(SimpleITK.ConnectedComponent(_to_image(mask, spacing)))
    closed = SimpleITK.BinaryMorphologicalClosing(parts == 1, [3, 3, 3])
    levels = [
        SimpleITK.GetArrayFromImage(SimpleITK.BinaryFillhole(closed[:, :, k]))
        for k in range(closed.GetDepth())
    ]
    return np.stack(levels).astype(bool)


def _to_image(mask: NDArray[np.bool_], spacing: Spacing) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    return image
