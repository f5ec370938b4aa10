"""What a completed study is good for, beside one with the real contrast and one that lacks it.

Two uses of a brain's missing MR: to delineate lesions, and to find them at a fixed rate of false
alarms. Both are done by one segmenter that knows any subset of contrasts: in the study with the
real contrast, with the answer, and with neither. One use of a CT made from MR: to lay a CT that was
taken elsewhere onto the MR.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from synthesis.errors import TrainingError
from synthesis.faithfulness import implant_many, split_lesions
from synthesis.lesions import SURROUNDINGS
from synthesis.registration import register_rigid
from synthesis.segmentation import dice
from synthesis.segmenter import Segmenter
from synthesis.synthesizer import Synthesizer, ask
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    Case,
    ContrastLabel,
    FloatArray,
    MaskArray,
)

CT = ContrastLabel("CT")
KIND = "demyelination"
APART = 7
"""Voxels about a peak in which it is the highest."""
PEAK_SIGMA = 1.0
"""Voxels; a probability that is one everywhere in a lesion has no peak otherwise."""
FALSE_ALARMS = 3
"""In a volume, at which lesions are found."""
LIKELY = 0.5
SHIFT_MM, ANGLE_DEGREES = 10.0, 4.0
AIR_HU = -1000.0


def measure(
    method: Synthesizer[Any],
    case: Case,
    sources: Sequence[ContrastLabel],
    target: ContrastLabel,
    *,
    seed: int,
    segmenter: Segmenter | None,
) -> dict[str, float]:
    """Return the figures of each use by the real contrast, the answer, and without either.

    Of MR `dice_real`, `dice_made`, `dice_missing` and `found_real` and so on: Dice and shares of
    lesions, implanted and real. What is missing is zero and said to be. Of people without labels,
    whose own lesions nobody knows, Dice is of the implants and what is about them, and nothing is
    said of false alarms. Of CT `tre_real` and so on: mean distance in mm between where a point of
    the body is and where the registration takes it.

    Args:
        method: that answers.
        case: a person whom it did not learn from.
        sources: what it is given.
        target: what it is asked for.
        seed: of places, offset and answer.
        segmenter: of lesions; not used for CT.

    Raises:
        TrainingError: no person of the table could teach a segmenter.
    """
    if target == CT:
        made = ask(method, case, sources, target, seed=seed).mean
        return _align(case, made, sources[0], seed)
    if segmenter is None:
        raise TrainingError("nobody in the table has labels: no segmenter can judge")
    changed, lesions = implant_many(case, KIND, seed)
    real = (case.labels > 0) & case.mask if case.labels is not None else np.zeros_like(case.mask)
    each = [lesion for _, lesion in lesions] + list(split_lesions(real, case.spacing))
    everywhere = real | np.any([lesion for _, lesion in lesions], axis=0)
    known = case.mask
    if case.labels is None:
        known = known & ndimage.binary_dilation(everywhere, iterations=SURROUNDINGS)
    rest = {source: changed.images[source] for source in sources}
    studies: Mapping[str, Mapping[ContrastLabel, FloatArray]] = {
        "real": rest | {target: changed.images[target]},
        "made": rest | {target: ask(method, changed, sources, target, seed=seed).mean},
        "missing": rest,
    }
    figures = {"lesions": float(len(each))}
    for name, images in studies.items():
        likely = segmenter.find(images, case.mask)
        figures[f"dice_{name}"] = dice(everywhere, known & (likely > LIKELY))
        if case.labels is not None:
            figures[f"found_{name}"] = _find(ndimage.gaussian_filter(likely, PEAK_SIGMA), each)
    return figures


def _find(score: FloatArray, lesions: Sequence[MaskArray]) -> float:
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
