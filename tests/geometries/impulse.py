"""By how much a shipped model moves what it is shown: small bumps in, their mean response out.

A sampling mistake (padding of an odd size, a stride, a mirrored view) moves the response of every
bump alike. What a model has learnt moves it by where the bump lies; the mean over many places and
over the targets leaves the first and little of the second.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.phantom import render
from synthesis.preprocessing import measure_scale
from synthesis.registry import ModelCard, load_card, load_method
from synthesis.types import ContrastLabel, FloatArray, MaskArray

SPACING_MM = 3.5
LIMB = (56, 72, 68)
BUMPS = 40
HEIGHT, WIDTH = 0.08, 1.2
"""Of a bump, in normalized units and voxels."""
REACH = 4
"""Voxels about a bump that its response is looked for in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """How far responses lie from their bumps, in voxels: slices, rows, columns."""

    target: str
    mean: NDArray[np.float64]
    standard_error: NDArray[np.float64]


def measure_shifts(models_folder: Path, model_id: str) -> Iterator[Shift]:
    """Yield the shift of each target of a model, all its other sources given."""
    card = load_card(models_folder, model_id)
    images, mask = _render_brain(card) if card.skull == "stripped" else _render_limb(card)
    places = _choose_places(mask)
    bumps = np.zeros(mask.shape, np.float32)
    box = np.stack(np.indices((4 * REACH + 1,) * 3)) - 2 * REACH
    bump = HEIGHT * np.exp(-(box**2).sum(axis=0) / (2 * WIDTH**2))
    for place in places:
        bumps[_around(place, 2 * REACH)] += bump
    for target in card.targets:
        yield _measure(card, models_folder, target, images, mask, bumps, places)


def _measure(
    card: ModelCard,
    models_folder: Path,
    target: str,
    images: dict[str, FloatArray],
    mask: MaskArray,
    bumps: FloatArray,
    places: NDArray[np.int_],
) -> Shift:
    method = load_method(models_folder, card.id, card.digest)
    more, less = (
        method.predict(
            {
                ContrastLabel(label): np.where(mask, images[label] + sign * bumps, 0)
                for label in card.sources
                if label != target
            },
            target=ContrastLabel(target),
            mask=mask,
            spacing=(SPACING_MM,) * 3,
            seed=0,
        ).mean
        for sign in (np.float32(1), np.float32(-1))
    )
    responses = np.stack([(more - less)[_around(place, REACH)] for place in places])
    generator = np.random.default_rng(0)
    again = [
        _find_center(responses[generator.integers(0, len(places), len(places))].mean(axis=0))
        for _ in range(60)
    ]
    return Shift(
        target=target,
        mean=_find_center(responses.mean(axis=0)),
        standard_error=np.std(again, axis=0),
    )


def _find_center(response: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where a bump of either sign has its center, to the first order of a fit."""
    box = np.stack(np.indices(response.shape)) - REACH
    window = np.exp(-(box**2).sum(axis=0) / (2 * 2.0**2))
    terms = [window, *(box / 2.0**2 * window), (box**2).sum(axis=0) * window, np.ones_like(window)]
    design = np.stack([term.ravel() for term in terms], axis=1)
    found = np.linalg.lstsq(design, response.ravel(), rcond=None)[0]
    return np.asarray(found[1:4] / found[0])


def _around(place: NDArray[np.int_], reach: int) -> tuple[slice, ...]:
    return tuple(slice(int(c) - reach, int(c) + reach + 1) for c in place)


def _choose_places(mask: MaskArray) -> NDArray[np.int_]:
    """Return places deep in the mask and far from one another."""
    generator = np.random.default_rng(0)
    inner = np.argwhere(ndimage.binary_erosion(mask, iterations=2 * REACH))
    chosen: list[NDArray[np.int_]] = []
    for place in inner[generator.permutation(len(inner))]:
        if all(np.abs(place - other).max() > 2 * REACH for other in chosen):
            chosen.append(place)
        if len(chosen) == BUMPS:
            break
    return np.array(chosen)


def _render_brain(card: ModelCard) -> tuple[dict[str, FloatArray], MaskArray]:
    phantom = render(seed=3, spacing=(SPACING_MM,) * 3)
    images = {}
    for label in card.sources:
        image = phantom.images[label]
        images[label] = measure_scale(image, phantom.brain, card.anchor).forward(image)
    return images, phantom.brain


def _render_limb(card: ModelCard) -> tuple[dict[str, FloatArray], MaskArray]:
    """Return a body of soft patches that are about as bright as fat and as muscle."""
    generator = np.random.default_rng(3)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in LIMB), indexing="ij")
    mask = np.asarray(sum((x / 0.95) ** 4 for x in axes) < 1)
    patches = ndimage.gaussian_filter(generator.normal(0, 1, LIMB), 3)
    image = (0.6 + 0.25 * np.tanh(2 * patches / patches.std())).astype(np.float32)
    return dict.fromkeys(card.sources, image), mask
