"""Two hundred geometries of series, drawn from a seed: how planes lie and how they are kept.

Each case is a pair of series of one body: the reference, and another contrast that was taken on
planes of its own after the body had moved. Some kinds are no volume and must be refused.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from geometries.scene import Points, Scene, draw_scene

MODEL_SPACING_MM = 3.0
"""Of the model grid."""
FIELD_MM = 93.0
SOUND, LONG = 200, 4
ORIENTATIONS = ("axial", "coronal", "sagittal", "oblique", "any")
MODALITIES = ("MR", "CT", "PT", "MR")
PARTS_OF_SLICE = (-1 / 3, 0.0, 1 / 3)
SAME_GRID_SHARE = 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """How the planes of a series lie.

    Attributes:
        axes: (3, 3), the columns are the unit directions of slices, rows and columns of the array.
        spacing: between slices, rows and columns, in mm.
        shape: slices, rows, columns.
        middle: of the volume, LPS mm.
        shift: (slices, 3), by how much each plane lies off its place, in mm.
    """

    axes: Points
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    middle: Points
    shift: Points | None = None

    def points(self) -> Points:
        """Return the place of every voxel, (slices, rows, columns, 3)."""
        steps = [
            np.multiply.outer((np.arange(n) - (n - 1) / 2) * s, axis)
            for n, s, axis in zip(self.shape, self.spacing, self.axes.T, strict=True)
        ]
        along = steps[0] if self.shift is None else steps[0] + self.shift
        return self.middle + along[:, None, None] + steps[1][:, None] + steps[2]

    def sample(self, value: Callable[[Points], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the mean of a function over each slice, (slices, rows, columns)."""
        points, through = self.points(), self.axes[:, 0] * self.spacing[0]
        return np.mean([value(points + part * through) for part in PARTS_OF_SLICE], axis=0)

    def origins(self) -> Points:
        """Return the place of the first voxel of each plane, (slices, 3)."""
        first: Points = self.points()[:, 0, 0]
        return first


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How the pixels of a series are kept.

    Attributes:
        modality: MR, CT or PT.
        bits: stored, in 8 or 16 allocated.
        slopes: Rescale Slope of each slice.
        intercept: Rescale Intercept.
        multi_frame: one enhanced image instead of one image per slice.
        order: of the slices in files and Instance Numbers.
        digits: decimals of positions and cosines, as some scanners round them; None for all.
    """

    modality: str
    bits: int
    signed: bool
    slopes: tuple[float, ...]
    intercept: float
    multi_frame: bool
    order: tuple[int, ...]
    digits: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """One case.

    Attributes:
        name: kind and number.
        offset: of the body between the series: (turn (3, 3), shift in mm), about its center.
        missing: slices of the reference that are lost.
        same_grid: whether the model grid is the grid of the reference.
    """

    name: str
    scene: Scene
    reference: Planes
    moving: Planes
    reference_storage: Storage
    moving_storage: Storage
    offset: tuple[Points, Points]
    missing: tuple[int, ...]
    same_grid: bool

    def move(self, points: Points) -> Points:
        """Return where points of the body are when the other contrast is taken."""
        turn, shift = self.offset
        center = self.scene.center
        return (points - center) @ turn.T + center + shift

    def move_back(self, points: Points) -> Points:
        """Return where points of the moved body were for the reference."""
        turn, shift = self.offset
        center = self.scene.center
        return (points - shift - center) @ turn + center


BASES = {
    "axial": np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float).T,
    "coronal": np.array([[0, 1, 0], [0, 0, -1], [1, 0, 0]], float).T,
    "sagittal": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], float).T,
}
"""Columns: directions of slices, rows and columns as images are hung."""


def rotation(vector: Points) -> Points:
    """Return the turn about an axis by the length of a vector, in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / max(angle, 1e-12)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def draw_axes(generator: np.random.Generator, kind: str) -> Points:
    """Return the directions of slices, rows and columns: right-handed for slices that go up."""
    if kind == "any":
        return rotation(generator.normal(0, 1, 3) * 2) @ BASES["axial"]
    if kind == "oblique":
        base = BASES[str(generator.choice(sorted(BASES)))]
        return rotation(generator.normal(0, 0.25, 3)) @ base
    return BASES[kind]


def draw_planes(generator: np.random.Generator, axes: Points, *, same_grid: bool) -> Planes:
    """Return planes of about 11 cm, on which the model grid keeps every place or none in plane."""
    if same_grid:
        fine = MODEL_SPACING_MM * generator.uniform(0.93, 1.07, 2)
        thick = (
            generator.choice([1.0, 1.82, 1.82, 2.0, 2.0])
            * MODEL_SPACING_MM
            * generator.uniform(0.96, 1.04)
        )
    else:
        fine = np.repeat(generator.uniform(2.4, 4.2), 2) * generator.uniform(0.93, 1.07, 2)
        if np.abs(fine / MODEL_SPACING_MM - 1).min() < 0.13:
            fine = fine * 1.3
        thick = (
            generator.uniform(2.3, 3.5) if generator.random() < 0.2 else generator.uniform(4.0, 5.8)
        )
    spacing = (float(thick), float(fine[0]), float(fine[1]))
    shape = [round(FIELD_MM * generator.uniform(0.95, 1.15) / s) for s in spacing]
    return Planes(
        axes=axes,
        spacing=spacing,
        shape=(shape[0], shape[1], shape[2]),
        middle=np.zeros(3),
    )


