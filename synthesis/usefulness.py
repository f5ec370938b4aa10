"""What a completed study is good for, beside one with the real contrast and one that lacks it.

Two uses of a brain's missing MR: to delineate lesions, and to find them at a fixed rate of false
alarms. Both are done by the same plain rule on the real contrast, on the answer and on the best
source, which is all that there is where nothing is made. One use of a CT made from MR: to lay a CT
that was taken elsewhere onto the MR.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.faithfulness import implant_many, split_lesions
from synthesis.registration import register_rigid
from synthesis.segmentation import dice
from synthesis.synthesizer import Synthesizer
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    Anchor,
    Case,
    ContrastLabel,
    FloatArray,
    MaskArray,
)

CT = ContrastLabel("CT")
KIND = "demyelination"
NEAR_MM, ABOUT_MM = 1.0, 6.0
"""Gaussians whose difference is how a spot stands out."""
APART = 7
"""Voxels about a peak in which it is the highest."""
FALSE_ALARMS = 10
"""In a volume, at which lesions are found."""
CUTS = 40
"""Thresholds that are tried for the best delineation."""
SHIFT_MM, ANGLE_DEGREES = 10.0, 4.0
AIR_HU = -1000.0


def measure(
    method: Synthesizer[Any],
    case: Case,
    sources: Sequence[ContrastLabel],
    target: ContrastLabel,
    *,
    anchor: Anchor,
    seed: int,
) -> dict[str, float]:
    """Return the figures of each use by the real contrast, the answer, and without either.

    Of MR `dice_real`, `dice_made`, `dice_missing` and `found_real` and so on: shares of lesions,
    implanted and real. Of CT `tre_real` and so on: mean distance in mm between where a point of the
    body is and where the registration takes it.

    Args:
        method: that answers.
        case: a person whom it did not learn from.
        sources: what it is given.
        target: what it is asked for.
        anchor: not used: prepared people are on their scale.
        seed: of places, offset and answer.
    """
    if target == CT:
        made = _ask(method, case, sources, target, seed)
        return _align(case, made, sources[0], seed)
    changed, lesions = implant_many(case, KIND, seed)
    made = _ask(method, changed, sources, target, seed)
    real = (case.labels > 0) & case.mask if case.labels is not None else np.zeros_like(case.mask)
    each = [lesion for _, lesion in lesions] + list(split_lesions(real, case.spacing))
    everywhere = real | np.any([lesion for _, lesion in lesions], axis=0)
    # the answer is cut where the real contrast is cut best; a source where it is cut best itself
    truth = _stand_out(changed.images[target], changed)
    cut, best = _cut_best(truth, everywhere)
    answer = _stand_out(made, changed)
    others = [_stand_out(changed.images[source], changed) for source in sources]
    return {
        "dice_real": best,
        "dice_made": dice(everywhere, answer > cut),
        "dice_missing": max(_cut_best(other, everywhere)[1] for other in others),
        "found_real": _find(truth, each),
        "found_made": _find(answer, each),
        "found_missing": max(_find(other, each) for other in others),
        "lesions": float(len(each)),
    }


def _ask(
    method: Synthesizer[Any],
    case: Case,
    sources: Sequence[ContrastLabel],
    target: ContrastLabel,
    seed: int,
) -> FloatArray:
    given = {label: case.images[label] for label in sources}
    return method.predict(
        given, target=target, mask=case.mask, spacing=case.spacing, seed=seed
    ).mean


def _stand_out(image: FloatArray, case: Case) -> NDArray[np.float64]:
    """Return how far each voxel's neighborhood is above what is about it; zero outside."""
    weight = case.mask.astype(np.float64)

    def smooth(sigma_mm: float) -> NDArray[np.float64]:
        sigmas = [sigma_mm / s for s in case.spacing]
        shares = np.maximum(ndimage.gaussian_filter(weight, sigmas), 1e-6)
        return np.asarray(ndimage.gaussian_filter(image * weight, sigmas) / shares)

    return np.where(case.mask, smooth(NEAR_MM) - smooth(ABOUT_MM), 0)


def _cut_best(score: NDArray[np.float64], lesions: MaskArray) -> tuple[float, float]:
    """Return the threshold that delineates the lesions best, and its Dice."""
    cuts = np.linspace(0, float(np.percentile(score, 99.9)), CUTS + 1)[1:]
    scores = [dice(lesions, score > cut) for cut in cuts]
    best = int(np.argmax(scores))
    return float(cuts[best]), float(scores[best])


def _find(score: NDArray[np.float64], lesions: Sequence[MaskArray]) -> float:
    """Return the share of lesions with a peak above all but `FALSE_ALARMS` peaks elsewhere."""
    if not lesions:
        return float("nan")
    peaks = (score > 0) & (score == ndimage.maximum_filter(score, APART))
    away = peaks & ~np.any(lesions, axis=0)
    alarms = np.sort(score[away])[::-1]
    threshold = float(alarms[FALSE_ALARMS]) if alarms.size > FALSE_ALARMS else 0.0
    hits = [bool((score[lesion & peaks] > threshold).any()) for lesion in lesions]
    return float(np.mean(hits))


def _align(case: Case, made: FloatArray, source: ContrastLabel, seed: int) -> dict[str, float]:
    """Return how far a CT that lies elsewhere ends from its place, laid on CT, answer and MR."""
    generator = np.random.default_rng(seed)
    real = _to_image(UNITS_PER_NORMALIZED * case.images[CT], case)
    offset = sitk.Euler3DTransform()
    offset.SetCenter(real.TransformContinuousIndexToPhysicalPoint([n / 2 for n in real.GetSize()]))
    direction = generator.normal(0, 1, 3)
    offset.SetTranslation((SHIFT_MM * direction / np.linalg.norm(direction)).tolist())
    offset.SetRotation(*np.deg2rad(generator.uniform(-ANGLE_DEGREES, ANGLE_DEGREES, 3)).tolist())
    moved = sitk.Resample(real, real, offset, sitk.sitkLinear, AIR_HU)
    answer = np.where(case.mask, UNITS_PER_NORMALIZED * made, AIR_HU).astype(np.float32)
    back = offset.GetInverse()
    points = np.argwhere(case.mask)
    points = points[:: max(1, len(points) // 2000)]
    found = {}
    for name, fixed in (
        ("tre_real", real),
        ("tre_made", _to_image(answer, case)),
        ("tre_missing", _to_image(case.images[source], case)),
    ):
        transform = register_rigid(fixed, moved, seed=seed).transform
        places = [real.TransformIndexToPhysicalPoint(p[::-1].tolist()) for p in points]
        ends = np.array([transform.TransformPoint(p) for p in places])
        wanted = np.array([back.TransformPoint(p) for p in places])
        found[name] = float(np.linalg.norm(ends - wanted, axis=1).mean())
    return found


def _to_image(array: FloatArray, case: Case) -> sitk.Image:
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing(case.spacing[::-1])
    return image
