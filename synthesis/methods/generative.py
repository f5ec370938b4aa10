"""What diffusion, bridges and flows share: a network, standardized values, draws, their mean."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from synthesis.augmentation import Batch
from synthesis.devices import mixed_precision
from synthesis.methods.learner import noise_like
from synthesis.methods.slices import SliceLearner, SliceParameters
from synthesis.networks import DiffusionUNet, UNetShape
from synthesis.samplers import Noise
from synthesis.types import Case

NORMAL_90 = 1.645
"""Half the width, in standard deviations, of the interval that holds 90 % of a normal variable."""
SMALLEST_DEVIATION = 1e-3


class GenerativeParameters(SliceParameters):
    """Hyper-parameters of every method that can draw more than one answer.

    Attributes:
        sampling_steps: evaluations of the network for a draw. One gives the mean of what can be.
        samples: draws whose mean is the answer; from two on their spread gives the band.
    """

    width: int = 32
    levels: int = 4
    sampling_steps: int = 1
    samples: int = 1


G = TypeVar("G", bound=GenerativeParameters)


class Generative(SliceLearner[G]):
    """Draws of the target given the sources; the answer is the mean of the draws.

    A draw looks real, and so its detail is in part invented; the mean is what the sources tell.
    """

    @property
    def multiple(self) -> int:
        """Rows and columns of what the network is given are divisible by this."""
        return self.shape.multiple

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

    def build_network(self) -> nn.Module:
        """Return a `DiffusionUNet`."""
        return DiffusionUNet(self.shape)

    def prepare(self, network: nn.Module, cases: Sequence[Case]) -> None:
        """Measure the level and spread of each contrast inside the masks."""
        levels = cast(DiffusionUNet, network).levels
        for row, label in enumerate([*self.task.sources, *self.task.targets]):
            values = [c.images[label][c.mask] for c in cases if label in c.images]
            if values:
                known = np.concatenate(values)
                deviation = max(float(known.std()), SMALLEST_DEVIATION)
                levels[row] = torch.tensor([float(known.mean()), deviation])

    @abstractmethod
    def objective(
        self, network: DiffusionUNet, clean: Tensor, x: Tensor, batch: Batch, draws: "Draws"
    ) -> Tensor:
        """Return the loss.

        Args:
            network: under training.
            clean: (batch, 1, rows, columns) the standardized truth, zero outside the mask.
            x: the standardized sources.
            batch: the samples.
            draws: of time and noise.
        """

    @abstractmethod
    def sample(self, network: DiffusionUNet, x: Tensor, condition: Tensor, noise: Noise) -> Tensor:
        """Return one draw, (batch, 1, rows, columns), standardized."""

    def loss(self, network: nn.Module, batch: Batch, generator: np.random.Generator) -> Tensor:
        """Return the objective, see `mixed_precision`."""
        network = cast(DiffusionUNet, network)
        mean, deviation = network.target_level(batch.condition)
        clean = (batch.truth - mean) / deviation * batch.weight
        x = network.standardize(batch.stack, batch.condition)
        with mixed_precision(clean.device):
            return self.objective(network, clean, x, batch, Draws(clean, generator))

    def answer(self, stack: Tensor, condition: Tensor, noise: torch.Generator) -> Tensor:
        """Return the mean of the draws, with a band if there are several."""
        network = cast(DiffusionUNet, self.network_)
        x = network.standardize(stack, condition)
        size = (stack.shape[0], 1, *stack.shape[3:])

        def fresh() -> Tensor:
            return torch.randn(size, generator=noise).to(stack.device)

        draws = torch.stack(
            [self.sample(network, x, condition, fresh) for _ in range(self.parameters.samples)]
        )
        level, deviation = network.target_level(condition)
        mean = draws.mean(dim=0) * deviation + level
        if len(draws) == 1:
            return mean
        half = NORMAL_90 * draws.std(dim=0) * deviation
        return torch.cat([mean, mean - half, mean + half], dim=1)


class Draws:
    """The times and the noise of one step of training.

    Args:
        like: (batch, 1, rows, columns), what the noise is added to.
        generator: of the choices.
    """

    def __init__(self, like: Tensor, generator: np.random.Generator) -> None:
        self.noise = noise_like(like, generator)
        self._generator = generator
        self._like = like

    def steps(self, last: int) -> Tensor:
        """Return (batch,) whole steps from 1 to `last`."""
        chosen = self._generator.integers(1, last + 1, len(self._like))
        return torch.from_numpy(chosen).to(self._like.device)

    def times(self) -> Tensor:
        """Return (batch,) times from 0 to 1."""
        chosen = self._generator.random(len(self._like)).astype(np.float32)
        return torch.from_numpy(chosen).to(self._like.device)


def first_noise(parameters: GenerativeParameters, noise: Noise) -> Tensor:
    """Return what a draw starts from: noise, or its mean where the answer is to be the mean.

    One step of one draw answers with the mean of what can be. What a network that has not learnt
    for long does not take away of the noise would be seen in it.
    """
    drawn = noise()
    is_mean = parameters.samples == 1 and parameters.sampling_steps == 1
    return torch.zeros_like(drawn) if is_mean else drawn


def over_state(values: Tensor) -> Tensor:
    """Return (batch,) as (batch, 1, 1, 1)."""
    return values.float()[:, None, None, None]
