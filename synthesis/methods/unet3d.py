"""3-D encoder-decoder (Cicek 2016) for any subset of the sources, in overlapping tiles.

For small fields of view whose voxels are about as long in all directions; the answers of
overlapping tiles are averaged with Gaussian weights (Isensee 2021).
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from synthesis.augmentation import Batch, Stock
from synthesis.devices import exact, mixed_precision
from synthesis.losses import gradient_l1, masked_l1, masked_square, pinball
from synthesis.methods.calibration import widen_by_slices
from synthesis.methods.learner import Learner, LearnerParameters
from synthesis.networks import ConditionedVolumeUNet
from synthesis.patches import bounding_box, tile_starts, tile_weights
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, Prediction


class UNet3DParameters(LearnerParameters):
    """Hyper-parameters of `UNet3D`.

    Attributes:
        crop: side of the cubes that are learnt from, a multiple of 2**(levels - 1).
        tile: longest side of what the network is given at once, such a multiple, too.
        overlap: share of a tile that its neighbor has too.
    """

    width: int = 16
    levels: int = 4
    batch: int = 2
    crop: int = 64
    tile: int = 96
    overlap: float = 0.5
    square_weight: float = 1.0
    gradient_weight: float = 0.2
    band_weight: float = 0.3


class UNet3D(Learner[UNet3DParameters]):
    """Any subset of the sources to any target, by volume."""

    parameters_type = UNet3DParameters
    channels_last = False

    def build_network(self) -> nn.Module:
        """Return a `ConditionedVolumeUNet`."""
        return ConditionedVolumeUNet(
            sources=len(self.task.sources),
            targets=len(self.task.targets),
            width=self.parameters.width,
            levels=self.parameters.levels,
        )

    def draw(self, stock: Stock, generator: np.random.Generator) -> Batch:
        """Return cubes."""
        p = self.parameters
        return stock.draw(
            p.batch,
            size=p.crop,
            slices=p.crop,
            views=(0,),
            generator=generator,
            randomized=p.randomized,
            whole=True,
        )

    def loss(self, network: nn.Module, batch: Batch, generator: np.random.Generator) -> Tensor:
        """Return L1, L2 and gradients of the mean, and the two quantiles' pinball."""
        p = self.parameters
        truth, weight = batch.truth, batch.weight
        with mixed_precision(truth.device):
            output: Tensor = network(batch.stack, batch.condition)
        mean, lower, upper = output.chunk(3, dim=1)
        loss = masked_l1(mean, truth, weight)
        loss = loss + p.square_weight * masked_square(mean, truth, weight)
        loss = loss + p.gradient_weight * gradient_l1(mean, truth, weight)
        fixed = mean.detach()
        loss = loss + p.band_weight * pinball(lower - mean + fixed, truth, weight, 0.05)
        return loss + p.band_weight * pinball(upper - mean + fixed, truth, weight, 0.95)

    def predict(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        *,
        target: ContrastLabel,
        mask: MaskArray,
        spacing: tuple[float, float, float],
        seed: int,
    ) -> Prediction:
        """Answer tile by tile and average where tiles overlap."""
        self.check_request(sources, target, mask)
        box = bounding_box(mask)
        inside = mask[box]
        tile = [self._fit_tile(n) for n in inside.shape]
        size = [max(n, t) for n, t in zip(inside.shape, tile, strict=True)]
        volume = np.zeros((len(self.task.sources), *size), np.float32)
        condition = torch.zeros(1, len(self.task.sources) + len(self.task.targets))
        condition[0, len(self.task.sources) + self.task.targets.index(target)] = 1
        corner = tuple(slice(n) for n in inside.shape)
        for label, array in sources.items():
            channel = self.task.sources.index(label)
            volume[channel][corner] = np.where(inside, array[box], 0)
            condition[0, channel] = 1
        device = next(self.network_.parameters()).device
        weights = torch.from_numpy(tile_weights(tile)).to(device)
        with torch.inference_mode(), exact():
            x, condition = torch.from_numpy(volume).to(device), condition.to(device)
            total, share = torch.zeros(3, *size, device=device), torch.zeros(size, device=device)
            starts = (
                tile_starts(n, t, self.parameters.overlap) for n, t in zip(size, tile, strict=True)
            )
            for start in product(*starts):
                where = tuple(slice(s, s + t) for s, t in zip(start, tile, strict=True))
                answer: Tensor = self.network_(x[(slice(None), *where)][None], condition)
                total[(slice(None), *where)] += weights * answer[0]
                share[where] += weights
            answer = (total / share)[(slice(None), *corner)].cpu()
        full = np.zeros((3, *mask.shape), np.float32)
        full[(slice(None), *box)] = np.where(inside, answer.numpy(), 0)
        return Prediction(mean=full[0], lower=full[1], upper=full[2])

    def measure_band(self, cases: Sequence[Case], *, seed: int) -> dict[str, float]:
        """Return the factors of `calibration`."""
        return widen_by_slices(self, cases, seed=seed)

    def _fit_tile(self, count: int) -> int:
        """Return the side of the tiles along an axis of so many voxels."""
        multiple = 1 << (self.parameters.levels - 1)
        return min(self.parameters.tile, count + -count % multiple)
