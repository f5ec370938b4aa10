"""Pictures of one exposure (radiograph, ultrasound, photograph) as volumes without a place.

Rows and columns are those of the detector or the camera; there is no position in the patient, and
none is made up. A picture is a stack of its samples: one plane of gray, or red, green and blue,
each of which a method answers by itself. Whoever sees the affine sees detector millimeters.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from synthesis.errors import UnusableInput
from synthesis.preprocessing import KEEP_SPACING_WITHIN
from synthesis.types import ContrastLabel, Volume

FLAT_MODALITIES = frozenset({"CR", "DX", "US", "XC"})
SAMPLES = (1, 3)
"""Of a pixel: gray, or red, green and blue."""
SHORTEST_SIDE = 16
"""Pixels; less is no picture."""
DEPTH_MM = 10.0
"""What stands for the distance of planes that are no neighbors: thick, so that nothing looks along
it."""
MARGIN = 1
"""Pixels about a picture that are outside its mask: the gate measures the depth below an edge."""

T = TypeVar("T", bound=np.generic)


def make_volume(array: NDArray[np.float32], spacing: tuple[float, float]) -> Volume:
    """Return a picture as a volume.

    Args:
        array: (samples, rows, columns).
        spacing: of rows and of columns, in mm on the detector; 1 where it is unknown.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.diag([spacing[1], spacing[0], DEPTH_MM])[:, ::-1]
    return Volume(array=array, affine=affine, coordinate_system="PATIENT")


def frame(array: NDArray[T]) -> NDArray[T]:
    """Return the planes with a margin of zeros."""
    return np.pad(array, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))


def check_picture(label: ContrastLabel, array: NDArray[np.float32]) -> None:
    """Check that a source is a picture.

    Raises:
        UnusableInput: `picture`.
    """
    if array.ndim != 3 or len(array) not in SAMPLES or min(array.shape[1:]) < SHORTEST_SIDE:  # noqa: PLR2004
        raise UnusableInput(
            "picture", f"{label} measures {array.shape}, wanted 1 or 3 planes of a picture"
        )


def check_same_grid(pictures: Mapping[ContrastLabel, sitk.Image]) -> None:
    """Check that pictures lie on one another: two exposures are not registered.

    Raises:
        UnusableInput: `exposures`.
    """
    grids = {(image.GetSize(), image.GetSpacing()) for image in pictures.values()}
    if len(grids) > 1:
        raise UnusableInput(
            "exposures", f"pictures of {sorted(pictures)} differ in size: they are not registered"
        )


def make_flat_grid(reference: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Return an empty image on the model grid of a picture, which lies in a margin."""
    size, spacing = list(reference.GetSize()), list(reference.GetSpacing())
    start = [0.0, 0.0, 0.0]
    for axis in (0, 1):
        if abs(spacing[axis] / spacing_mm - 1) > KEEP_SPACING_WITHIN:
            extent = size[axis] * spacing[axis]
            size[axis] = max(1, round(extent / spacing_mm))
            start[axis] = ((spacing_mm - spacing[axis]) + extent - size[axis] * spacing_mm) / 2
            spacing[axis] = spacing_mm
        start[axis] -= MARGIN * spacing[axis]
        size[axis] += 2 * MARGIN
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetOrigin(start)
    return grid
