"""Rectified flow: straight lines from the sources' mean to the target (Liu 2023), in few steps.

The flow starts from the mean of the sources with a little noise (Ohayon 2025, PMRF, starts from a
regression's answer with some), which lets one source have several targets. The network works in
space-to-depth form, which is the Haar transform's up to a rotation of each four pixels.
"""

import torch
from torch import Tensor

from synthesis.augmentation import Batch
from synthesis.losses import masked_square
from synthesis.methods.generative import (
    Draws,
    Generative,
    GenerativeParameters,
    first_noise,
    over_state,
)
from synthesis.networks import DiffusionUNet
from synthesis.samplers import Noise, sample_flow


class FlowParameters(GenerativeParameters):
    """Hyper-parameters of `Flow`.

    Attributes:
        spread: of the noise at the start, relative to the target's.
    """

    spread: float = 0.5


class Flow(Generative[FlowParameters]):
    """A rectified flow that predicts velocities."""

    parameters_type = FlowParameters

    def objective(
        self, network: DiffusionUNet, clean: Tensor, x: Tensor, batch: Batch, draws: Draws
    ) -> Tensor:
        """Return the squared error of the velocity (Liu 2023, eq. 1)."""
        times = draws.times()
        start = network.start(x, batch.condition) + self.parameters.spread * draws.noise
        state = torch.lerp(start, clean, over_state(times))
        made: Tensor = network(x, batch.condition, state, times)
        return masked_square(made, clean - start, batch.weight)

    def sample(self, network: DiffusionUNet, x: Tensor, condition: Tensor, noise: Noise) -> Tensor:
        """Return one draw."""
        p = self.parameters

        def estimate(state: Tensor, time: float) -> Tensor:
            times = torch.full((len(state),), time, device=state.device)
            made: Tensor = network(x, condition, state, times)
            return made

        start = network.start(x, condition) + p.spread * first_noise(p, noise)
        return sample_flow(estimate, start, p.sampling_steps)
