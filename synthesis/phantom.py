"""A rendered multi-contrast head with known truth: tissues by formula, signals by equation.

Nested ellipsoids with a folded cortex, ventricles, deep gray matter, skull, fat, muscle, eyes and
lesions; the MR signal of each tissue follows from its T1, T2 and proton density by the spin echo
and inversion recovery equations (Haacke 1999, chapters 8 and 18), CT from its mean HU. Nothing of
it comes from a person.
"""

# ruff: noqa: PLR2004 - an anatomy is a list of measures in millimetres

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.types import ContrastLabel, FloatArray


class Tissue(NamedTuple):
    """T1 and T2 at 1.5 T in ms, relative proton density, mean HU, uptake of gadolinium 0 to 1."""

    t1: float
    t2: float
    density: float
    hu: float
    uptake: float = 0.0


TISSUES: dict[str, Tissue] = {
    "air": Tissue(1.0, 1.0, 0.0, -1000.0),
    "fluid": Tissue(4200.0, 1990.0, 1.0, 8.0),
    "gray": Tissue(950.0, 95.0, 0.86, 38.0),
    "white": Tissue(600.0, 78.0, 0.77, 30.0),
    "deep gray": Tissue(800.0, 82.0, 0.82, 36.0),
    "fat": Tissue(260.0, 70.0, 0.9, -90.0),
    "muscle": Tissue(900.0, 47.0, 0.85, 55.0),
    "bone": Tissue(400.0, 2.0, 0.12, 900.0),
    "marrow": Tissue(300.0, 60.0, 0.75, 300.0),
    "vessel": Tissue(1400.0, 160.0, 0.85, 50.0, uptake=1.0),
    "lesion": Tissue(1250.0, 170.0, 0.93, 26.0),
    "enhancing": Tissue(1200.0, 140.0, 0.92, 34.0, uptake=0.8),
}
NAMES = tuple(TISSUES)
TEXTURE = 0.05
GADOLINIUM_RATE = 3.5  # 1/s, added to 1/T1 at full uptake


class Sequence(NamedTuple):
    """Pulse sequence parameters in ms; `ti` is None for spin echo."""

    tr: float
    te: float
    ti: float | None = None
    gadolinium: bool = False


