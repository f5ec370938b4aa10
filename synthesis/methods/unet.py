"""Encoder-decoder: one any-subset 2.5-D U-Net for all sources and targets of a task.

The band comes from two quantile heads (Angelopoulos 2022, image-to-image regression with
uncertainty).
"""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from synthesis.augmentation import Batch
from synthesis.backends import Accelerated, accelerate
from synthesis.devices import mixed_precision
from synthesis.losses import (
    gradient_l1,
    masked_l1,
    masked_square,
    pinball,
    structural_dissimilarity,
)
from synthesis.methods.slices import SliceLearner, SliceParameters
from synthesis.networks import ConditionedUNet, UNetShape
from synthesis.types import Precision

TRIED_SLICES, TRIED_SIZE = 4, 160
"""How much of an image a back end is tried with: a little more than a second of work."""


class UNetParameters(SliceParameters):
    """Hyper-parameters of every method that has this encoder-decoder and this loss."""

    width: int = 32
    levels: int = 4
    square_weight: float = 1.0
    dissimilarity_weight: float = 0.3
    gradient_weight: float = 0.2
    band_weight: float = 0.3


U = TypeVar("U", bound=UNetParameters)


class EncoderDecoder(SliceLearner[U], Generic[U]):
    """The encoder-decoder and its regression loss, on which other methods build."""

    @property
    def shape(self) -> UNetShape:
        """The network's sizes."""
        p = self.parameters
        return UNetShape(
            sources=len(self.task.sources),
            targets=len(self.task.targets),
            slices=p.slices,
            width=p.width,
            levels=p.levels,
        )

    @property
    def multiple(self) -> int:
        """Rows and columns of what the network is given are divisible by this."""
        return self.shape.multiple

    def build_network(self) -> nn.Module:
        """Return a `ConditionedUNet`."""
        return ConditionedUNet(self.shape)

    def loss(self, network: nn.Module, batch: Batch, generator: np.random.Generator) -> Tensor:
        """Return the regression loss."""
        return self.regression(self.forward(network, batch), batch)

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return (batch, 3, rows, columns), see `mixed_precision`."""
        with mixed_precision(batch.truth.device):
            output: Tensor = network(batch.stack, batch.condition)
        return output

    def regression(self, output: Tensor, batch: Batch) -> Tensor:
        """Return L1, L2, structure and gradients of the mean, and the two quantiles' pinball."""
        p = self.parameters
        truth, weight = batch.truth, batch.weight
        mean, lower, upper = output.chunk(3, dim=1)
        loss = masked_l1(mean, truth, weight)
        loss = loss + p.square_weight * masked_square(mean, truth, weight)
        loss = loss + p.dissimilarity_weight * structural_dissimilarity(mean, truth, weight)
        loss = loss + p.gradient_weight * gradient_l1(mean, truth, weight)
        # the band must not pull the mean: it learns around a fixed center
        fixed = mean.detach()
        loss = loss + p.band_weight * pinball(lower - mean + fixed, truth, weight, 0.05)
        return loss + p.band_weight * pinball(upper - mean + fixed, truth, weight, 0.95)


class UNet25D(EncoderDecoder[UNetParameters]):
    """Any subset of the sources to any target, slice by slice with neighbors."""

    parameters_type = UNetParameters

    def accelerate(self, precision: Precision) -> None:
        """Choose by a few slices of grain, all sources given."""
        p, task = self.parameters, self.task
        generator = torch.Generator().manual_seed(0)
        shape = (TRIED_SLICES, len(task.sources), p.slices, TRIED_SIZE, TRIED_SIZE)
        stack = 0.5 + 0.1 * torch.randn(shape, generator=generator)
        condition = torch.ones(TRIED_SLICES, self.shape.condition)
        condition[:, len(task.sources) + 1 :] = 0  # the first target
        device = next(self.network_.parameters()).device
        example = (stack.to(device), condition.to(device))
        self.network_ = accelerate(self.network_, example, precision)

    @property
    def backend(self) -> Mapping[str, Any]:
        """The choice, where there was one."""
        network = self.network_
        return network.choice.as_dict() if isinstance(network, Accelerated) else {}
