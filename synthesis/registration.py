"""Rigid registration between contrasts of one person, with a statement of whether to trust it.

Mattes mutual information (Mattes 2003) over a fixed random sample, regular-step descent, three
resolutions. The answer carries the normalized mutual information before and after, so that a
caller can refuse what cannot be trusted.
"""

import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that the field uses
from numpy.typing import NDArray

SAMPLE_FRACTION = 0.04
AWAY_MM = 15.0
MINIMUM_DISTINCTNESS = 1.5
"""Pairs of one head lie between 1.8 and 8, pairs of two heads below 1.4."""
MAXIMUM_SHIFT_MM = 40.0
MAXIMUM_ANGLE_DEGREES = 25.0
BINS = 32
PARAMETER_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A rigid transform from points of the fixed image to points of the moving image.

    Attributes:
        transform: maps LPS millimetres of the fixed image to those of the moving image.
        similarity_before: normalized mutual information (Studholme 1999) where both overlap.
        similarity_after: the same with the transform.
        distinctness: how much better the place that was found is than places 15 mm away: the
            similarity's excess over 1 there, divided by the mean excess away. An absolute
            similarity would depend on the contrasts; this does not.
        shift_mm: how far the center of the fixed image moves.
        angle_degrees: rotation angle.
    """

    transform: sitk.Euler3DTransform
    similarity_before: float
    similarity_after: float
    distinctness: float
    shift_mm: float
    angle_degrees: float

    @property
    def is_trusted(self) -> bool:
        """Whether the place is a distinct one, near enough, and no worse than the start."""
        return (
            self.distinctness >= MINIMUM_DISTINCTNESS
            and self.shift_mm <= MAXIMUM_SHIFT_MM
            and self.angle_degrees <= MAXIMUM_ANGLE_DEGREES
            and self.similarity_after >= self.similarity_before
        )


def register_rigid(fixed: sitk.Image, moving: sitk.Image, *, seed: int) -> Registration:
    """Register `moving` to `fixed`; both float32, any grid, LPS millimetres.

    When the move that was found is no better than staying (the images agree already), the
    transform is the identity.
    """
    center = fixed.TransformContinuousIndexToPhysicalPoint(
        [(size - 1) / 2 for size in fixed.GetSize()]
    )
    start = sitk.Euler3DTransform(center, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SAMPLE_FRACTION, seed + 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 120)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=True)
    before = measure_similarity(fixed, moving, sitk.Transform(3, sitk.sitkIdentity))
    # Threads sum in any order, and the metric takes their number from this global alone.
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        method.Execute(fixed, moving)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    start.SetParameters([round(p, PARAMETER_DIGITS) for p in start.GetParameters()])
    after = measure_similarity(fixed, moving, start)
    if after <= before:
        start.SetIdentity()
        after = before
    matrix = np.array(start.GetMatrix()).reshape(3, 3)
    moved = np.array(start.TransformPoint(center)) - np.array(center)
    angle = math.degrees(math.acos(min(1.0, max(-1.0, (np.trace(matrix) - 1) / 2))))
    return Registration(
        transform=start,
        similarity_before=before,
        similarity_after=after,
        distinctness=_measure_distinctness(fixed, moving, start, after),
        shift_mm=float(np.linalg.norm(moved)),
        angle_degrees=angle,
    )


def measure_similarity(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> float:
    """Return the normalized mutual information, 1 (independent) to 2, where both are above zero."""
    shrink = [max(1, round(3.0 / spacing)) for spacing in fixed.GetSpacing()]
    small = sitk.Shrink(fixed, [min(s, n) for s, n in zip(shrink, fixed.GetSize(), strict=True)])
    warped = sitk.Resample(moving, small, transform, sitk.sitkLinear, -1.0)
    a: NDArray[np.float32] = sitk.GetArrayFromImage(small)
    b: NDArray[np.float32] = sitk.GetArrayFromImage(warped)
    inside = (b >= 0) & ((a > a.mean() * 0.3) | (b > b.mean() * 0.3))
    if int(inside.sum()) < BINS * BINS:
        return 1.0
    joint, _, _ = np.histogram2d(_rank(a[inside]), _rank(b[inside]), bins=BINS)
    p = joint / joint.sum()
    return (_entropy(p.sum(0)) + _entropy(p.sum(1))) / _entropy(p.ravel())


def _measure_distinctness(
    fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, similarity: float
) -> float:
    away = []
    for axis in (0, 1):
        for side in (-AWAY_MM, AWAY_MM):
            shift = [0.0, 0.0, 0.0]
            shift[axis] = side
            moved = sitk.CompositeTransform([transform, sitk.TranslationTransform(3, shift)])
            away.append(measure_similarity(fixed, moving, moved) - 1)
    return (similarity - 1) / max(float(np.mean(away)), 1e-6)


def _rank(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.percentile(values, [1, 99])
    ranked: NDArray[np.float32] = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)
    return ranked


def _entropy(p: NDArray[np.float64]) -> float:
    q = p[p > 0]
    return float(-(q * np.log(q)).sum())
