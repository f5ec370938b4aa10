"""Lesions put into real or rendered people, whose effect on every contrast is known exactly.

A lesion is a soft-edged ellipsoid with an uneven surface; each contrast is multiplied by a factor
drawn from its kind's range. What a method makes of it can then be counted: kept, erased, or made
up where nothing was put.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.errors import UnusableInput
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray

SIGNATURES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "demyelination": {
        "T1w": (0.75, 0.95),
        "T1c": (0.75, 0.95),
        "T2w": (1.3, 1.8),
        "FLAIR": (1.3, 1.8),
        "PDw": (1.1, 1.3),
    },
    "enhancing": {
        "T1w": (0.8, 0.95),
        "T1c": (1.5, 2.2),
        "T2w": (1.2, 1.5),
        "FLAIR": (1.2, 1.5),
        "PDw": (1.05, 1.2),
    },
    "oedema": {
        "T1w": (0.8, 0.9),
        "T1c": (0.8, 0.9),
        "T2w": (1.4, 1.9),
        "FLAIR": (1.4, 1.9),
        "PDw": (1.1, 1.3),
    },
}
"""Kind to the factor of each contrast, relative to the tissue that is there."""
EDGE_MM = 1.0
UNEVENNESS = 0.2
KEPT_CONTRAST = 0.5
"""Share of the true contrast from which a lesion counts as seen."""
ERASED_CONTRAST = 0.25
"""Share of the true contrast below which nothing of a lesion is left."""
SURROUNDINGS = 4
"""Voxels about a lesion that it is compared with."""
SEEN_FROM = 0.5
"""Contrast to the surroundings, in their standard deviations, from which a lesion is shown."""
COMPACT = 0.3
"""Share of its bounding box that a lesion fills; an ellipsoid fills half."""
BRIGHT_LIMITS = (25.0, 85.0)
"""Percentiles of the reference image between which ordinary tissue lies: no fluid, no vessel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Implanted:
    """A person with a lesion.

    Attributes:
        case: the person; `labels` is one in the lesion.
        lesion: where it is.
        diameter_mm: of the ellipsoid's mean axis.
        kind: of its signature.
        factors: by which each contrast was multiplied in its middle.
    """

    case: Case
    lesion: MaskArray
    diameter_mm: float
    kind: str
    factors: Mapping[ContrastLabel, float]


def implant(case: Case, *, kind: str, diameter_mm: float, seed: int) -> Implanted:
    """Return the case with one lesion in ordinary tissue; the given arrays are not changed.

    Raises:
        UnusableInput: the mask has no room for a lesion of that size.
    """
    generator = np.random.default_rng(seed)
    reference = next(iter(case.images.values()))
    depth = ndimage.distance_transform_edt(case.mask, sampling=case.spacing)
    low, high = np.percentile(reference[case.mask], BRIGHT_LIMITS)
    free = depth > diameter_mm / 2 + EDGE_MM
    if case.labels is not None:
        free &= case.labels == 0
    places = np.argwhere(free & (reference > low) & (reference < high))
    if not places.size:
        raise UnusableInput("mask", f"no room for a lesion of {diameter_mm:g} mm")
    center = places[int(generator.integers(len(places)))]
    weight = _shape(case, center, diameter_mm, generator)
    factors = {
        label: float(generator.uniform(*SIGNATURES[kind][label]))
        for label in case.images
        if label in SIGNATURES[kind]
    }
    images = dict(case.images)
    for label, factor in factors.items():
        images[label] = np.asarray(
            case.images[label] * (1 + (factor - 1) * weight), dtype=np.float32
        )
    lesion = np.asarray(weight > 0.5)  # noqa: PLR2004 - the middle of the edge
    changed = replace(case, images=images, labels=lesion.astype(np.uint8))
    return Implanted(
        case=changed, lesion=lesion, diameter_mm=diameter_mm, kind=kind, factors=factors
    )


def is_kept(truth: FloatArray, prediction: FloatArray, lesion: MaskArray, mask: MaskArray) -> bool:
    """Whether the prediction has at least half the lesion's contrast, of the same sign."""
    return _measure_share(truth, prediction, lesion, mask) >= KEPT_CONTRAST


