"""The bias field of an MR image: N4 (Tustison 2010) on a grid, along one axis after the other.

Intensities are sharpened by deconvolution of their histogram; what that takes away from the image
is approximated by a cubic B-spline (Lee 1997), again and again, at two resolutions. This is what
ITK's filter does, to rounding. On a grid every sum over the spline's terms is a product over the
axes, which makes it several times as fast, and the field costs next to nothing where it is wanted.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from synthesis.types import FloatArray, MaskArray

ITERATIONS = (30, 20)
"""Of each resolution: one span along each axis, then two."""
CONVERGED = 0.001
"""Coefficient of variation of what a step changes."""
BINS = 200
WIDTH = 0.15
"""Full width at half maximum of what blurs the histogram, in logarithmic units."""
NOISE = 0.01
"""Of the Wiener filter."""
ORDER = 3

Array = NDArray[np.float64]
F = TypeVar("F", np.float32, np.float64)


def estimate_field(image: FloatArray, inside: MaskArray) -> Array:
    """Return the control points of the logarithm of the field, for `evaluate_field`.

    Args:
        image: (slices, rows, columns), above zero where it counts.
        inside: where it counts.
    """
    known = np.log(image[inside].astype(np.float64))
    field = np.zeros_like(known)
    points = np.zeros((ORDER + 1,) * 3)
    for level, iterations in enumerate(ITERATIONS):
        if level:
            points = _refine(points)
        spline = _Spline(inside, 2**level)
        for _ in range(iterations):
            rest = known - field
            points = points + spline.approximate(rest - _sharpen(rest))
            after = spline.evaluate(points)
            change = np.exp(field - after)
            field = after
            if change.std(ddof=1) <= CONVERGED * change.mean():
                break
    return points


def evaluate_field(
    points: Array, shape: tuple[int, ...], box: tuple[slice, slice, slice]
) -> FloatArray:
    """Return the logarithm of the field in a box of an array of `shape`."""
    weights = [
        _weigh(size, len(points) - ORDER)[part].astype(np.float32)
        for size, part in zip(shape, box, strict=True)
    ]
    return np.ascontiguousarray(_along_axes(points.astype(np.float32), weights))


class _Spline:
    """Cubic B-splines of so many spans along each axis of a grid, known at some of its places."""

    def __init__(self, inside: MaskArray, spans: int) -> None:
        self._inside = inside
        self._weights = [_weigh(size, spans) for size in inside.shape]
        squares = [weights**2 for weights in self._weights]
        self._shares = [
            (weights * square / square.sum(axis=1, keepdims=True)).T
            for weights, square in zip(self._weights, squares, strict=True)
        ]
        self._total = _along_axes(inside.astype(np.float64), [square.T for square in squares])

    def approximate(self, values: Array) -> Array:
        """Return the control points that follow values at the places inside."""
        grid = np.zeros(self._inside.shape)
        grid[self._inside] = values
        points = np.zeros_like(self._total)
        np.divide(_along_axes(grid, self._shares), self._total, out=points, where=self._total > 0)
        return points

    def evaluate(self, points: Array) -> Array:
        """Return the values at the places inside."""
        values: Array = _along_axes(points, self._weights)[self._inside]
        return values


def _along_axes(array: NDArray[F], matrices: Sequence[NDArray[F]]) -> NDArray[F]:
    """Return the array with each axis multiplied by its matrix (new size, old size)."""
    for matrix in matrices:
        # the axis comes to the end: after all three the order is the old one
        array = np.tensordot(array, matrix, axes=(0, 1))
    return array


def _weigh(size: int, spans: int) -> Array:
    """Return (size, spans + 3) the weight of each control point at places from end to end."""
    along = np.linspace(0, spans, size)
    first = np.minimum(along.astype(int), spans - 1)
    f = along - first
    cubes = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, 3 * (f + f**2 - f**3) + 1, f**3)
    weights = np.zeros((size, spans + ORDER))
    for number, cube in enumerate(cubes):
        weights[np.arange(size), first + number] = cube / 6
    return weights


def _refine(points: Array) -> Array:
    """Return the control points of the same spline with twice as many spans."""
    spans = len(points) - ORDER
    places = 4 * (2 * spans + ORDER)
    finer = np.linalg.pinv(_weigh(places, 2 * spans)) @ _weigh(places, spans)
    return _along_axes(points, [finer] * 3)


def _sharpen(values: Array) -> Array:
    """Return what the values would be without the blur of their histogram (Sled 1998)."""
    low = float(values.min())
    slope = (float(values.max()) - low) / (BINS - 1)
    if slope <= 0:
        return values
    place = (values - low) / slope
    bin_ = np.minimum(place.astype(int), BINS - 2)
    share = place - bin_
    histogram = np.bincount(bin_, 1 - share, BINS) + np.bincount(bin_ + 1, share, BINS)
    padded, offset, blur = _blur(slope)
    wiener = (blur.conj() / (np.abs(blur) ** 2 + NOISE)).real
    wide = np.zeros(padded)
    wide[offset : offset + BINS] = histogram
    sharp = np.maximum(np.fft.ifft(np.fft.fft(wide) * wiener).real, 0)
    level = low + (np.arange(padded) - offset) * slope
    above, below = (np.fft.ifft(np.fft.fft(x * sharp) * blur).real for x in (level, 1.0))
    expected = np.divide(above, below, out=np.zeros(padded), where=below != 0)
    expected = expected[offset : offset + BINS]
    sharpened: Array = expected[bin_] + (expected[bin_ + 1] - expected[bin_]) * share
    return sharpened


def _blur(slope: float) -> tuple[int, int, NDArray[np.complex128]]:
    """Return the length of a padded histogram, where it begins, and the blur's transform."""
    padded = 2 ** (int(np.ceil(np.log2(BINS))) + 1)
    width = WIDTH / slope
    away = np.minimum(np.arange(padded), padded - np.arange(padded))
    gauss = 2 * np.sqrt(np.log(2) / np.pi) / width * np.exp(-4 * np.log(2) * (away / width) ** 2)
    return padded, (padded - BINS) // 2, np.fft.fft(gauss)
