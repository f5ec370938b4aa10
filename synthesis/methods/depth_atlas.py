"""The baselines that CT from MR must beat: bulk density and an atlas by depth below the skin.

Both know where a voxel lies and nothing of its signal. Bulk density is one value inside the body,
as radiotherapy plans are computed without a CT; the atlas is the mean of the training people at
equal distance from the body's surface.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import ndimage

from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, Prediction

ATLAS = "atlas.safetensors"


class DepthAtlasParameters(Parameters):
    """Parameters of `DepthAtlas`.

    Attributes:
        ring_mm: width of the rings of equal depth.
        rings: how many; deeper voxels count to the last. One ring is bulk density.
        statistic: what a ring answers of the training people's voxels in it.
    """

    ring_mm: float = 2.0
    rings: int = 64
    statistic: Literal["mean", "median"] = "mean"


class DepthAtlas(Synthesizer[DepthAtlasParameters]):
    """One value for each distance from the surface of the mask."""

    parameters_type = DepthAtlasParameters
    atlas_: dict[str, NDArray[np.float32]]

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Pool the voxels of all people who have the target; a ring that nobody has is the next."""
        statistic = np.mean if self.parameters.statistic == "mean" else np.median
        self.atlas_ = {}
        for target in self.task.targets:
            teachers = [c for c in cases if target in c.images]
            if not teachers:
                continue
            rings = np.concatenate([self._find_rings(c.mask, c.spacing) for c in teachers])
            values = np.concatenate([c.images[target][c.mask] for c in teachers])
            filled = np.unique(rings)
            found = [statistic(values[rings == ring]) for ring in filled]
            every = np.arange(self.parameters.rings)
            self.atlas_[target] = np.interp(every, filled, found).astype(np.float32)
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
        """Return each voxel's ring's value inside the mask."""
        self.check_request(sources, target, mask)
        mean = np.zeros(mask.shape, np.float32)
        mean[mask] = self.atlas_[target][self._find_rings(mask, spacing)]
        return Prediction(mean=mean)

    def save(self, folder: Path) -> None:
        """Write the rings' values."""
        save_file(self.atlas_, folder / ATLAS)

    def restore(self, folder: Path) -> Self:
        """Read the rings' values."""
        self.atlas_ = load_file(folder / ATLAS)
        return self

    def _find_rings(self, mask: MaskArray, spacing: tuple[float, float, float]) -> NDArray[np.intp]:
        """Return the ring of each voxel of the mask, in C order."""
        depth = ndimage.distance_transform_edt(mask, sampling=spacing)[mask]
        rings = (depth / self.parameters.ring_mm).astype(np.intp)
        last = self.parameters.rings - 1
        return np.asarray(np.minimum(rings, last), np.intp)
