"""Pictures of a prediction: truth, answer and error of one slice side by side."""

from pathlib import Path

import numpy as np
from PIL import Image

from synthesis.types import Case, ContrastLabel, Prediction

ERROR_GAIN = 2.0


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
