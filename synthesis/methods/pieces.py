"""Methods that look at small cubes: cut out, answered one by one, and laid together again."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import ndimage

from synthesis.patches import batches
from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import (
    Case,
    ContrastLabel,
    FloatArray,
    MaskArray,
    Prediction,
    SynthesisTask,
)

ARRAYS = "arrays.safetensors"
BLOCK = 20_000
"""Cubes that are in memory at once."""
STRIDE = 2
"""Answers are cubes of three voxels a side that overlap by one."""
ANSWER_RADIUS = 1
ANSWER_VOXELS = (2 * ANSWER_RADIUS + 1) ** 3
TAPER = np.array([0.5, 1.0, 0.5], np.float32)
"""Weights along an axis; neighbors that overlap add up to one."""

Places = NDArray[np.intp]


class PieceParameters(Parameters):
    """Hyper-parameters of every `PieceMethod`.

    Attributes:
        radius: of the source cubes, in voxels.
        patches_per_person: pairs of cubes that each person teaches.
    """

    radius: int = 2
    patches_per_person: int = 15_000


P = TypeVar("P", bound=PieceParameters)


class PieceMethod(Synthesizer[P]):
    """A method that learns from pairs of cubes, of all sources and of one target.

    Attributes:
        arrays_: what was learnt, by `target.name`.
    """

    arrays_: dict[str, FloatArray]

    @abstractmethod
    def learn(
        self, x: FloatArray, y: FloatArray, *, seed: int, generator: np.random.Generator
    ) -> dict[str, FloatArray]:
        """Return, by name, what is learnt for a target.

        Args:
            x: (patches, source voxels).
            y: (patches, 27), the target's.
            seed: of what takes a seed.
            generator: of every other random draw.
        """

    @abstractmethod
    def answer(self, patches: FloatArray, learnt: Mapping[str, FloatArray]) -> FloatArray:
        """Return (patches, 27) answers to (patches, source voxels), by what `learn` returned."""

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Learn each target from cubes of the people who have it and all sources."""
        p = self.parameters
        self.arrays_ = {}
        generator = np.random.default_rng(seed)
        for target in self.task.targets:
            x, y = draw_pairs(
                cases,
                self.task,
                target,
                radius=p.radius,
                count=p.patches_per_person,
                generator=generator,
            )
            learnt = self.learn(x, y, seed=seed, generator=generator)
            self.arrays_ |= {f"{target}.{name}": array for name, array in learnt.items()}
        return self

    def predict(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        *,
        target: ContrastLabel,
        mask: MaskArray,
        spacing: tuple[float, float, float],
        seed: int,
    ) -> Prediction:
        """Answer every cube that touches the mask, and average the answers where they overlap."""
        self.check_request(sources, target, mask)
        of_target = f"{target}."
        learnt = {
            name.removeprefix(of_target): array
            for name, array in self.arrays_.items()
            if name.startswith(of_target)
        }
        images = [np.where(mask, sources[s], 0) for s in self.task.sources]
        places = find_places(mask)
        made = np.empty((len(places), ANSWER_VOXELS), np.float32)
        for piece in batches(len(places), BLOCK):
            made[piece] = self.answer(cut(images, places[piece], self.parameters.radius), learnt)
        return Prediction(mean=lay(made, places, mask))

    def save(self, folder: Path) -> None:
        """Write the arrays."""
        save_file({k: np.ascontiguousarray(v) for k, v in self.arrays_.items()}, folder / ARRAYS)

    def restore(self, folder: Path) -> Self:
        """Read the arrays."""
        self.arrays_ = load_file(folder / ARRAYS)
        return self


def cut(images: Sequence[FloatArray], places: Places, radius: int) -> FloatArray:
    """Return (places, images * side**3) the cubes about the places; outside the array is zero."""
    width = 2 * radius + 1
    columns = []
    for image in images:
        windows = sliding_window_view(np.pad(image, radius), (width, width, width))
        columns.append(windows[tuple(places.T)].reshape(len(places), width**3))
    return np.concatenate(columns, axis=1).astype(np.float32)


def find_places(mask: MaskArray) -> Places:
    """Return (places, 3) every other voxel along each axis whose answer touches the mask."""
    near = ndimage.maximum_filter(mask, 2 * ANSWER_RADIUS + 1)[::STRIDE, ::STRIDE, ::STRIDE]
    return np.argwhere(near) * STRIDE


def lay(answers: FloatArray, places: Places, mask: MaskArray) -> FloatArray:
    """Return the image whose cubes are `answers` (places, 27), averaged where they overlap."""
    padded = tuple(n + 2 * ANSWER_RADIUS for n in mask.shape)
    total, weight = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    width = 2 * ANSWER_RADIUS + 1
    for number, offset in enumerate(np.ndindex(width, width, width)):
        share = np.float32(np.prod(TAPER[list(offset)]))
        where = tuple((places + np.array(offset)).T)
        total[where] += share * answers[:, number]
        weight[where] += share
    inner = (slice(ANSWER_RADIUS, -ANSWER_RADIUS),) * 3
    image = total[inner] / np.maximum(weight[inner], np.finfo(np.float32).tiny)
    return np.where(mask, image, 0).astype(np.float32)


def draw_pairs(
    cases: Sequence[Case],
    task: SynthesisTask,
    target: ContrastLabel,
    *,
    radius: int,
    count: int,
    generator: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """Return source cubes and target cubes about `count` voxels of each person who has all."""
    sources, answers = [], []
    for case in cases:
        if not {target, *task.sources} <= set(case.images):
            continue
        inside = np.argwhere(case.mask)
        places = inside[generator.choice(len(inside), min(count, len(inside)), replace=False)]
        images = [np.where(case.mask, case.images[s], 0) for s in task.sources]
        truth = np.where(case.mask, case.images[target], 0)
        sources.append(cut(images, places, radius))
        answers.append(cut([truth], places, ANSWER_RADIUS))
    return np.concatenate(sources), np.concatenate(answers)
