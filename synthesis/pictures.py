"""Pictures of a prediction: truth, answer and error of a slice side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from synthesis.types import Case, ContrastLabel, FloatArray, Prediction

ERROR_GAIN = 2.0
CAPTION_HEIGHT = 14


def write_strip(path: Path, case: Case, target: ContrastLabel, answer: Prediction) -> None:
    """Write the middle slice of the truth, of the answer and of twice their difference, as PNG.

    Black to white is zero to the truth's 99.5th percentile inside the mask.
    """
    truth, made = case.images[target], np.where(case.mask, answer.mean, 0)
    white = max(float(np.percentile(truth[case.mask], 99.5)), 1e-6)
    middle = case.mask.shape[0] // 2
    panels = (truth[middle], made[middle], ERROR_GAIN * np.abs(made[middle] - truth[middle]))
    strip = np.clip(np.concatenate(panels, axis=1) / white, 0, 1)
    image = Image.fromarray(np.rint(255 * strip).astype(np.uint8))
    image.quantize(64).save(path, optimize=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRow:
    """One line of a sheet: slices of one person, arrays (rows, columns), zero outside the mask."""

    caption: str
    source: FloatArray
    truth: FloatArray
    answer: FloatArray


def write_sheet(path: Path, rows: Sequence[SheetRow]) -> None:
    """Write lines of source, truth, answer and twice the difference of the last two, as PNG.

    Black to white is zero, or what is least, to the 99.5th percentile of what is not zero: the
    source's own for the source, the truth's for the three others.
    """
    lines = []
    for row in rows:
        black, white = _find_window(row.truth)
        error = ERROR_GAIN * np.abs(row.answer - row.truth) / (white - black)
        panels = [
            _brighten(row.source, *_find_window(row.source)),
            *(_brighten(image, black, white) for image in (row.truth, row.answer)),
            error,
        ]
        lines.append(np.clip(np.concatenate(panels, axis=1), 0, 1))
    width = max(line.shape[1] for line in lines)
    height = sum(line.shape[0] + CAPTION_HEIGHT for line in lines)
    sheet = Image.new("L", (width, height))
    pen, top = ImageDraw.Draw(sheet), 0
    for row, line in zip(rows, lines, strict=True):
        pen.text((2, top), f"{row.caption}: source, truth, answer, error", fill=255)
        top += CAPTION_HEIGHT
        sheet.paste(Image.fromarray(np.rint(255 * line).astype(np.uint8)), (0, top))
        top += line.shape[0]
    temporary = path.with_name(f"{path.name}.part")
    sheet.save(temporary, format="PNG", optimize=True)
    temporary.rename(path)


def _find_window(image: FloatArray) -> tuple[float, float]:
    tissue = image[image != 0]
    if not tissue.size:
        return 0.0, 1.0
    black = min(0.0, float(tissue.min()))
    return black, max(float(np.percentile(tissue, 99.5)), black + 1e-6)


def _brighten(image: FloatArray, black: float, white: float) -> FloatArray:
    return ((image - black) / (white - black)).astype(np.float32)
