"""Anchored regression: the fast form of coupled dictionaries (A+, Timofte 2014).

Instead of a sparse code, a patch takes the ridge regression that was solved beforehand about the
anchor nearest to it (Timofte 2014, eq. 5), so that an answer costs one search and one product:

    y = [x, 1] P_k,  P_k = (Z'Z + lambda n I)^-1 Z'Y  over the n training patches nearest to k

Two things differ from A+: anchors are cluster centers found by distance, and a patch keeps its
mean, because in a change of contrast the level is what tells a tissue.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self

import numpy as np
from safetensors.numpy import load_file, save_file

from synthesis.methods.pieces import cut, draw_pairs, find_places, lay
from synthesis.patches import batches
from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, Prediction

ANCHORS = "anchors.safetensors"
BLOCK = 20_000


class AnchoredParameters(Parameters):
    """Hyper-parameters of `AnchoredRegression`.

    Attributes:
        radius: of the source cubes, in voxels.
        components: principal components of a source patch that are kept at most.
        variance: share of the patches' variance that is kept at most.
        neighbors: training patches that an anchor's regression is solved on.
        ridge: weight of the squared coefficients.
    """

    anchors: int = 512
    radius: int = 2
    components: int = 48
    variance: float = 0.99
    neighbors: int = 2048
    ridge: float = 0.01
    patches_per_person: int = 15_000


class AnchoredRegression(Synthesizer[AnchoredParameters]):
    """Piecewise linear regression about anchors, from all sources to each target."""

    parameters_type = AnchoredParameters
    arrays_: dict[str, FloatArray]

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Learn anchors and their regressions for each target."""
        from sklearn.cluster import MiniBatchKMeans  # noqa: PLC0415 - training only

        p = self.parameters
        self.arrays_ = {}
        generator = np.random.default_rng(seed)
        for target in self.task.targets:
            x, y = draw_pairs(
                cases,
                self.task,
                target,
                radius=p.radius,
                count=p.patches_per_person,
                generator=generator,
            )
            center = x.mean(axis=0)
            basis = self._find_basis(x - center)
            short = (x - center) @ basis
            clusters = MiniBatchKMeans(p.anchors, n_init=1, random_state=seed).fit(short)
            anchors = np.asarray(clusters.cluster_centers_, np.float32)
            self.arrays_ |= {
                f"{target}.center": center,
                f"{target}.basis": basis,
                f"{target}.anchors": anchors,
                f"{target}.maps": self._solve(short, y, anchors),
            }
        return self

    def _find_basis(self, x: FloatArray) -> FloatArray:
        """Return (voxels, components) principal directions, each scaled to a variance of one."""
        p = self.parameters
        variances, directions = np.linalg.eigh(x.T.astype(np.float64) @ x / len(x))
        variances, directions = variances[::-1], directions[:, ::-1]
        enough = int(np.searchsorted(np.cumsum(variances) / variances.sum(), p.variance)) + 1
        kept = min(enough, p.components)
        basis: FloatArray = (directions[:, :kept] / np.sqrt(variances[0])).astype(np.float32)
        return basis

    def _solve(self, x: FloatArray, y: FloatArray, anchors: FloatArray) -> FloatArray:
        """Return (anchors, components + 1, answer voxels)."""
        p = self.parameters
        one = np.ones((len(x), 1), np.float32)
        z = np.hstack([x, one]).astype(np.float64)
        count = min(p.neighbors, len(x))
        penalty = p.ridge * count * np.eye(z.shape[1])
        penalty[-1, -1] = 0  # the level is free
        squares = (x**2).sum(axis=1)
        maps = np.empty((len(anchors), z.shape[1], y.shape[1]), np.float32)
        for number, anchor in enumerate(anchors):
            near = np.argpartition(squares - 2 * x @ anchor, count - 1)[:count]
            maps[number] = np.linalg.solve(z[near].T @ z[near] + penalty, z[near].T @ y[near])
        return maps

    def predict(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        *,
        target: ContrastLabel,
        mask: MaskArray,
        spacing: tuple[float, float, float],
        seed: int,
    ) -> Prediction:
        """Answer every patch that touches the mask, and average the answers where they overlap."""
        self.check_request(sources, target, mask)
        center, basis, anchors, maps = (
            self.arrays_[f"{target}.{name}"] for name in ("center", "basis", "anchors", "maps")
        )
        images = [np.where(mask, sources[s], 0) for s in self.task.sources]
        places = find_places(mask)
        made = np.empty((len(places), maps.shape[2]), np.float32)
        lengths = (anchors**2).sum(axis=1)
        for piece in batches(len(places), BLOCK):
            short = (cut(images, places[piece], self.parameters.radius) - center) @ basis
            nearest = (lengths - 2 * short @ anchors.T).argmin(axis=1)
            # patches of one anchor side by side: one product for all of them
            order = np.argsort(nearest, kind="stable")
            numbers, starts = np.unique(nearest[order], return_index=True)
            answers = made[piece]
            for number, members in zip(numbers, np.split(order, starts[1:]), strict=True):
                answers[members] = short[members] @ maps[number, :-1] + maps[number, -1]
        return Prediction(mean=lay(made, places, mask))

    def save(self, folder: Path) -> None:
        """Write anchors and regressions."""
        save_file({k: np.ascontiguousarray(v) for k, v in self.arrays_.items()}, folder / ANCHORS)

    def restore(self, folder: Path) -> Self:
        """Read anchors and regressions."""
        self.arrays_ = load_file(folder / ANCHORS)
        return self
