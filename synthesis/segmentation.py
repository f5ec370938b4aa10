"""What a segmentation is worth on synthetic images: overlap scores, and a plain tissue classifier.

The classifier knows one image and three classes by brightness. It learns where to cut from the
truth alone and cuts the synthetic image at the same values, so that both an error of brightness and
lost structure cost overlap.
"""

import numpy as np
from numpy.typing import NDArray

from synthesis.types import FloatArray, MaskArray

TISSUES = 3
ROUNDS = 30
SAMPLED = 50_000

Labels = NDArray[np.integer]


def dice(truth: MaskArray, found: MaskArray) -> float:
    """Return twice the overlap over the sum of both; not a number where both are empty."""
    both = int(truth.sum()) + int(found.sum())
    return 2 * int((truth & found).sum()) / both if both else float("nan")


def mean_dice(truth: Labels, found: Labels) -> float:
    """Return the mean Dice over the labels above zero that the truth has; nan if it has none."""
    labels = [label for label in np.unique(truth) if label > 0]
    scores = [dice(truth == label, found == label) for label in labels]
    return float(np.mean(scores)) if scores else float("nan")


def measure_cuts(image: FloatArray, mask: MaskArray) -> NDArray[np.float64]:
    """Return the values that part the classes inside the mask, by k-means of the brightness."""
    values = np.sort(image[mask].astype(np.float64))
    values = values[:: max(1, values.size // SAMPLED)]
    centers = np.percentile(values, np.linspace(10, 90, TISSUES))
    for _ in range(ROUNDS):
        cuts = (centers[1:] + centers[:-1]) / 2
        parts = np.split(values, np.searchsorted(values, cuts))
        centers = np.array(
            [part.mean() if part.size else c for part, c in zip(parts, centers, strict=True)]
        )
    return np.asarray((centers[1:] + centers[:-1]) / 2)


def classify(image: FloatArray, mask: MaskArray, cuts: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return 0 outside the mask, and inside it 1 for the darkest class, 2, 3."""
    return np.where(mask, np.searchsorted(cuts, image) + 1, 0).astype(np.uint8)
