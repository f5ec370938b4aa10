"""Traditional: gradient-boosted trees on patch features, voxel by voxel (after REPLICA, Jog 2017).

The features are those of `features`; the regressor is histogram gradient boosting (Friedman 2001;
Ke 2017). Two quantile regressors give the band.
Trees are kept as plain arrays: scikit-learn trains them, nothing pickled is ever read.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file

from synthesis.methods.calibration import widen_by_slices
from synthesis.methods.features import compute_features, draw_voxels
from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, Prediction

FOREST = "forest.safetensors"
BASELINES = "baselines.json"
BLOCK = 200_000


class BoostingParameters(Parameters):
    """Hyper-parameters of `Boosting`.

    Attributes:
        voxels_per_person: training voxels drawn from each person.
        lesion_share: share of them that is drawn from lesions, of each person who has labels.
    """

    trees: int = 150
    leaves: int = 31
    learning_rate: float = 0.08
    minimum_leaf: int = 80
    voxels_per_person: int = 30_000
    lesion_share: float = Field(default=0.0, ge=0, le=1)
    loss: Literal["squared_error", "absolute_error"] = "absolute_error"


class Boosting(Synthesizer[BoostingParameters]):
    """Gradient-boosted trees from all required sources to each target."""

    parameters_type = BoostingParameters
    forests_: dict[str, NDArray[np.float64]]
    baselines_: dict[str, float]

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Learn a mean and two quantile ensembles per target."""
        from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: PLC0415 - training only

        p = self.parameters
        self.forests_, self.baselines_ = {}, {}
        generator = np.random.default_rng(seed)
        for target in self.task.targets:
            x, y = draw_voxels(
                cases,
                self.task,
                target,
                p.voxels_per_person,
                generator,
                lesion_share=p.lesion_share,
            )
            for name, loss, quantile in (
                ("mean", p.loss, None),
                ("lower", "quantile", 0.05),
                ("upper", "quantile", 0.95),
            ):
                regressor = HistGradientBoostingRegressor(
                    loss=loss,
                    quantile=quantile,
                    max_iter=p.trees if name == "mean" else p.trees // 2,
                    max_leaf_nodes=p.leaves,
                    learning_rate=p.learning_rate,
                    min_samples_leaf=p.minimum_leaf,
                    l2_regularization=1.0,
                    early_stopping=False,
                    random_state=seed,
                ).fit(x, y)
                key = f"{target}.{name}"
                self.forests_[key], self.baselines_[key] = _read_forest(regressor)
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
        """Evaluate the trees at every voxel of the mask."""
        self.check_request(sources, target, mask)
        features = compute_features([sources[s] for s in self.task.sources], mask, spacing)
        answers = {}
        for name in ("mean", "lower", "upper"):
            key = f"{target}.{name}"
            values = _evaluate(self.forests_[key], self.baselines_[key], features)
            answers[name] = np.zeros(mask.shape, np.float32)
            answers[name][mask] = values
        return Prediction(
            mean=answers["mean"],
            lower=np.minimum(answers["lower"], answers["mean"]),
            upper=np.maximum(answers["upper"], answers["mean"]),
        )

    def measure_band(self, cases: Sequence[Case], *, seed: int) -> dict[str, float]:
        """Return the factors of `calibration`."""
        return widen_by_slices(self, cases, seed=seed)

    def save(self, folder: Path) -> None:
        """Write the trees as arrays."""
        save_file(self.forests_, folder / FOREST)
        (folder / BASELINES).write_text(json.dumps(self.baselines_, indent=1))

    def restore(self, folder: Path) -> Self:
        """Read the trees."""
        self.forests_ = load_file(folder / FOREST)
        self.baselines_ = json.loads((folder / BASELINES).read_text())
        return self


def _read_forest(regressor: Any) -> tuple[NDArray[np.float64], float]:
    """Return the trees as (trees, nodes, 6) and the baseline.

    A node is (feature, threshold, left, right, value, is_leaf); shorter trees are padded by leaves.
    """
    trees = [predictor[0].nodes for predictor in regressor._predictors]
    forest = np.zeros((len(trees), max(len(t) for t in trees), 6))
    forest[:, :, 5] = 1
    for index, nodes in enumerate(trees):
        for column, field in enumerate(
            ("feature_idx", "num_threshold", "left", "right", "value", "is_leaf")
        ):
            forest[index, : len(nodes), column] = nodes[field]
    forest[~np.isfinite(forest)] = 0
    return forest, float(np.ravel(regressor._baseline_prediction)[0])


def _evaluate(
    forest: NDArray[np.float64], baseline: float, features: FloatArray
) -> NDArray[np.float32]:
    """Return the sum of the trees for each column of `features`."""
    total = np.full(features.shape[1], baseline, np.float32)
    for start in range(0, features.shape[1], BLOCK):
        block = np.ascontiguousarray(features[:, start : start + BLOCK])
        rows = np.arange(block.shape[1])
        for tree in forest:
            feature = tree[:, 0].astype(np.intp)
            threshold = tree[:, 1].astype(np.float32)
            children = tree[:, 2:4].astype(np.intp)
            leaf = tree[:, 5] > 0
            node = np.zeros(block.shape[1], np.intp)
            active = rows
            while active.size:
                here = node[active]
                goes_right = block[feature[here], active] > threshold[here]
                node[active] = children[here, goes_right.astype(np.intp)]
                active = active[~leaf[node[active]]]
            total[start : start + BLOCK] += tree[node, 4].astype(np.float32)
    return total