def is_erased(
    truth: FloatArray, prediction: FloatArray, lesion: MaskArray, mask: MaskArray
) -> bool:
    """Whether less than a quarter of the lesion's contrast is left in the prediction."""
    return _measure_share(truth, prediction, lesion, mask) < ERASED_CONTRAST


def count_false(
    without: FloatArray,
    prediction: FloatArray,
    mask: MaskArray,
    *,
    contrast: float,
    smallest: int = 33,
) -> int:
    """Return how many lesions a prediction shows that its truth has not.

    A reader takes a compact spot for a lesion that stands out of its surroundings as lesions do.
    Counted are connected regions of the mask of at least `smallest` voxels (4 mm at 1 mm), compact,
    in which the prediction rises above the truth by `contrast`, and which are shown with that
    contrast in the prediction and with less than half of it in the truth. An error of level over
    much of the brain, or along an edge, is an error and no lesion.

    Args:
        without: the truth, which has no lesion there.
        prediction: in the same units.
        mask: where both mean something.
        contrast: units from which a difference is a lesion, such as half of a real one's; below
            zero where lesions are dark.
        smallest: voxels.
    """
    sign, least = (-1.0 if contrast < 0 else 1.0), abs(contrast)
    rise = ndimage.gaussian_filter(np.where(mask, sign * (prediction - without), 0), 1.0)
    parts, _ = ndimage.label(mask & (rise > least))
    found = 0
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        part = parts[box] == number
        if int(part.sum()) < smallest or float(part.mean()) < COMPACT:
            continue
        region = np.zeros_like(mask)
        region[box] = part
        found += (
            sign * measure_contrast(prediction, region, mask) >= least
            and abs(measure_visibility(prediction, region, mask)) >= SEEN_FROM
            and sign * measure_contrast(without, region, mask) < least / 2
        )
    return found


def measure_contrast(image: FloatArray, lesion: MaskArray, mask: MaskArray) -> float:
    """Return a lesion's mean over that of its surroundings; zero where it has none."""
    inside, around = _inside_and_around(image, lesion, mask)
    return float(inside.mean() - around.mean()) if inside.size and around.size else 0.0


def measure_visibility(image: FloatArray, lesion: MaskArray, mask: MaskArray) -> float:
    """Return a lesion's contrast in standard deviations of its surroundings."""
    _, around = _inside_and_around(image, lesion, mask)
    spread = float(around.std()) if around.size else 0.0
    return measure_contrast(image, lesion, mask) / spread if spread > 0 else 0.0


def _measure_share(
    truth: FloatArray, prediction: FloatArray, lesion: MaskArray, mask: MaskArray
) -> float:
    real, made = (measure_contrast(image, lesion, mask) for image in (truth, prediction))
    return made / real if real != 0 else 0.0


def _inside_and_around(
    image: FloatArray, lesion: MaskArray, mask: MaskArray
) -> tuple[FloatArray, FloatArray]:
    box = ndimage.find_objects(lesion.astype(np.uint8))
    if not box:
        return image[:0].ravel(), image[:0].ravel()
    near = tuple(
        slice(max(0, part.start - SURROUNDINGS), part.stop + SURROUNDINGS) for part in box[0]
    )
    within, brain = lesion[near], mask[near]
    around = ndimage.binary_dilation(within, iterations=SURROUNDINGS) & brain & ~within
    return image[near][within & brain], image[near][around]


def _shape(
    case: Case, center: NDArray[np.int64], diameter_mm: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return how much of the lesion each voxel holds, 0 to 1."""
    radii = diameter_mm / 2 * generator.uniform(0.8, 1.25, 3)
    axes = np.ogrid[tuple(slice(0, size) for size in case.mask.shape)]
    distance = np.sqrt(
        sum(
            ((axis - c) * s / r) ** 2
            for axis, c, s, r in zip(axes, center, case.spacing, radii, strict=True)
        )
    )
    coarse = generator.normal(0, 1, case.mask.shape)
    wave = ndimage.gaussian_filter(coarse, [diameter_mm / 4 / s for s in case.spacing])
    wave /= max(float(wave.std()), 1e-9)
    signed = (1 - distance * (1 + UNEVENNESS * np.clip(wave, -2, 2))) * diameter_mm / 2
    return np.where(case.mask, np.clip(0.5 + signed / (2 * EDGE_MM), 0, 1), 0)
