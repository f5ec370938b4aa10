"""Generated pairs of truth and prediction on which published metric code was run.

The published code ran outside this project, on the pairs of this file; its answers are in
`tests/synthesis/metric_pairs.json`: SynthRAD2023/metrics at 3200007, SynthRAD2025/evaluation at
17cac47, and the BraSyn organizers' script in AImageLab-zip/BraSyn25 at 8c18e17 with torchmetrics
1.9.0. Numbers come from `numpy.random.Generator`, whose streams NumPy keeps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHAPES = ((7, 7, 7), (8, 7, 9), (12, 16, 14), (9, 30, 26), (24, 20, 28), (40, 33, 17))
KINDS = ("noise", "blocks", "ramp", "offset", "constant truth", "constant prediction", "zero")
MASKS = ("all", "ball", "scattered", "half")
COUNT = 91


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Arrays in HU or arbitrary units, float32, and a mask with at least one voxel."""

    name: str
    truth: NDArray[np.float32]
    prediction: NDArray[np.float32]
    mask: NDArray[np.bool_]

    @property
    def tumor(self) -> NDArray[np.bool_]:
        """The mask but for the first third of the slices, so that something is no tumor."""
        tumor = self.mask.copy()
        tumor[: len(tumor) // 3] = False
        return tumor


def make_pairs() -> Iterator[Pair]:
    """Yield the pairs, always the same ones."""
    for number in range(COUNT):
        generator = np.random.default_rng([2026, number])
        kind, shape = KINDS[number % len(KINDS)], SHAPES[number % len(SHAPES)]
        chosen = MASKS[number % len(MASKS)]
        truth, prediction = _draw(kind, shape, generator)
        yield Pair(
            name=f"{number} {kind} {'x'.join(map(str, shape))} {chosen}",
            truth=truth.astype(np.float32),
            prediction=prediction.astype(np.float32),
            mask=_mask(chosen, shape, generator),
        )


def _draw(
    kind: str, shape: tuple[int, ...], generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    noise = generator.normal(0, 150, shape)
    wide = generator.uniform(-1400, 3600, shape)  # beyond every dynamic range on both sides
    blocks = np.kron(generator.uniform(-1000, 2000, (5, 5, 5)), np.ones((8, 8, 8)))
    blocks = blocks[: shape[0], : shape[1], : shape[2]]
    ramp = np.linspace(-900, 1500, int(np.prod(shape))).reshape(shape)
    constant = np.full(shape, 40.0)
    return {
        "noise": (wide, wide + noise),
        "blocks": (blocks, 0.8 * blocks + noise),
        "ramp": (ramp, ramp[::-1]),
        "offset": (blocks, blocks + 100),
        "constant truth": (constant, constant + noise),
        "constant prediction": (blocks, constant),
        "zero": (0 * constant, 0 * constant + (noise if generator.random() < 0.5 else 0)),
    }[kind]


def _mask(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.bool_]:
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    center = np.max(np.abs(axes), axis=0) < 0.3
    return {
        "all": np.ones(shape, bool),
        "ball": np.asarray(sum(x**2 for x in axes) < 0.8),
        "scattered": (generator.random(shape) < 0.3) | center,
        "half": np.asarray(axes[1] > -0.1),
    }[kind]
