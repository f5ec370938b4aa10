"""How far an answer falls when the sources come worse than the ones that were learnt from.

Each condition disturbs the sources of a prepared person by a stated amount. They then go through
what the engine does on the model grid (registration to the first source, N4, the anchor of the
scale), so that the figures are of what a site would get; conditions whose name says so leave the
step out that would undo them. The error is of the truth as it was, except where slices are thick:
there it is of the truth averaged over the same slices.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from synthesis.metrics.ours import mean_absolute_error
from synthesis.preprocessing import correct_bias, measure_scale, resample
from synthesis.registration import register_rigid
from synthesis.segmentation import TISSUES, classify, measure_cuts
from synthesis.synthesizer import Synthesizer
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    Anchor,
    Case,
    ContrastLabel,
    FloatArray,
    MaskArray,
)

CLEAN = "clean"
BIAS = 0.4
"""The receive field runs from 1 - BIAS to 1 + BIAS within the mask."""
SIGNAL_TO_NOISE = 15.0
"""Of white matter, to the standard deviation of either channel of the receiver."""
GAMMAS = (0.7, 1.4)
THICKNESSES_MM = (3.0, 6.0)
SHIFT_MM = 3.0
MIDDLE = 0.5
"""Half the mask's slices within a thick one make it brain."""
T1W = ContrastLabel("T1w")

