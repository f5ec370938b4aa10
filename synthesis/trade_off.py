"""What more steps and more draws of a generative method buy: distortion against perception.

A draw looks real and errs more; the mean of many errs less and is smooth (Blau 2018, "The
perception-distortion tradeoff"). Both are measured on a few slices over the number of steps that a
draw takes.
"""

import copy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from synthesis.errors import TrainingError
from synthesis.metrics.ours import DETAIL_SIGMA, peak_signal_to_noise
from synthesis.segmenter import Segmenter
from synthesis.synthesizer import Synthesizer
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray

STEPS = (1, 2, 4, 10, 50)
FEW_STEPS = 4
"""With so many at most an answer should be about as good as with the most."""
DRAWS = (1, 8)
SLICES = 6
"""About the middle; a draw of 50 steps of a whole head takes minutes."""


def measure(
    method: Synthesizer[Any],
    case: Case,
    sources: Sequence[ContrastLabel],
    target: ContrastLabel,
    *,
    seed: int,
    segmenter: Segmenter,
) -> dict[str, float]:
    """Return the figures of one draw and of the mean of 8 for each number of steps.

    Named such as `psnr_db, 4 steps, 8 draws`; `features` is the distance of the features that a
    segmenter sees in the answer from those that it sees in the truth, `detail` the energy of high
    frequencies over the truth's, `seconds` the time of a slice.

    Args:
        method: that answers.
        case: a person whom it did not learn from.
        sources: what it is given.
        target: what it is asked for.
        seed: of the first draw; the next ones follow.
        segmenter: that no method has learnt from.

    Raises:
        TrainingError: the method does not draw.
    """
    middle = len(case.mask) // 2
    cut = slice(middle - SLICES // 2, middle - SLICES // 2 + SLICES)
    mask, truth = case.mask[cut], case.images[target][cut]
    given = {label: case.images[label][cut] for label in sources}
    figures: dict[str, float] = {}
    for steps in _list_steps(method):
        drawing = drawing_in(method, steps)
        began = time.monotonic()
        drawn = [
            drawing.predict(
                given, target=target, mask=mask, spacing=case.spacing, seed=seed + number
            ).mean
            for number in range(max(DRAWS))
        ]
        seconds = (time.monotonic() - began) / len(drawn) / SLICES
        for count in DRAWS:
            made = np.asarray(np.mean(drawn[:count], axis=0, dtype=np.float32))
            found = {
                "psnr_db": peak_signal_to_noise(truth, made, mask),
                "features": segmenter.distance(target, made, truth, mask),
                "detail": _detail(made, mask) / _detail(truth, mask),
                "seconds": seconds * count,
            }
            figures |= {name_of(name, steps, count): value for name, value in found.items()}
    return figures


def name_of(figure: str, steps: int, draws: int) -> str:
    """Return the name of a figure of `measure`."""
    return f"{figure}, {steps} steps, {draws} draws"


def drawing_in(method: Synthesizer[Any], steps: int) -> Synthesizer[Any]:
    """Return the method as it draws one answer in so many steps.

    Raises:
        TrainingError: it does not draw.
    """
    if not can_draw(method):
        raise TrainingError(f"{type(method).__name__} does not draw: it has one answer")
    drawing = copy.copy(method)
    drawing.parameters = method.parameters.model_copy(
        update={"sampling_steps": steps, "samples": 1}
    )
    return drawing


def can_draw(method: Synthesizer[Any]) -> bool:
    """Whether the method has more than one answer to a request."""
    return "sampling_steps" in type(method.parameters).model_fields


def _list_steps(method: Synthesizer[Any]) -> list[int]:
    """Return the numbers of steps that the method can take; a bridge takes parts of its own."""
    times = getattr(method.parameters, "times", None)
    return [steps for steps in STEPS if times is None or times % steps == 0]


def _detail(image: FloatArray, mask: MaskArray) -> float:
    inside = np.where(mask, image, 0).astype(np.float64)
    return float((ndimage.gaussian_laplace(inside, DETAIL_SIGMA)[mask] ** 2).sum())
