"""Whether two contrasts of one person agree better where they lie than moved or mirrored.

Sources are registered before they get here. This looks at the outcome by another measure, on a
coarse grid inside the mask: normalized mutual information (Studholme 1999) where the second
contrast lies, with it moved by 10 mm along each axis, and with it mirrored. What fits better
elsewhere is not where it should be, whatever the registration says of itself. Mirrored is at the
plane at which the first contrast is most alike to its own mirror image, bettered by what the two
have in common, so that a head that lies askew is mirrored where it lies.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from synthesis.types import FloatArray, MaskArray

COARSE_MM = 3.0
MOVED_MM = 10.0
BINS = 24
FEWEST_VOXELS = 2000
ALL_SEEN = 0.99
"""Of what a voxel between voxels is made of, this much lies in the mask."""
FIRST_SLOPES = (-0.08, 0.0, 0.08)
FIRST_OFFSETS_MM = (-6.0, 0.0, 6.0)
FIRST_STEPS = (0.05, 0.05, 3.0)
TRIALS = 40
"""Of each search for a plane, after the first planes: they change the figure by percents."""
PLACES_OF_SEARCH = 6000
LEAST_SHARE = 0.1
"""Of the places, that a mirror image covers."""
NOTHING = 1e-9

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How much better two contrasts agree where they lie; below 1 they agree better elsewhere.

    Attributes:
        moved: than at the best of six places 10 mm away.
        mirrored: than with the second one mirrored.
    """

    moved: float
    mirrored: float


def measure_agreement(
    fixed: FloatArray, moving: FloatArray, mask: MaskArray, spacing: tuple[float, float, float]
) -> Agreement | None:
    """Compare two contrasts on one canonical grid; None where too little is covered to tell.

    Args:
        fixed: normalized, (slices, rows, columns) towards head, back and left.
        moving: the same of another contrast.
        mask: where both mean something.
        spacing: of the grid in mm.
    """
    pair = _Pair(fixed, moving, mask, spacing)
    if len(pair.places) < FEWEST_VOXELS:
        return None
    here = pair.agree(pair.places)
    away = max(
        pair.agree(pair.places + way * MOVED_MM * axis) for axis in np.eye(3) for way in (-1, 1)
    )
    mirrored = pair.agree(pair.mirror(pair.places, pair.find_plane()))
    return Agreement(moved=here / max(away, NOTHING), mirrored=here / max(mirrored, NOTHING))


class _Pair:
    """Two contrasts on a coarse grid; places are in mm from the grid's first voxel.

    A plane is told by the slopes of its normal along slices and rows, and by how many mm it lies to
    the left of the middle.
    """

    def __init__(
        self,
        fixed: FloatArray,
        moving: FloatArray,
        mask: MaskArray,
        spacing: tuple[float, float, float],
    ) -> None:
        steps = [max(1, round(COARSE_MM / s)) for s in spacing]
        thin = tuple(slice(step // 2, None, step) for step in steps)
        smoothing = [0.4 * (step - 1) for step in steps]
        self._first, self._second = (
            ndimage.gaussian_filter(np.where(mask, each, 0), smoothing)[thin]
            for each in (fixed, moving)
        )
        self._inside = mask[thin].astype(np.float32)
        self._apart = np.array([s * step for s, step in zip(spacing, steps, strict=True)])
        self.places: Array = np.argwhere(self._inside > 0) * self._apart
        self._values = self._first[self._inside > 0]

    def agree(self, where: Array, few: slice = slice(None)) -> float:
        """Return what the first contrast has in common with the second at other places."""
        values, seen = self._look(self._second, where)
        return _share_information(self._values[few][seen], values[seen])

    def mirror(self, places: Array, plane: Array) -> Array:
        """Return the places mirrored at a plane."""
        normal = np.array([plane[0], plane[1], 1.0])
        normal /= np.linalg.norm(normal)
        low, high = self.places.min(axis=0), self.places.max(axis=0)
        through = (low + high) / 2 + np.array([0.0, 0.0, plane[2]])
        mirrored: Array = places - 2 * np.outer((places - through) @ normal, normal)
        return mirrored

    def find_plane(self) -> Array:
        """Return the plane at which the second contrast, mirrored, fits the first."""
        few = slice(None, None, max(1, len(self.places) // PLACES_OF_SEARCH))
        places = self.places[few]

        def asymmetry(plane: Array) -> float:
            values, seen = self._look(self._first, self.mirror(places, plane))
            if seen.mean() < LEAST_SHARE:
                return 1.0
            # what is mirrored out of the mask counts against the plane
            alike = np.corrcoef(self._values[few][seen], values[seen])[0, 1]
            return 1.0 - float(seen.mean() * alike)

        def misfit(plane: Array) -> float:
            return -self.agree(self.mirror(places, plane), few)

        planes = [
            np.array([along_slices, along_rows, offset])
            for along_slices in FIRST_SLOPES
            for along_rows in FIRST_SLOPES
            for offset in FIRST_OFFSETS_MM
        ]
        return _search(misfit, _search(asymmetry, min(planes, key=asymmetry)))

    def _look(self, image: FloatArray, where: Array) -> tuple[Array, MaskArray]:
        """Return an image's values at places, and which of these lie in the mask."""
        index = (where / self._apart).T
        seen = ndimage.map_coordinates(self._inside, index, order=1) > ALL_SEEN
        return ndimage.map_coordinates(image, index, order=1), seen


def _search(cost: Callable[[Array], float], start: Array) -> Array:
    simplex = np.array([start, *(start + step for step in np.diag(FIRST_STEPS))])
    settings = {"initial_simplex": simplex, "maxfev": TRIALS}
    found: Array = optimize.minimize(cost, start, method="Nelder-Mead", options=settings).x
    return found


def _share_information(a: Array, b: Array) -> float:
    """Return by how much the normalized mutual information of two lists of values exceeds 1."""
    if len(a) < BINS * BINS:
        return 0.0
    joint = np.histogram2d(_rank(a), _rank(b), bins=BINS)[0]
    p = joint / joint.sum()
    return (_entropy(p.sum(0)) + _entropy(p.sum(1))) / max(_entropy(p.ravel()), NOTHING) - 1


def _rank(values: Array) -> Array:
    low, high = np.percentile(values, [1, 99])
    ranked: Array = np.clip((values - low) / max(float(high - low), NOTHING), 0, 1)
    return ranked


def _entropy(p: Array) -> float:
    q = p[p > 0]
    return float(-(q * np.log(q)).sum())
