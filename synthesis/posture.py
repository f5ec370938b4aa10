"""Which way up a head lies, by the shape of its brain.

The mask, about its centroid, is compared with the mean mask of the training people in every way in
which three axes can be exchanged and reversed, each nodding by up to 20 degrees. Left and right
cannot be told apart: a brain is nearly its own mirror image.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.types import MaskArray

SPACING_MM = 10.0
SIZE = 20
"""Voxels along each axis: 20 cm, an adult brain with room."""
NODS_DEGREES = (-20.0, -10.0, 0.0, 10.0, 20.0)
STRAIGHT = NODS_DEGREES.index(0.0)
SHIFTS = (-1, 0, 1)
"""Voxels along slices and rows: the centroid of a brain that is cut off lies elsewhere."""
ORDERS = tuple(itertools.permutations(range(3)))
SIDES = tuple(itertools.product((1, -1), repeat=3))

Shape = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Posture:
    """How alike a mask is to the mean one (correlation), as it lies and in the best other way.

    Attributes:
        upright: with its axes as they are; left and right may be exchanged.
        turned: with axes exchanged or reversed.
        how: the other way, in words.
    """

    upright: float
    turned: float
    how: str


def fit_shape(masks: Sequence[tuple[MaskArray, tuple[float, float, float]]]) -> Shape | None:
    """Return the mean mask, or None where it does not tell how these very people lie.

    Each must be told upright by the mean of the others. Limbs are not, and a picture has no depth.

    Args:
        masks: of the training people on canonical grids, with their spacing in mm.
    """
    if len(masks) == 1 or any(1 in mask.shape for mask, _ in masks):
        return None
    shapes = [_nod(mask, spacing) for mask, spacing in masks]
    for number, shape in enumerate(shapes):
        others = [s[STRAIGHT] for k, s in enumerate(shapes) if k != number]
        posture = _compare(shape, np.mean(others, axis=0))
        if posture.turned >= posture.upright:
            return None
    mean: Shape = np.mean([shape[STRAIGHT] for shape in shapes], axis=0)
    return mean


def find_posture(mask: MaskArray, spacing: tuple[float, float, float], mean: Shape) -> Posture:
    """Compare a mask (slices, rows, columns; towards head, back, left) with the mean one."""
    return _compare(_nod(mask, spacing), mean)


def _nod(mask: MaskArray, spacing: tuple[float, float, float]) -> list[Shape]:
    """Return the mask on the coarse grid, nodding by each of the angles."""
    smooth = ndimage.gaussian_filter(
        mask.astype(np.float32), [0.4 * SPACING_MM / s for s in spacing]
    )
    center = ndimage.center_of_mass(mask)
    along = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
    up, back, left = np.meshgrid(along, along, along, indexing="ij")
    shapes = []
    for angle in map(math.radians, NODS_DEGREES):
        places = (
            math.cos(angle) * up - math.sin(angle) * back,
            math.sin(angle) * up + math.cos(angle) * back,
            left,
        )
        index = [c + p / s for c, p, s in zip(center, places, spacing, strict=True)]
        shapes.append(ndimage.map_coordinates(smooth, index, order=1).astype(np.float64))
    return shapes


def _compare(shapes: Sequence[Shape], mean: Shape) -> Posture:
    flat = (mean - mean.mean()) / mean.std()
    moved = [np.roll(flat, shift, (0, 1)).ravel() for shift in itertools.product(SHIFTS, SHIFTS)]
    alike: dict[str, float] = {}
    for order, sides in itertools.product(ORDERS, SIDES):
        turned = [
            s.transpose(order)[tuple(slice(None, None, side) for side in sides)] for s in shapes
        ]
        rows = np.array([((t - t.mean()) / t.std()).ravel() for t in turned])
        best = float((rows @ np.array(moved).T).max()) / rows.shape[1]
        how = _describe(order, sides)
        alike[how] = max(best, alike.get(how, -1.0))
    upright = alike.pop("")
    how = max(alike, key=lambda way: alike[way])
    return Posture(upright=upright, turned=alike[how], how=how)


def _describe(order: tuple[int, ...], sides: tuple[int, ...]) -> str:
    """Return what is wrong with a head that lies so, empty for nothing but left and right."""
    if order != ORDERS[0]:
        return "with its axes exchanged"
    ways = [
        name
        for name, side in zip(("upside down", "back to front"), sides, strict=False)
        if side < 0
    ]
    return " and ".join(ways)
