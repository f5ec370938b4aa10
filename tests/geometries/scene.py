"""A body whose value is known at every point of space, so that any grid of it has an exact truth.

Inside a rounded box the value is a linear ramp, with a Gaussian blob in
the middle and balls towards the corners; outside is air. A second
contrast shows the same body by another curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(..., 3), LPS millimetres."""

ROUNDNESS = 4
"""Power of the rounded box: 2 is an ellipsoid, more is a box."""
BLOB_MM = 5.0
"""Standard deviation of a blob."""
SURFACE_MM = 3.0
"""Over which the body fades into air, as every scanner shows it."""
BLOB_HEIGHT = 0.4
BLOB_REACH = 5.0
"""Standard deviations from its center where the blob is nothing."""
CLEAR_MM = 16.5
"""From a surface to where interpolation and smoothing do not feel it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One body. Values are without unit: air is 0, tissue lies between 0.2 and 1.4.

    Attributes:
        center: of the body, and of its blob.
        axes: (3, 3), the columns are the unit axes of the body.
        half_mm: half the lengths of the body along its axes.
        gradient: (3,), of the ramp, per mm.
        balls: center, radius and step of each; they tell registration where the body is.
    """

    center: Points
    axes: Points
    half_mm: Points
    gradient: Points
    balls: Sequence[tuple[Points, float, float]]

    def depth(self, points: Points) -> NDArray[np.float64]:
        """Return about how many mm a point lies below the surface; negative outside."""
        scaled = np.abs((points - self.center) @ self.axes) / self.half_mm
        radius = (scaled**ROUNDNESS).sum(axis=-1) ** (1 / ROUNDNESS)
        return (1 - radius) * float(self.half_mm.min())

    def ramp(self, points: Points) -> NDArray[np.float64]:
        """Return what the body shows where there is neither blob nor ball."""
        return 0.7 + (points - self.center) @ self.gradient

    def is_ramp(self, points: Points) -> NDArray[np.bool_]:
        """Return where nothing but the ramp reaches."""
        clear = np.linalg.norm(points - self.center, axis=-1) > BLOB_REACH * BLOB_MM
        for place, radius, _ in self.balls:
            clear &= np.linalg.norm(points - place, axis=-1) > radius + CLEAR_MM
        return clear & (self.depth(points) > CLEAR_MM)

    def value(self, points: Points, other: bool = False) -> NDArray[np.float64]:
        """Return one contrast, or the other: no ramp, and what is bright is dark."""
        squared = ((points - self.center) ** 2).sum(axis=-1)
        tissue = BLOB_HEIGHT * np.exp(-squared / (2 * BLOB_MM**2))
        for place, radius, step in self.balls:
            away = np.linalg.norm(points - place, axis=-1)
            tissue = tissue + step * _soften(radius - away)
        tissue = 0.8 - tissue if other else self.ramp(points) + tissue
        return _soften(self.depth(points)) * tissue


def _soften(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 0 outside a surface and 1 inside; every scanner shows something between."""
    return np.clip(0.5 + depth / SURFACE_MM, 0, 1)


def draw_scene(generator: np.random.Generator, axes: Points, field_mm: Points) -> Scene:
    """Return a body that leaves some air in a field of view.

    Args:
        generator: draws everything.
        axes: (3, 3), the columns are the unit axes of the field of view.
        field_mm: its lengths along them.
    """
    half = field_mm * generator.uniform(0.38, 0.44, 3)
    center = generator.uniform(-60, 60, 3)
    gradient = axes @ (generator.uniform(0.01, 0.02, 3) * generator.choice([-1, 1], 3) / half)
    balls = []
    for corner in ((1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1)):
        place = center + axes @ (half * corner * generator.uniform(0.45, 0.75, 3))
        step = float(generator.uniform(0.25, 0.4) * generator.choice([-1, 1]))
        balls.append((place, float(generator.uniform(7, 10)), step))
    return Scene(center=center, axes=axes, half_mm=half, gradient=gradient, balls=balls)