def draw_storage(generator: np.random.Generator, modality: str, slices: int) -> Storage:
    """Return how a scanner might keep a series."""
    bits = int(generator.choice([8, 12, 16] if modality == "MR" else [12, 16]))
    signed = bool(generator.integers(2)) if modality != "PT" else True
    reach = (1 << (bits - signed)) - 1
    slopes, intercept = np.ones(slices), 0.0
    if modality == "CT":
        slope, intercept = [(1.0, -1024.0), (1.0, 0.0), (0.5, -1024.0)][int(generator.integers(3))]
        signed = signed or intercept == 0
        if slope != 1:
            bits = 16
        slopes = np.full(slices, slope)
    elif modality == "PT":
        bits = 16
        slopes = np.round(generator.uniform(0.6, 0.9, slices) * 9.5 / 32767, 9)
    elif bits == 8 or generator.integers(2):
        slope = float(np.round(generator.uniform(0.7, 1.5) * 2000 / reach, 6))
        slopes, intercept = np.full(slices, slope), float(generator.choice([0, -20, 7.5]))
    order = {
        0: np.arange(slices),
        1: np.arange(slices)[::-1],
        2: generator.permutation(slices),
    }[int(generator.integers(3))]
    return Storage(
        modality=modality,
        bits=bits,
        signed=signed,
        slopes=tuple(float(s) for s in slopes),
        intercept=intercept,
        multi_frame=bool(generator.random() < 0.4) and modality != "PT",
        order=tuple(int(k) for k in order),
        digits=int(generator.choice([4, 5])) if generator.random() < 0.1 else None,
    )


def draw_case(seed: int, *, long: bool = False) -> Geometry:
    """Return the sound case of a seed; a long one has many thin slices."""
    generator = np.random.default_rng(seed)
    orientation = ORIENTATIONS[seed % 5]
    modality = MODALITIES[seed // 5 % 4]
    same_grid = not long and bool(generator.random() < SAME_GRID_SHARE)
    axes = draw_axes(generator, orientation)
    if generator.integers(2):  # slices go down; rows and columns stay
        axes = axes @ np.diag([-1.0, 1, 1])
    planes = draw_planes(generator, axes, same_grid=same_grid)
    if long:
        planes = replace(planes, spacing=(1.9, *planes.spacing[1:]), shape=(58, *planes.shape[1:]))
    scene = draw_scene(generator, axes, np.array(planes.shape) * planes.spacing)
    planes = replace(planes, middle=scene.center + generator.uniform(-3, 3, 3))
    turn, shift = rotation(generator.normal(0, 0.03, 3)), generator.uniform(-5, 5, 3)
    own_axes = draw_axes(generator, ORIENTATIONS[int(generator.integers(4))])
    moving = replace(
        draw_planes(generator, own_axes, same_grid=True),
        middle=scene.center + shift,
    )
    return Geometry(
        name=f"{seed:03d} {orientation} {modality}",
        scene=scene,
        reference=planes,
        moving=moving,
        reference_storage=draw_storage(generator, modality, planes.shape[0]),
        moving_storage=draw_storage(generator, "MR", moving.shape[0]),
        offset=(turn, shift),
        missing=(int(generator.integers(5, 50)),) if long else (),
        same_grid=same_grid,
    )


def draw_sound_cases() -> list[Geometry]:
    """Return every case that must come through."""
    some = [draw_case(seed) for seed in range(SOUND)]
    return some + [draw_case(seed, long=True) for seed in range(SOUND, SOUND + LONG)]


def draw_faulty_cases() -> Iterator[tuple[Geometry, str]]:
    """Yield cases that are no volume, with the code that they must be refused with."""
    for seed, (code, spoil) in enumerate(sorted(FAULTS.items()) * 4, SOUND + LONG):
        case = draw_case(seed)
        yield (
            replace(
                case,
                name=f"{case.name} {code}",
                reference=replace(case.reference, shift=spoil(case.reference)),
            ),
            code.split(",")[0],
        )


def _tilt(planes: Planes) -> Points:
    """Every slice lies some degrees beside the normal through the one before."""
    return np.multiply.outer(np.arange(planes.shape[0]) * 0.15, planes.axes[:, 1])


def _space_unevenly(planes: Planes) -> Points:
    """The upper slices lie farther apart."""
    upper = np.maximum(np.arange(planes.shape[0]) - planes.shape[0] // 2, 0)
    return np.multiply.outer(upper * 0.1 * planes.spacing[0], planes.axes[:, 0])


def _lose_neighbors(planes: Planes) -> Points:
    """Two slices are not there."""
    upper = np.arange(planes.shape[0]) > planes.shape[0] // 2
    return np.multiply.outer(upper * 2 * planes.spacing[0], planes.axes[:, 0])


def _repeat(planes: Planes) -> Points:
    """A slice lies where another is."""
    step = np.arange(planes.shape[0]) == planes.shape[0] // 2
    return np.multiply.outer(step * planes.spacing[0], planes.axes[:, 0])


FAULTS: Mapping[str, Callable[[Planes], Points]] = {
    "gantry_tilt": _tilt,
    "slice_gap": _space_unevenly,
    "slice_gap, two slices lost": _lose_neighbors,
    "duplicate_position": _repeat,
}
"""What makes planes no volume, by the code of the refusal (what follows the comma is a remark)."""
