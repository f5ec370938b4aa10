"""Rigid registration between contrasts of one person, with a statement of whether to trust it.

Mattes mutual information (Mattes 2003) over a fixed random sample, regular-step descent, three
resolutions that are chosen in mm, so that thick slices are not made thicker. The answer carries the
normalized mutual information before and after, so that a caller can refuse what cannot be trusted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that the field uses
from numpy.typing import NDArray

LEVELS_MM = (8.0, 4.0, 2.0)
"""Voxels of each resolution; what is coarser already stays."""
MOST_SAMPLES = 40_000
"""Voxels that a step looks at; an image of fewer is looked at whole."""
FEWEST_VOXELS = 8
"""Along each axis of a resolution."""
BINS_OF_DESCENT = 64
SMALLEST_STEP_MM = 0.001
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
    fixed, moving = _lift(fixed), _lift(moving)
    center = fixed.TransformContinuousIndexToPhysicalPoint(
        [(size - 1) / 2 for size in fixed.GetSize()]
    )
    start = sitk.Euler3DTransform(center, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0))
    before = measure_similarity(fixed, moving, sitk.Transform(3, sitk.sitkIdentity))
    seen = None
    for level in LEVELS_MM:
        pair = _coarsen(fixed, level), _coarsen(moving, level)
        sizes = [each.GetSize() for each in pair]
        if sizes != seen:
            with _one_thread():
                _descend(*pair, start, level, seed)
        seen = sizes
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: several sum in any order.

    The metric takes their number from this global alone. Filters give the same in any number.
    """
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _descend(
    fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, level: float, seed: int
) -> None:
    """Improve a transform in place, in steps of half the resolution and less."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS_OF_DESCENT)
    share = MOST_SAMPLES / fixed.GetNumberOfPixels()
    if share < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(share, seed + 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=level / 2,
        minStep=SMALLEST_STEP_MM,
        numberOfIterations=150,
        relaxationFactor=0.5,
        gradientMagnitudeTolerance=1e-9,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    start = transform.GetParameters()
    values: list[float] = []
    method.AddCommand(sitk.sitkIterationEvent, lambda: values.append(method.GetMetricValue()))
    try:
        method.Execute(fixed, moving)
        is_worse = values[-1] > values[0]
    except RuntimeError:  # ITK's word for images that hardly overlap, or are constant where they do
        is_worse = True
    if is_worse:  # it walked past the place and was lost
        transform.SetParameters(start)


def _lift(image: sitk.Image) -> sitk.Image:
    """Return an image whose darkest voxel is 0: air is -1000 in CT, and what it likes in MR."""
    filter_ = sitk.MinimumMaximumImageFilter()
    filter_.Execute(image)
    lifted: sitk.Image = image - filter_.GetMinimum()
    return lifted


def _coarsen(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Return an image smoothed and shrunk along the axes that are finer than a spacing.

    All axes are shrunk at once: one after the other, the samples of two images lie differently.
    """
    factors = []
    for axis, (size, spacing) in enumerate(zip(image.GetSize(), image.GetSpacing(), strict=True)):
        factor = min(round(spacing_mm / spacing), size // FEWEST_VOXELS)
        factors.append(max(1, factor))
        if factor > 1:
            image = sitk.RecursiveGaussian(image, 0.5 * factor * spacing, direction=axis)
    coarse: sitk.Image = sitk.Shrink(image, factors)
    return coarse


def measure_similarity(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> float:
    """Return the normalized mutual information, 1 (independent) to 2, of what is not air.

    Air is 0 in both images.
    """
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
