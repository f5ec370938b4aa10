"""Small cubes of images: cut out for patch methods, and laid together again from their answers."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, SynthesisTask

STRIDE = 2
"""Answers are cubes of three voxels a side that overlap by one."""
ANSWER_RADIUS = 1
TAPER = np.array([0.5, 1.0, 0.5], np.float32)
"""Weights along an axis; neighbors that overlap add up to one."""

Places = NDArray[np.intp]


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
