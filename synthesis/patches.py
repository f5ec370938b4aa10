"""Slices for 2.5-D methods: one implementation of stacking, padding and views for all of them."""

from collections.abc import Iterator

import numpy as np

from synthesis.types import FloatArray

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


def stack_neighbors(volume: FloatArray, axis: int, slices: int) -> FloatArray:
    """Return (n, channels, slices, rows, columns): each slice with its neighbors, edges repeated.

    Args:
        volume: (channels, slices, rows, columns), canonical.
        axis: spatial slice axis, 0 to 2.
        slices: odd number of slices in a stack.
    """
    moved = np.moveaxis(volume, axis + 1, 1)  # (channels, n, rows, columns)
    half = slices // 2
    padded = np.pad(moved, ((0, 0), (half, half), (0, 0), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, slices, axis=1)
    # windows: (channels, n, rows, columns, slices)
    return np.transpose(windows, (1, 0, 4, 2, 3))


def pad_to_multiple(stack: FloatArray, multiple: int) -> FloatArray:
    """Pad rows and columns at their ends by zeros up to a multiple; crop to undo."""
    rows, columns = stack.shape[-2:]
    widths = [(0, 0)] * (stack.ndim - 2)
    return np.pad(stack, (*widths, (0, -rows % multiple), (0, -columns % multiple)))


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield slices that cover `range(count)` in pieces of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