SEQUENCES: dict[str, Sequence] = {
    "T1w": Sequence(500.0, 12.0),
    "T1c": Sequence(500.0, 12.0, gadolinium=True),
    "T2w": Sequence(4500.0, 100.0),
    "PDw": Sequence(4500.0, 15.0),
    "FLAIR": Sequence(9000.0, 110.0, 2500.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A rendered head.

    Attributes:
        images: label to float32 (slices, rows, columns), axial, slices towards the head, rows
            towards the back, columns towards the left; MR in 0 to about 1000, CT in HU.
        tissues: uint8 index into `NAMES`, same shape.
        spacing: (slices, rows, columns) in mm.
    """

    images: dict[ContrastLabel, FloatArray]
    tissues: NDArray[np.uint8]
    spacing: tuple[float, float, float]

    @property
    def brain(self) -> NDArray[np.bool_]:
        """Where brain is, with its inner fluid and lesions."""
        names = ("gray", "white", "deep gray", "lesion", "enhancing")
        solid = np.isin(self.tissues, [NAMES.index(n) for n in names])
        return np.asarray(ndimage.binary_fill_holes(ndimage.binary_closing(solid, iterations=2)))


def render(
    *,
    seed: int = 0,
    spacing: tuple[float, float, float] = (3.0, 1.2, 1.2),
    lesions: int = 4,
    noise: float = 0.012,
    bias: float = 0.15,
    motion: float = 0.0,
    randomization: float = 0.0,
) -> Phantom:
    """Render a head.

    Args:
        seed: of anatomy, lesions, noise and bias; the same seed gives the same head.
        spacing: (slices, rows, columns) in mm of a 180 x 220 x 180 mm field of view.
        lesions: number of lesions in the white matter; every other one takes up gadolinium.
        noise: standard deviation of Gaussian noise in each of the two receiver channels, as a
            share of the brightest brain tissue.
        bias: amplitude of the smooth receive field.
        motion: how far the head moves while each MR image is taken, in mm; see `_move`.
        randomization: standard deviation of the logarithm by which the times and the density of
            every tissue, and half of it by which those of every sequence, are off: contrasts that
            no table holds, in the sense of domain randomization (Billot 2023). Tissues stay known.
    """
    generator = np.random.default_rng(seed)
    size = [round(extent / s) for extent, s in zip((180.0, 220.0, 180.0), spacing, strict=True)]
    z, y, x = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)),
        indexing="ij",
    )
    tissues = _build(z, y, x, generator, lesions)
    field = _smooth_field(size, generator)
    # No tissue is uniform: iron, myelin and vessels below the voxel's size vary it by some percent.
    texture = ndimage.gaussian_filter(generator.normal(0, 1, size), [2.0 / s for s in spacing])
    texture = TEXTURE * texture / texture.std()
    # these draw from streams of their own: a head is the same with and without them
    chance, mover = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    table = [_vary(tissue, randomization, chance) for tissue in TISSUES.values()]
    images = {}
    for name, usual in SEQUENCES.items():
        sequence = _vary(usual, randomization / 2, chance)
        signal = np.array([_signal(tissue, sequence) for tissue in table])
        weight = -texture if name in ("T1w", "T1c") else texture
        clean = ndimage.gaussian_filter(signal[tissues], 0.4) * np.exp(bias * field + weight)
        if motion > 0:
            clean = _move(clean, motion, spacing, mover)
        scale = 700.0 / max(signal[NAMES.index("white")], signal[NAMES.index("gray")])
        sigma = noise * max(signal[NAMES.index("white")], signal[NAMES.index("gray")])
        channels = generator.normal(0, sigma, (2, *size))
        magnitude = np.hypot(clean + channels[0], channels[1])  # Rician
        images[ContrastLabel(name)] = (magnitude * scale).astype(np.float32)
    hu = np.array([tissue.hu for tissue in TISSUES.values()])
    ct = ndimage.gaussian_filter(hu[tissues], 0.4) + generator.normal(0, 12, size)
    images[ContrastLabel("CT")] = np.clip(ct, -1024, 3071).astype(np.float32)
    return Phantom(images=images, tissues=tissues, spacing=spacing)


T = TypeVar("T", Tissue, Sequence)


def _vary(facts: T, spread: float, generator: np.random.Generator) -> T:
    """Return the tissue or sequence with every time and density off by a factor."""
    varied = {
        name: getattr(facts, name) * float(np.exp(generator.normal(0, spread)))
        for name in ("t1", "t2", "density", "tr", "te", "ti")
        if getattr(facts, name, None) is not None
    }
    return facts._replace(**varied)


def _move(
    image: NDArray[np.float64],
    reach: float,
    spacing: tuple[float, float, float],
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the image as measured while the head moved in plane.

    A third of the phase encoding lines, drawn at random but never the central ones, is measured
    with the head displaced by up to `reach` mm, which turns their phase (Haacke 1999, chapter 23).
    """
    lines = np.fft.fft2(image, axes=(1, 2))
    rows, columns = (np.fft.fftfreq(size) for size in image.shape[1:])
    shift = generator.uniform(-reach, reach, 2) / spacing[1:]
    turned = np.exp(-2j * np.pi * (rows[:, None] * shift[0] + columns[None, :] * shift[1]))
    moved = (generator.random(rows.size) < 1 / 3) & (np.abs(rows) > 0.05)
    lines = np.where(moved[None, :, None], lines * turned[None], lines)
    return np.abs(np.fft.ifft2(lines, axes=(1, 2)))


def _signal(tissue: Tissue, sequence: Sequence) -> float:
    t1 = tissue.t1
    if sequence.gadolinium:
        t1 = 1000.0 / (1000.0 / t1 + GADOLINIUM_RATE * tissue.uptake)
    if sequence.ti is None:
        longitudinal = 1 - np.exp(-sequence.tr / t1)
    else:
        recovery = 1 - 2 * np.exp(-sequence.ti / t1) + np.exp(-sequence.tr / t1)
        longitudinal = abs(recovery)
    return float(tissue.density * longitudinal * np.exp(-sequence.te / tissue.t2))


def _build(
    z: NDArray[np.float64],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    generator: np.random.Generator,
    lesions: int,
) -> NDArray[np.uint8]:
    tissues = np.zeros(z.shape, np.uint8)
    grow = generator.uniform(0.96, 1.04)

    def put(name: str, where: NDArray[np.bool_]) -> None:
        tissues[where] = NAMES.index(name)

    def ellipsoid(
        center: tuple[float, float, float], radii: tuple[float, float, float]
    ) -> NDArray[np.float64]:
        cz, cy, cx = center
        rz, ry, rx = (grow * r for r in radii)
        return np.asarray(
            np.sqrt(((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2)
        )

    neck = (np.hypot(y - 12, x) < 52) & (z < -40)
    put("fat", (ellipsoid((10, 0, 0), (84, 98, 79)) < 1) | neck)
    put("muscle", (ellipsoid((10, 0, 0), (80, 94, 75)) < 1) | (neck & (np.hypot(y - 12, x) < 46)))
    put("bone", ellipsoid((12, 0, 0), (78, 91, 72)) < 1)
    put("marrow", (ellipsoid((12, 0, 0), (76, 89, 70)) < 1))
    put("bone", ellipsoid((12, 0, 0), (74.5, 87, 68)) < 1)
    put("fluid", ellipsoid((12, 0, 0), (72, 85, 66)) < 1)
    # Gyri: the brain's surface swings by a few millimetres, on several wavelengths.
    phase = generator.uniform(0, 2 * np.pi, 6)
    folds = (
        np.sin(x / 5.5 + phase[0]) * np.sin(y / 6.5 + phase[1])
        + np.sin(y / 5.0 + phase[2]) * np.sin(z / 6.0 + phase[3])
        + np.sin(z / 5.5 + phase[4]) * np.sin(x / 7.0 + phase[5])
    )
    brain = ellipsoid((12, 0, 0), (71, 84, 65))
    depth = 1 - brain + 0.012 * folds
    fissure = (np.abs(x) < 1.6) & (z > 25)
    put("gray", (brain < 1) & ~fissure)
    put("bone", (brain < 1) & (np.abs(x) < 0.7) & (z > 5))  # the falx, dark on every contrast
    # Sulci reach a fifth of the way in; cortex follows them on both sides.
    ridge = folds / 3
    put("white", (depth > 0.11 + 0.16 * (ridge + 0.5)) & ~(np.abs(x) < 5))
    put("fluid", (np.abs(ridge) > 0.36) & (depth < 0.14) & (brain < 1))
    put("white", ellipsoid((22, 0, 0), (8, 30, 14)) < 1)
    for side in (-1, 1):
        put("deep gray", ellipsoid((10, -2, 14 * side), (12, 18, 8)) < 1)
        horn = ellipsoid((22, -12, 9 * side), (9, 24, 5.5))
        put("fluid", (horn < 1) | (ellipsoid((14, 26, 16 * side), (9, 15, 5)) < 1))
        put("fluid", ellipsoid((-14, -88, 30 * side), (10, 9, 10)) < 1)
        put("gray", ellipsoid((-38, 42, 20 * side), (17, 24, 24)) < 1)
        put("white", ellipsoid((-38, 42, 18 * side), (9, 15, 15)) < 1)
    put("fluid", ellipsoid((5, 4, 0), (12, 14, 2)) < 1)
    put("white", ellipsoid((-42, 18, 0), (34, 12, 13)) < 1)
    put("vessel", (np.hypot(x, y - 78) < 3.5) & (z > -20) & (z < 70))
    put("vessel", (np.hypot(x - 6, y + 40) < 2.0) & (z > -30) & (z < 15))
    white = np.argwhere(tissues == NAMES.index("white"))
    central = white[np.abs(z[tuple(white.T)] - 20) < 30]
    for number in range(lesions):
        i, j, k = central[int(generator.integers(len(central)))]
        place = (float(z[i, j, k]), float(y[i, j, k]), float(x[i, j, k]))
        radius = float(generator.uniform(3.5, 7.0))
        inside = ellipsoid(place, (radius, radius * 1.2, radius))
        is_brain = np.isin(tissues, [NAMES.index(n) for n in ("white", "gray", "deep gray")])
        put("lesion", (inside < 1) & is_brain)
        if number % 2:
            put("enhancing", (inside < 0.6) & is_brain)
    return tissues


def _smooth_field(size: list[int], generator: np.random.Generator) -> NDArray[np.float64]:
    coarse = generator.normal(0, 1, (3, 3, 3))
    field = ndimage.zoom(coarse, [n / 3 for n in size], order=2)
    field = field[: size[0], : size[1], : size[2]]
    return np.asarray(field / max(float(np.abs(field).max()), 1e-6))