Images = Mapping[ContrastLabel, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Condition:
    """Sources that were disturbed, and what the engine still does to them."""

    case: Case
    registers: bool = True
    corrects: bool = True


def measure(
    method: Synthesizer[Any],
    case: Case,
    sources: Sequence[ContrastLabel],
    target: ContrastLabel,
    *,
    anchor: Anchor,
    seed: int,
) -> dict[str, float]:
    """Return the mean absolute error under each condition, in the target's units.

    Conditions that the person cannot show are absent: thick slices of slices that are thick
    already, a misalignment of a single source.

    Args:
        method: that answers.
        case: a person whom it did not learn from.
        sources: what it is given; the first is the reference.
        target: what it is asked for.
        anchor: of the scale.
        seed: of every draw.
    """
    figures = {}
    for name, condition in _conditions(case, sources, target, seed):
        disturbed = condition.case
        given = _as_engine(condition, sources, anchor, seed)
        answer = method.predict(
            given, target=target, mask=disturbed.mask, spacing=disturbed.spacing, seed=seed
        )
        error = mean_absolute_error(disturbed.images[target], answer.mean, disturbed.mask)
        figures[name] = UNITS_PER_NORMALIZED * error
    return figures


def _conditions(
    case: Case, sources: Sequence[ContrastLabel], target: ContrastLabel, seed: int
) -> Iterator[tuple[str, _Condition]]:
    def change(disturb: Callable[[FloatArray], FloatArray]) -> Case:
        changed = {label: disturb(case.images[label]) for label in sources}
        return replace(case, images={**case.images, **changed})

    generator = np.random.default_rng(seed)
    biased = change(lambda image: (image * _field(case.mask, generator)).astype(np.float32))
    white = _find_white_matter(case)
    yield CLEAN, _Condition(case=case)
    yield "bias ±40 %", _Condition(case=biased)
    yield "bias ±40 %, no N4", _Condition(case=biased, corrects=False)
    noisy = change(lambda image: _add_noise(image, image[white].mean(), case.mask, generator))
    yield f"noise, SNR {SIGNAL_TO_NOISE:g}", _Condition(case=noisy)
    for gamma in GAMMAS:
        bent = change(lambda image, gamma=gamma: _bend(image, case.mask, gamma))  # type: ignore[misc]
        yield f"gamma {gamma:g}", _Condition(case=bent)
    for thickness in THICKNESSES_MM:
        count = round(thickness / case.spacing[0])
        if count > 1:
            yield f"slices of {thickness:g} mm", _Condition(case=_thicken(case, count))
    if len(sources) > 1:
        moved = _move(case, sources[-1], generator)
        yield f"{SHIFT_MM:g} mm off", _Condition(case=moved)
        yield f"{SHIFT_MM:g} mm off, not registered", _Condition(case=moved, registers=False)


def _as_engine(
    condition: _Condition, sources: Sequence[ContrastLabel], anchor: Anchor, seed: int
) -> dict[ContrastLabel, FloatArray]:
    """Return the sources as `engine` hands them to a method: registered, corrected, scaled."""
    case = condition.case
    mask = _to_image(case.mask.astype(np.uint8), case)
    given = {}
    for label in sources:
        image = _to_image(case.images[label], case)
        if condition.registers and label != sources[0]:
            reference = _to_image(case.images[sources[0]], case)
            found = register_rigid(reference, image, seed=seed)
            if found.is_trusted:
                image = resample(image, image, found.transform)
        if condition.corrects:
            array = correct_bias(image, mask)
        else:
            array = sitk.GetArrayFromImage(image).astype(np.float32)
        scaled = measure_scale(array, case.mask, anchor).forward(array)
        given[label] = np.where(case.mask, scaled, 0).astype(np.float32)
    return given


def _to_image(array: Any, case: Case) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(case.spacing[::-1])
    return image


def _field(mask: MaskArray, generator: np.random.Generator) -> FloatArray:
    """Return a smooth field that runs from 1 - BIAS to 1 + BIAS within the mask."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in mask.shape), indexing="ij")
    terms = [*axes, *(a * b for k, a in enumerate(axes) for b in axes[k:])]
    weights = generator.normal(0, 1, len(terms))
    field = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    low, high = field[mask].min(), field[mask].max()
    return np.asarray(1 + BIAS * (2 * (field - low) / (high - low) - 1), np.float32)


def _find_white_matter(case: Case) -> MaskArray:
    """Return the brightest of three classes of T1w; the whole mask without T1w."""
    image = case.images.get(T1W)
    if image is None:
        return case.mask
    return np.asarray(classify(image, case.mask, measure_cuts(image, case.mask)) == TISSUES)


def _add_noise(
    image: FloatArray, white: float, mask: MaskArray, generator: np.random.Generator
) -> FloatArray:
    """Return the magnitude of the image with noise in both channels: Rician."""
    channels = generator.normal(0, white / SIGNAL_TO_NOISE, (2, *image.shape))
    return np.where(mask, np.hypot(image + channels[0], channels[1]), 0).astype(np.float32)


def _bend(image: FloatArray, mask: MaskArray, gamma: float) -> FloatArray:
    """Return the image through a power of its share of the 99.5th percentile."""
    high = float(np.percentile(image[mask], 99.5))
    return (high * np.clip(image / high, 0, None) ** gamma).astype(np.float32)  # type: ignore[no-any-return]


def _thicken(case: Case, count: int) -> Case:
    """Return the case with each `count` slices averaged into one: sources, truth and mask."""
    kept = len(case.mask) // count * count

    def average(array: FloatArray) -> FloatArray:
        parts = array[:kept].reshape(-1, count, *array.shape[1:])
        return np.asarray(parts.mean(axis=1, dtype=np.float32))

    share = average(case.mask.astype(np.float32))
    mask = share >= MIDDLE
    inside = np.maximum(share, MIDDLE)
    return Case(
        subject=case.subject,
        # a voxel at the surface is the mean of its brain, not a mixture with the padding
        images={
            label: np.where(mask, average(image * case.mask) / inside, 0).astype(np.float32)
            for label, image in case.images.items()
        },
        mask=mask,
        spacing=(case.spacing[0] * count, *case.spacing[1:]),
    )


def _move(case: Case, label: ContrastLabel, generator: np.random.Generator) -> Case:
    """Return the case with one contrast moved by SHIFT_MM in a random direction."""
    direction = generator.normal(0, 1, 3)
    steps = SHIFT_MM * direction / np.linalg.norm(direction) / np.array(case.spacing)
    moved = ndimage.shift(case.images[label], steps, order=1)
    return replace(case, images={**case.images, label: moved.astype(np.float32)})
