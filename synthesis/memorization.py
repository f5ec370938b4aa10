"""Whether an answer is a training person's picture: the nearest training neighbor of its pieces.

Pieces of a slice of the answer are looked for among the training people about the same place of the
body (normalized correlation, so that brightness and contrast hide nothing). What a network invents
may be what it has seen: a piece counts as copied where a training person's is all but the same and
nearer to it than the truth is. The same search for the truth's own pieces says how alike people
are who have nothing to do with each other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from synthesis.patches import bounding_box
from synthesis.synthesizer import Synthesizer, ask
from synthesis.trade_off import can_draw, drawing_in
from synthesis.types import Case, ContrastLabel, FloatArray

SIDE = 24
"""Voxels of a square piece."""
PIECES = 60
REACH = 6
"""Voxels in plane, to every side, in which a training person's piece is looked for."""
SLICES = (-2, 0, 2)
STRIDE = 2
COPIED_FROM = 0.95
"""Correlation from which two pieces are all but the same."""
DRAWN_STEPS = 10
"""Of a method that can draw: its mean is of no training person, its draws may be."""


def measure(
    method: Synthesizer[Any],
    case: Case,
    sources: Sequence[ContrastLabel],
    target: ContrastLabel,
    *,
    seed: int,
    trained: Sequence[Case],
) -> dict[str, float]:
    """Return mean correlations of pieces with their nearest training neighbors, and what is copied.

    `nearest_made` and `nearest_real` are of the answer's and of the truth's pieces, `own` of the
    answer's with the truth, `copied` the share of copied pieces.

    Args:
        method: that answers; one that can draw is asked for a draw.
        case: a person whom it did not learn from.
        sources: what it is given.
        target: what it is asked for.
        seed: of the pieces and of the answer.
        trained: whom it has learnt from.
    """
    asked = drawing_in(method, DRAWN_STEPS) if can_draw(method) else method
    made = ask(asked, case, sources, target, seed=seed).mean
    truth = case.images[target]
    teachers = [(c.images[target], c) for c in trained if target in c.images]
    figures: dict[str, list[float]] = {"nearest_made": [], "nearest_real": [], "own": []}
    copied = []
    for center in _choose_centers(case, seed):
        mine, real = (_unit(_cut(image, center)) for image in (made, truth))
        near = [_search(image, _relate(center, case, other)) for image, other in teachers]
        found = np.concatenate(
            [pieces for pieces in near if pieces.size] or [np.zeros((1, SIDE**2))]
        )
        nearest, own = float((found @ mine).max()), float(real @ mine)
        figures["nearest_made"].append(nearest)
        figures["nearest_real"].append(float((found @ real).max()))
        figures["own"].append(own)
        copied.append(nearest >= COPIED_FROM and nearest > own)
    means = {name: float(np.mean(values)) for name, values in figures.items() if values}
    return means | {"copied": float(np.mean(copied)) if copied else 0.0}


def _choose_centers(case: Case, seed: int) -> list[NDArray[np.intp]]:
    """Return places whose piece lies within the mask for the most part."""
    half = SIDE // 2
    inside = case.mask.copy()
    inside[:, :half] = inside[:, -half:] = False
    inside[:, :, :half] = inside[:, :, -half:] = False
    places = np.argwhere(inside)
    if not len(places):
        return []
    order = np.random.default_rng(seed).permutation(len(places))[:PIECES]
    return [places[k] for k in order]


def _relate(center: NDArray[np.intp], case: Case, other: Case) -> NDArray[np.intp]:
    """Return the place of another person that lies as far along the body's box."""
    boxes = [bounding_box(each.mask, margin=0) for each in (case, other)]
    share = [(c - b.start) / (b.stop - b.start) for c, b in zip(center, boxes[0], strict=True)]
    return np.array(
        [round(b.start + s * (b.stop - b.start)) for s, b in zip(share, boxes[1], strict=True)]
    )


def _cut(image: FloatArray, center: NDArray[np.intp]) -> FloatArray:
    z, y, x = (int(c) for c in center)
    half = SIDE // 2
    return image[z, y - half : y + half, x - half : x + half]


def _search(image: FloatArray, center: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return (pieces, voxels), the unit pieces about a place."""
    z, y, x = (int(c) for c in center)
    wide = SIDE // 2 + REACH
    top, left = max(0, y - wide), max(0, x - wide)
    pieces = []
    for step in SLICES:
        if not 0 <= z + step < len(image):
            continue
        window = image[z + step, top : y + wide, left : x + wide]
        if min(window.shape) >= SIDE:
            views = sliding_window_view(window, (SIDE, SIDE))[::STRIDE, ::STRIDE]
            pieces.append(_unit(views.reshape(-1, SIDE * SIDE)))
    return np.concatenate(pieces) if pieces else np.zeros((0, SIDE * SIDE))


def _unit(pieces: FloatArray) -> NDArray[np.float64]:
    """Return pieces with mean zero and length one, voxels along the last axis."""
    flat = pieces.reshape(*pieces.shape[:-2], -1) if pieces.shape[-1] == SIDE else pieces
    values = flat.astype(np.float64)
    values = values - values.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.maximum(length, 1e-9))
