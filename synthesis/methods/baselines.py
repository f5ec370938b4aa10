"""The baselines that every model must beat: mean image, histogram-matched copy, linear map."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self

import numpy as np

from synthesis.errors import MissingSource
from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, Prediction

LANDMARKS = (0.5, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5)
TABLE = "table.json"
ONE = "one"
"""The name of the constant among the terms of a linear map."""


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
        self.check_request(sources, target, mask)
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
        self.check_request(sources, target, mask)
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


class VoxelwiseLinear(Synthesizer[Parameters]):
    """The weighted sum of a voxel's sources that has the least squared error over the people.

    Kept are each person's mean products of contrasts, from which the weights of any subset of
    sources follow.
    """

    parameters_type = Parameters
    people_: list[dict[str, dict[str, float]]]

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Measure every person's products."""
        known = dict.fromkeys([*self.task.sources, *self.task.targets])
        self.people_ = []
        for case in cases:
            values: dict[str, FloatArray] = {ONE: np.ones(int(case.mask.sum()), np.float32)}
            for label in known:
                if label in case.images:
                    values[label] = case.images[label][case.mask]
            self.people_.append(
                {
                    row: {column: float(np.mean(x * y)) for column, y in values.items()}
                    for row, x in values.items()
                }
            )
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
        """Return the weighted sum, learnt from the people who have these contrasts.

        Raises:
            MissingSource: nobody has them all.
        """
        self.check_request(sources, target, mask)
        terms = [ONE, *sources]
        teachers = [p for p in self.people_ if {*terms, target} <= set(p)]
        if not teachers:
            raise MissingSource(f"nobody was learnt from who has {target} and {sorted(sources)}")
        products = np.mean([[[p[a][b] for b in terms] for a in terms] for p in teachers], axis=0)
        wanted = np.mean([[p[a][target] for a in terms] for p in teachers], axis=0)
        offset, *weights = np.linalg.lstsq(products, wanted, rcond=None)[0]
        total = sum(
            np.float32(w) * array for w, array in zip(weights, sources.values(), strict=True)
        )
        return Prediction(mean=np.where(mask, total + np.float32(offset), 0).astype(np.float32))

    def save(self, folder: Path) -> None:
        """Write the products."""
        (folder / TABLE).write_text(json.dumps(self.people_))

    def restore(self, folder: Path) -> Self:
        """Read the products."""
        self.people_ = json.loads((folder / TABLE).read_text())
        return self


def match_histogram(array: FloatArray, mask: MaskArray, landmarks: Sequence[float]) -> FloatArray:
    """Map the array's percentiles inside the mask piecewise linearly onto `landmarks`."""
    own = np.percentile(array[mask], LANDMARKS)
    own = np.maximum.accumulate(own + np.arange(len(own)) * 1e-7)
    matched = np.interp(array, own, landmarks)
    return np.where(mask, matched, 0).astype(np.float32)
