"""The two baselines that every model must beat: the mean image and the histogram-matched copy."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self

import numpy as np

from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, Prediction

LANDMARKS = (0.5, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5)
TABLE = "table.json"


class MeanImage(Synthesizer[Parameters]):
    """One constant inside the mask: the mean of the training people's target."""

    parameters_type = Parameters
    means_: dict[str, float]

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Average the in-mask means of the people who have the target."""
        self.means_ = {}
        for target in self.task.targets:
            values = [float(c.images[target][c.mask].mean()) for c in cases if target in c.images]
            if values:
                self.means_[target] = float(np.mean(values))
        return self

    def predict(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        *,
        target: ContrastLabel,
        mask: MaskArray,
        spacing: tuple[float, float, float],
        seed: int,
    ) -> Prediction:
        """Return the constant inside the mask."""
        self.check_request(sources, target)
        return Prediction(mean=np.where(mask, np.float32(self.means_[target]), np.float32(0)))

    def save(self, folder: Path) -> None:
        """Write the constants."""
        (folder / TABLE).write_text(json.dumps(self.means_))

    def restore(self, folder: Path) -> Self:
        """Read the constants."""
        self.means_ = json.loads((folder / TABLE).read_text())
        return self


class MatchedCopy(Synthesizer[Parameters]):
    """The best source, its histogram matched to the target's by landmarks (Nyul 2000).

    Which source is best is learnt: the one whose matched copy has the least error in training.
    """

    parameters_type = Parameters
    landmarks_: dict[str, list[float]]
    order_: dict[str, list[str]]

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Learn mean target landmarks, and the order of the sources by error."""
        self.landmarks_, self.order_ = {}, {}
        for target in self.task.targets:
            teachers = [c for c in cases if target in c.images]
            if not teachers:
                continue
            marks = [np.percentile(c.images[target][c.mask], LANDMARKS) for c in teachers]
            self.landmarks_[target] = [float(m) for m in np.mean(marks, axis=0)]
            errors: dict[str, list[float]] = {}
            for case in teachers:
                truth = case.images[target][case.mask]
                for label in self.task.sources:
                    if label in case.images and label != target:
                        copy = match_histogram(
                            case.images[label], case.mask, self.landmarks_[target]
                        )
                        error = float(np.mean((copy[case.mask] - truth) ** 2))
                        errors.setdefault(label, []).append(error)
            self.order_[target] = sorted(errors, key=lambda label: float(np.mean(errors[label])))
        return self

    def predict(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        *,
        target: ContrastLabel,
        mask: MaskArray,
        spacing: tuple[float, float, float],
        seed: int,
    ) -> Prediction:
        """Return the matched copy of the best source that is there."""
        self.check_request(sources, target)
        best = next(label for label in [*self.order_[target], *sources] if label in sources)
        copy = match_histogram(sources[ContrastLabel(best)], mask, self.landmarks_[target])
        return Prediction(mean=copy)

    def save(self, folder: Path) -> None:
        """Write landmarks and order."""
        table = {"landmarks": self.landmarks_, "order": self.order_}
        (folder / TABLE).write_text(json.dumps(table))

    def restore(self, folder: Path) -> Self:
        """Read landmarks and order."""
        table = json.loads((folder / TABLE).read_text())
        self.landmarks_, self.order_ = table["landmarks"], table["order"]
        return self


def match_histogram(array: FloatArray, mask: MaskArray, landmarks: Sequence[float]) -> FloatArray:
    """Map the array's percentiles inside the mask piecewise linearly onto `landmarks`."""
    own = np.percentile(array[mask], LANDMARKS)
    own = np.maximum.accumulate(own + np.arange(len(own)) * 1e-7)
    matched = np.interp(array, own, landmarks)
    return np.where(mask, matched, 0).astype(np.float32)
