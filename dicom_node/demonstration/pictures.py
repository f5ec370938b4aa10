"""One picture per result: three planes of source, synthetic, band, and the real one if there is."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dicom_node.demonstration.comparison import Comparison
from synthesis.types import FloatArray, Volume

ORIENTATION = "HPL"
"""Slices towards the head, rows to the back, columns to the left: as radiologists look."""
PLANES = ("transverse", "coronal", "sagittal")
WINDOW_PERCENTILES = (0.5, 99.5)
"""Of the voxels that the synthetic series covers."""
CT_WINDOW = (-160.0, 240.0)
BESIDE_THE_MIDLINE_MM = 9.0
"""Where the sagittal plane lies: in the midline of a head there is nothing but fluid and falx."""
INCHES = 2.3
BACKGROUND = "#111417"
INK = "#e6e6e6"

Column = tuple[str, FloatArray, tuple[float, float], str]
"""Title, array, window, color map."""


def draw(comparison: Comparison, path: Path, title: str) -> None:
    """Write the picture as PNG.

    Args:
        comparison: what to show; all on one grid.
        path: of the PNG file.
        title: one line above all.
    """
    columns = _choose_columns(comparison)
    covered = _turn(comparison.grid, comparison.covered.astype(np.float32))
    center = [round(float(index.mean())) for index in np.nonzero(covered.array)]
    center[-1] += round(BESIDE_THE_MIDLINE_MM / covered.spacing[-1])
    figure = Figure(
        figsize=(INCHES * len(columns), INCHES * len(PLANES) + 0.9),
        facecolor=BACKGROUND,
        layout="constrained",
    )
    panels = figure.subplots(len(PLANES), len(columns), squeeze=False)
    for column, (name, array, window, colors) in enumerate(columns):
        turned = _turn(comparison.grid, array)
        for axis, plane in enumerate(PLANES):
            panel = panels[axis][column]
            image, aspect = _cut(turned, axis, center[axis])
            drawn = panel.imshow(
                image, cmap=mpl.colormaps[colors], vmin=window[0], vmax=window[1], aspect=aspect
            )
            panel.set(xticks=[], yticks=[], facecolor=BACKGROUND)
            panel.spines[:].set_visible(False)
            if column == 0:
                panel.set_ylabel(plane, color=INK, fontsize=8)
        panels[0][column].set_title(name, color=INK, fontsize=9)
        bar = figure.colorbar(drawn, ax=panels[:, column], orientation="horizontal", shrink=0.8)
        bar.ax.tick_params(colors=INK, labelsize=6)
    figure.suptitle(title, color=INK, fontsize=10)
    figure.savefig(path, dpi=120, facecolor=BACKGROUND)


def _choose_columns(comparison: Comparison) -> list[Column]:
    target, values = comparison.target, np.asarray(comparison.grid.array, np.float32)
    window = _window(comparison, values)
    columns: list[Column] = [
        (f"source {label}", array, _window(comparison, array), "gray")
        for label, array in comparison.sources.items()
    ]
    columns.append((f"SYNTHETIC {target}\n{comparison.units}", values, window, "gray"))
    if comparison.half_width is not None:
        width = comparison.half_width
        top = float(np.percentile(width[comparison.covered], WINDOW_PERCENTILES[1]))
        columns.append((f"± 90 % band\n{comparison.units}", width, (0.0, top), "magma"))
    if comparison.real is not None:
        columns.append((f"{target} held back", comparison.real, window, "gray"))
        difference = np.where(comparison.covered, values - comparison.real, 0)
        reach = (window[1] - window[0]) / 2
        columns.append(("synthetic - held back", difference, (-reach, reach), "RdBu_r"))
    return columns


def _window(comparison: Comparison, array: FloatArray) -> tuple[float, float]:
    if comparison.units == "HU" and array is comparison.grid.array:
        return CT_WINDOW
    low, high = np.percentile(array[comparison.covered], WINDOW_PERCENTILES)
    return float(low), float(high)


def _turn(grid: Volume, array: FloatArray) -> Volume:
    return grid.with_array(array).to_patient_orientation(ORIENTATION)


def _cut(volume: Volume, axis: int, index: int) -> tuple[NDArray[np.float32], float]:
    """Return one plane, head or front up, and how much higher than wide its pixels are."""
    image = np.take(volume.array, index, axis=axis)
    height, width = np.delete(np.asarray(volume.spacing), axis)
    return (image if axis == 0 else image[::-1]), float(height / width)
