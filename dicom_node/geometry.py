"""Whether planes make a volume: equal, parallel, evenly spaced (PS3.3 C.7.6.2), or why they do not.

Pure numbers, so that a header alone (`series`, before any job) and a decoded series (`volumes`) are
judged by the same rules. The reasons are those of the reliability catalogue, rows D22 to D26.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dicom_node.errors import UnusableStudy

ORIENTATION_TOLERANCE = 1e-3
"""Per direction cosine: rounding by scanners (row D23)."""
STEP_TOLERANCE = 0.01
"""Relative to the median step between slices (row D24)."""
SAME_PLACE_MM = 0.01
"""Some scanners write positions with two decimals."""
FEWEST_SLICES = 4
"""Fewer are a localizer, or a sample of a volume."""
MISSING_SHARE = 0.02
"""Of the slices may be missing, each between two that are there: archives lose single slices, and a
study of two hundred good ones is not refused for it."""
WIDEST_HOLE_MM = 5.0
"""Between the two neighbors of a missing slice; thick clinical slices are this far apart anyway."""
TILT_TOLERANCE = 0.5
"""Pixels that a slice may lie beside the normal through the first: farther off, the affine of the
volume would put its voxels into their neighbors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """How planes lie.

    Attributes:
        order: indices of the planes, the one farthest along the normal first.
        slots: slice number of each plane in that order; a number that is left out is a hole.
        spacing: between slice centers, in mm.
    """

    order: tuple[int, ...]
    slots: tuple[int, ...]
    spacing: float


def stack(positions: ArrayLike, orientations: ArrayLike, pixel_spacings: ArrayLike) -> Stack:
    """Return how planes lie on their normal.

    Args:
        positions: Image Position (Patient), (planes, 3) in mm.
        orientations: Image Orientation (Patient), (planes, 6).
        pixel_spacings: Pixel Spacing, (planes, 2) in mm.

    Raises:
        UnusableStudy: `geometry_missing`, `pixel_geometry`, `orientation`, `one_slice`,
            `duplicate_position`, `slice_gap`, `gantry_tilt`.
    """
    places = np.asarray(positions, np.float64)
    pixels = np.asarray(pixel_spacings, np.float64)
    if pixels.min() <= 0:
        raise UnusableStudy("geometry_missing", "Pixel Spacing is not positive")
    normal = find_normal(orientations)
    if np.ptp(pixels, axis=0).max() > STEP_TOLERANCE * pixels.min():
        raise UnusableStudy("pixel_geometry", "Pixel Spacing differs inside the series")
    if len(places) < FEWEST_SLICES:
        raise UnusableStudy("one_slice", f"{len(places)} slices; a volume has {FEWEST_SLICES}")

    heights = places @ normal
    order = np.argsort(-heights, kind="stable")
    slots, spacing = _find_slots(heights[order])
    offsets = places - places[order[0]]
    beside = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1).max()
    if beside > TILT_TOLERANCE * pixels.min():
        raise UnusableStudy("gantry_tilt", f"slices lie up to {beside:.2f} mm beside their normal")
    return Stack(order=tuple(order.tolist()), slots=slots, spacing=spacing)


def find_normal(orientations: ArrayLike) -> NDArray[np.float64]:
    """Return the common unit normal of planes.

    Raises:
        UnusableStudy: `orientation`, when there is none.
    """
    planes = np.asarray(orientations, np.float64)
    row, column = planes[0, :3], planes[0, 3:]
    skew = (abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
    if max(skew) > ORIENTATION_TOLERANCE:
        raise UnusableStudy("orientation", "Image Orientation is not orthonormal")
    if np.abs(planes - planes[0]).max() > ORIENTATION_TOLERANCE:
        raise UnusableStudy("orientation", "the images of the series are not parallel")
    normal = np.array(  # numpy.cross takes twenty times as long for one pair
        [
            row[1] * column[2] - row[2] * column[1],
            row[2] * column[0] - row[0] * column[2],
            row[0] * column[1] - row[1] * column[0],
        ]
    )
    return normal / math.sqrt(normal @ normal)


def _find_slots(heights: NDArray[np.float64]) -> tuple[tuple[int, ...], float]:
    """Return the slice number of each height, highest first, and the spacing."""
    steps = -np.diff(heights)
    step = float(np.median(steps))
    if steps.min() < SAME_PLACE_MM:
        raise UnusableStudy("duplicate_position", "two images of the series share a position")
    strides = np.rint(steps / step).astype(int)
    slots = np.concatenate([[0], np.cumsum(strides)])
    missing = slots[-1] - len(steps)
    tolerance = max(STEP_TOLERANCE * step, SAME_PLACE_MM)
    if (
        np.abs(steps - strides * step).max() > tolerance
        or missing > MISSING_SHARE * (slots[-1] + 1)
        or (missing and (strides.max() > 2 or steps.max() > WIDEST_HOLE_MM + tolerance))  # noqa: PLR2004
    ):
        raise UnusableStudy(
            "slice_gap", f"slices are {steps.min():.3f} to {steps.max():.3f} mm apart"
        )
    return tuple(slots.tolist()), float((heights[0] - heights[-1]) / slots[-1])
