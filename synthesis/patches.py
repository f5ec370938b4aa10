"""Pieces of volumes for networks: views, boxes, and tiles whose weights hide their seams."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from synthesis.types import FloatArray, MaskArray

THICK_FROM = 1.6
"""Slices this many times farther apart than the pixels in plane are thick: never interpolated."""
MARGIN = 8
WINDOW_MARGIN = 16
"""About a window: a network of four levels answers within 50 dB of what it does of all."""
WINDOW = 8.0
"""A tile's size over the standard deviation of the window that it is weighted by."""
LEAST_WEIGHT = 1e-3
VIEWS = (0, 1, 2)
"""Slice axes of a canonical volume: 0 axial, 1 coronal, 2 sagittal."""


def usable_views(spacing: tuple[float, float, float], thick_from: float) -> tuple[int, ...]:
    """Return the slice axes along which a 2.5-D network may look.

    When one axis is thick (spacing over `thick_from` times the finest), only that axis: its
    neighbors in plane are the only pixels that are as fine as the network expects.
    """
    finest = min(spacing)
    thick = [axis for axis in VIEWS if spacing[axis] > thick_from * finest]
    if not thick:
        return VIEWS
    return (max(thick, key=lambda axis: spacing[axis]),)


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield slices that cover `range(count)` in pieces of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along an axis: from its start to its end, at least overlapping so.

    `tile` is at most `length`.
    """
    room = length - tile
    count = int(np.ceil(room / max(1, round(tile * (1 - overlap))))) + 1
    return sorted({round(start) for start in np.linspace(0, room, count)})


def tile_weights(tile: Sequence[int]) -> FloatArray:
    """Return a Gaussian window, by which overlapping tiles are averaged without seams."""
    sides = [
        np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) * WINDOW / size) ** 2) for size in tile
    ]
    window = functools.reduce(np.multiply.outer, sides)
    return np.maximum(window, LEAST_WEIGHT).astype(np.float32)


def bounding_box(mask: MaskArray, margin: int = MARGIN) -> tuple[slice, slice, slice]:
    """Return the smallest box around the mask, a few voxels larger where the array allows."""
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        low = max(0, int(filled[0]) - margin) if filled.size else 0
        high = min(mask.shape[axis], int(filled[-1]) + 1 + margin) if filled.size else 1
        box.append(slice(low, high))
    return (box[0], box[1], box[2])


def find_window(inside: MaskArray, multiple: int) -> tuple[slice, slice] | None:
    """Return the smallest window about what is inside an image and a margin.

    It begins and ends at multiples: a network that pools answers otherwise when it is shifted.

    Args:
        inside: (rows, columns).
        multiple: the window may reach past the image, to the next one.

    Returns:
        Rows and columns, or None when nothing is inside.
    """
    if not inside.any():
        return None
    window = []
    for axis, size in enumerate(inside.shape):
        filled = np.flatnonzero(inside.any(axis=1 - axis))
        low = max(0, int(filled[0]) - WINDOW_MARGIN)
        high = min(size, int(filled[-1]) + 1 + WINDOW_MARGIN)
        window.append(slice(low - low % multiple, high + -high % multiple))
    return (window[0], window[1])
