"""Random training samples for 2.5-D methods: views, thick slices, contrast, bias, noise, jitter.

What differs between sites and must not matter is drawn at random (domain randomization in the
sense of Billot 2023): slice thickness and plane, gain, gamma, bias field, noise, blur and a small
misalignment between contrasts. All contrasts and the target share the geometry that is drawn;
intensities change on the sources only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.patches import VIEWS
from synthesis.types import Case, ContrastLabel, FloatArray, SynthesisTask

THICKNESSES = (1, 1, 1, 2, 3, 4, 5)
BAND_AROUND_MASK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training sample, normalized.

    Attributes:
        stack: (sources, slices, rows, columns); absent sources are zero.
        condition: availability of each source, then the one-hot target.
        truth: (1, rows, columns).
        weight: (1, rows, columns), one inside the mask.
    """

    stack: FloatArray
    condition: FloatArray
    truth: FloatArray
    weight: FloatArray


def draw_sample(
    case: Case,
    task: SynthesisTask,
    *,
    size: int,
    slices: int,
    views: tuple[int, ...],
    generator: np.random.Generator,
) -> Sample:
    """Draw one sample from a case."""
    available = [label for label in task.sources if label in case.images]
    target = ContrastLabel(str(generator.choice([t for t in task.targets if t in case.images])))
    sources = [label for label in available if label != target]
    chosen = _draw_subset(sources, task.required, generator)
    axis = int(generator.choice(views))
    thickness = int(generator.choice(THICKNESSES)) if views == VIEWS else 1
    mask = np.moveaxis(case.mask, axis, 0)
    center = _draw_center(mask, generator)
    positions = center + thickness * (np.arange(slices) - slices // 2)
    window = _Window.draw(mask[center], size, generator)

    def cut(label: ContrastLabel, places: NDArray[np.int64]) -> FloatArray:
        planes = np.moveaxis(case.images[label], axis, 0)
        picked = []
        for place in places:
            # a thick slice is the mean of the thin ones that it covers
            low = max(0, min(planes.shape[0] - thickness, int(place) - thickness // 2))
            picked.append(window.cut(planes[low : low + thickness].mean(axis=0)))
        return np.stack(picked).astype(np.float32)  # (slices, rows, columns)

    weight = window.cut(mask[center].astype(np.float32))
    truth = cut(target, positions[slices // 2 : slices // 2 + 1])
    stack = np.zeros((len(task.sources), slices, *truth.shape[1:]), np.float32)
    condition = np.zeros(len(task.sources) + len(task.targets), np.float32)
    condition[len(task.sources) + task.targets.index(target)] = 1
    for number, label in enumerate(chosen):
        channel = task.sources.index(label)
        condition[channel] = 1
        stack[channel] = _disturb(cut(label, positions), number > 0, generator)
    return Sample(stack=stack, condition=condition, truth=truth, weight=weight[None])


def happens(generator: np.random.Generator, probability: float) -> bool:
    """Return True with the probability given."""
    return bool(generator.random() < probability)


def _draw_subset(
    sources: list[ContrastLabel],
    required: tuple[ContrastLabel, ...],
    generator: np.random.Generator,
) -> list[ContrastLabel]:
    count = int(generator.integers(1, len(sources) + 1))
    chosen = list(generator.permutation(np.array(sources))[:count])
    return [ContrastLabel(str(c)) for c in dict.fromkeys([*required, *chosen])]


def _draw_center(mask: NDArray[np.bool_], generator: np.random.Generator) -> int:
    filled = np.flatnonzero(mask.any(axis=(1, 2)))
    return int(generator.choice(filled))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """An in-plane window, turned, scaled and flipped; edges are padded by zeros."""

    center: tuple[float, float]
    size: int
    matrix: NDArray[np.float64]
    plain: bool

    @classmethod
    def draw(cls, mask: NDArray[np.bool_], size: int, generator: np.random.Generator) -> "_Window":
        rows, columns = np.nonzero(mask)
        middle = (rows.mean(), columns.mean()) if rows.size else (0.0, 0.0)
        center = tuple(float(m + generator.uniform(-20, 20)) for m in middle)
        plain = happens(generator, 0.4)
        angle = 0.0 if plain else np.deg2rad(generator.uniform(-12, 12))
        scale = np.ones(2) if plain else generator.uniform(0.88, 1.12, 2)
        flip = np.array([1.0, -1.0 if happens(generator, 0.5) else 1.0])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = turn * scale * flip
        if plain:
            center = tuple(float(round(c)) for c in center)
        return cls(center=(center[0], center[1]), size=size, matrix=matrix, plain=plain)

    def cut(self, plane: FloatArray) -> FloatArray:
        half = (self.size - 1) / 2 if not self.plain else self.size // 2
        offset = np.array(self.center) - self.matrix @ np.full(2, half)
        order = 0 if self.plain else 1
        turned = ndimage.affine_transform(
            plane, self.matrix, offset, output_shape=(self.size, self.size), order=order
        )
        return np.asarray(turned, dtype=np.float32)


def _disturb(stack: FloatArray, may_move: bool, generator: np.random.Generator) -> FloatArray:
    inside = stack != 0
    out = stack
    if may_move and happens(generator, 0.3):
        shift = generator.uniform(-1, 1, 2)
        out = ndimage.shift(out, (0, *shift), order=1)
        inside = out != 0
    if happens(generator, 0.7):
        out = np.clip(out, 0, None) ** generator.uniform(0.75, 1.33)
        out = out * generator.uniform(0.88, 1.12) + generator.uniform(-0.04, 0.04)
    if happens(generator, 0.5):
        coarse = generator.normal(0, 0.08, (4, 4))
        field = ndimage.zoom(coarse, (stack.shape[1] / 4, stack.shape[2] / 4), order=3)
        out = out * np.exp(field)[None]
    if happens(generator, 0.4):
        grain = generator.normal(0, generator.uniform(0, 0.05), stack.shape)
        out = out + grain.astype(np.float32)
    if happens(generator, 0.25):
        sigma = generator.uniform(0.3, 1.0)
        out = ndimage.gaussian_filter(out, (0, sigma, sigma))
    return np.where(inside, out, 0).astype(np.float32)
