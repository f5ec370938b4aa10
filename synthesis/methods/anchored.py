"""Anchored regression: the fast form of coupled dictionaries (A+, Timofte 2014).

Instead of a sparse code, a patch takes the ridge regression that was solved beforehand about the
anchor nearest to it (Timofte 2014, eq. 5), so that an answer costs one search and one product:

    y = [x, 1] P_k,  P_k = (Z'Z + lambda n I)^-1 Z'Y  over the n training patches nearest to k

Two things differ from A+: anchors are cluster centers found by distance, and a patch keeps its
mean, because in a change of contrast the level is what tells a tissue.
"""

from collections.abc import Mapping

import numpy as np

from synthesis.methods.pieces import PieceMethod, PieceParameters
from synthesis.types import FloatArray


class AnchoredParameters(PieceParameters):
    """Hyper-parameters of `AnchoredRegression`.

    Attributes:
        components: principal components of a source patch that are kept at most.
        variance: share of the patches' variance that is kept at most.
        neighbors: training patches that an anchor's regression is solved on.
        ridge: weight of the squared coefficients.
    """

    anchors: int = 512
    components: int = 48
    variance: float = 0.99
    neighbors: int = 2048
    ridge: float = 0.01


class AnchoredRegression(PieceMethod[AnchoredParameters]):
    """Piecewise linear regression about anchors, from all sources to each target."""

    parameters_type = AnchoredParameters

    def learn(
        self, x: FloatArray, y: FloatArray, *, seed: int, generator: np.random.Generator
    ) -> dict[str, FloatArray]:
        """Return anchors and their regressions."""
        from sklearn.cluster import MiniBatchKMeans  # noqa: PLC0415 - training only

        center = x.mean(axis=0)
        basis = self._find_basis(x - center)
        short = (x - center) @ basis
        clusters = MiniBatchKMeans(self.parameters.anchors, n_init=1, random_state=seed).fit(short)
        anchors = np.asarray(clusters.cluster_centers_, np.float32)
        maps = self._solve(short, y, anchors)
        return {"center": center, "basis": basis, "anchors": anchors, "maps": maps}

    def answer(self, patches: FloatArray, learnt: Mapping[str, FloatArray]) -> FloatArray:
        """Give each patch to the regression of the anchor nearest to it."""
        anchors, maps = learnt["anchors"], learnt["maps"]
        short = (patches - learnt["center"]) @ learnt["basis"]
        nearest = ((anchors**2).sum(axis=1) - 2 * short @ anchors.T).argmin(axis=1)
        # patches of one anchor side by side: one product for all of them
        order = np.argsort(nearest, kind="stable")
        numbers, starts = np.unique(nearest[order], return_index=True)
        answers = np.empty((len(patches), maps.shape[2]), np.float32)
        for number, members in zip(numbers, np.split(order, starts[1:]), strict=True):
            answers[members] = short[members] @ maps[number, :-1] + maps[number, -1]
        return answers

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
