"""Random forest: the mean of many trees on patch and context features (REPLICA, Jog 2017).

Each tree (Breiman 2001) sees a bootstrap of the voxels and a third of the features at each split.
scikit-learn grows the trees; they are kept as plain arrays and evaluated by NumPy level by level,
many voxels at once, to exactly the leaves that scikit-learn finds. The spread of the trees gives
the band.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from synthesis.methods.calibration import widen_by_slices
from synthesis.methods.features import compute_features, draw_voxels
from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, Prediction

FOREST = "forest.safetensors"
BLOCK = 8192
"""Voxels at once: their features still fit into the cache of a core."""
SHALLOW = 8
"""Fewer levels than this end nowhere in a forest worth its name."""
NORMAL_90 = 1.645
"""Half the width, in standard deviations, of the interval that holds 90 % of a normal variable."""


class ForestParameters(Parameters):
    """Hyper-parameters of `RandomForest`.

    Attributes:
        minimum_leaf: fewest training voxels in a leaf.
        features: share of the features that a split chooses among.
        voxels_per_person: training voxels drawn from each person.
    """

    trees: int = 60
    minimum_leaf: int = 20
    features: float = 1 / 3
    voxels_per_person: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """The nodes of all trees in one row, each tree breadth first, siblings side by side.

    Attributes:
        roots: (trees,) where each tree begins.
        feature: (nodes,) feature that a node asks for.
        threshold: (nodes,) values above go right; infinite in a leaf.
        left: (nodes,) the left child, the right one follows it; a leaf is its own.
        value: (nodes,) what a leaf answers.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: FloatArray
    left: NDArray[np.int32]
    value: FloatArray

    def find_leaves(self, features: FloatArray) -> NDArray[np.int32]:
        """Return (trees, voxels) the leaf of each column of `features` (features, voxels)."""
        count = features.shape[1]
        offsets = self.feature * np.int32(count)
        flat = np.ascontiguousarray(features, np.float32).ravel()
        is_leaf = np.isinf(self.threshold)
        leaves = np.empty((len(self.roots), count), np.int32)
        everyone = np.arange(count, dtype=np.int32)
        for root, answer in zip(self.roots, leaves, strict=True):
            node, voxel, level = np.full(count, root, np.int32), everyone, 0
            while node.size:
                # every index is in range; clipping spares NumPy the check
                place = offsets.take(node, mode="clip")
                place += voxel
                right = flat.take(place, mode="clip") > self.threshold.take(node, mode="clip")
                node = self.left.take(node, mode="clip")
                node += right
                level += 1
                if level >= SHALLOW and level % 3 == 0:
                    answer[voxel] = node
                    under_way = np.flatnonzero(~is_leaf.take(node, mode="clip"))
                    node, voxel = node[under_way], voxel[under_way]
        return leaves

    def predict(self, features: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean and standard deviation over the trees for each column of `features`."""
        mean = np.empty(features.shape[1], np.float32)
        spread = np.empty(features.shape[1], np.float32)
        for start in range(0, features.shape[1], BLOCK):
            piece = slice(start, start + BLOCK)
            values = self.value.take(self.find_leaves(features[:, piece]), mode="clip")
            mean[piece] = values.mean(axis=0, dtype=np.float64)
            spread[piece] = values.std(axis=0)
        return mean, spread


class RandomForest(Synthesizer[ForestParameters]):
    """A random forest from all sources to each target."""

    parameters_type = ForestParameters
    forests_: dict[str, Forest]

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Grow one forest per target."""
        from sklearn.ensemble import RandomForestRegressor  # noqa: PLC0415 - training only

        p = self.parameters
        self.forests_ = {}
        generator = np.random.default_rng(seed)
        for target in self.task.targets:
            x, y = draw_voxels(cases, self.task, target, p.voxels_per_person, generator)
            regressor = RandomForestRegressor(
                p.trees,
                min_samples_leaf=p.minimum_leaf,
                max_features=p.features,
                random_state=seed,
            )
            self.forests_[target] = read_forest(regressor.fit(x, y))
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
        mean, spread = self.forests_[target].predict(features)
        width = np.float32(NORMAL_90) * spread
        answers = []
        for values in (mean, mean - width, mean + width):
            answers.append(np.zeros(mask.shape, np.float32))
            answers[-1][mask] = values
        return Prediction(mean=answers[0], lower=answers[1], upper=answers[2])

    def measure_band(self, cases: Sequence[Case], *, seed: int) -> dict[str, float]:
        """Return the factors of `calibration`."""
        return widen_by_slices(self, cases, seed=seed)

    def save(self, folder: Path) -> None:
        """Write the trees as arrays."""
        arrays: dict[str, NDArray[Any]] = {}
        for target, forest in self.forests_.items():
            arrays |= {f"{target}.{name}": getattr(forest, name) for name in Forest.__slots__}
        save_file(arrays, folder / FOREST)

    def restore(self, folder: Path) -> Self:
        """Read the trees."""
        arrays: dict[str, Any] = load_file(folder / FOREST)
        self.forests_ = {
            target: Forest(**{name: arrays[f"{target}.{name}"] for name in Forest.__slots__})
            for target in self.task.targets
            if f"{target}.roots" in arrays
        }
        return self


def read_forest(regressor: Any) -> Forest:
    """Return the trees of a `RandomForestRegressor` that was fitted to one target."""
    trees = [_read_tree(estimator.tree_) for estimator in regressor.estimators_]
    sizes = [len(tree["feature"]) for tree in trees]
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    for tree, root in zip(trees, roots, strict=True):
        tree["left"] += root
    return Forest(
        roots=roots,
        **{name: np.concatenate([tree[name] for tree in trees]) for name in trees[0]},
    )


def _read_tree(tree: Any) -> dict[str, Any]:
    order, left = np.zeros(tree.node_count, np.intp), np.zeros(tree.node_count, np.int32)
    count = 1
    for place in range(tree.node_count):
        node = order[place]
        left[place] = place
        if tree.children_left[node] >= 0:
            left[place] = count
            order[count : count + 2] = tree.children_left[node], tree.children_right[node]
            count += 2
    is_leaf = tree.children_left[order] < 0
    wide = tree.threshold[order]
    threshold = wide.astype(np.float32)
    # scikit-learn compares a float32 with a float64: rounding down keeps every comparison
    down = np.nextafter(threshold, np.float32(-np.inf))
    threshold = np.where(threshold > wide, down, threshold)
    return {
        "feature": np.where(is_leaf, 0, tree.feature[order]).astype(np.int32),
        "threshold": np.where(is_leaf, np.inf, threshold).astype(np.float32),
        "left": left,
        "value": tree.value[order, 0, 0].astype(np.float32),
    }
