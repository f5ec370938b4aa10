"""Brownian bridge: from the sources' mean to the target (BBDM, Li 2023), on its few steps.

It is trained on the same few steps that it samples (Fast-DDPM, Jiang 2025), and predicts the target
itself: one step from the end is regression.
"""

import torch
from torch import Tensor

from synthesis.augmentation import Batch
from synthesis.losses import gradient_l1, masked_l1
from synthesis.methods.generative import Draws, Generative, GenerativeParameters, over_state
from synthesis.networks import DiffusionUNet
from synthesis.samplers import Noise, bridge, sample_bridge, spread_times


class BridgeParameters(GenerativeParameters):
    """Hyper-parameters of `Bridge`.

    Attributes:
        times: steps of the bridge; `sampling_steps` divides it.
        spread: of the noise half way, relative to the target's.
        gradient_weight: of the gradient's error.
    """

    times: int = 10
    spread: float = 0.5
    gradient_weight: float = 0.1


class Bridge(Generative[BridgeParameters]):
    """A Brownian bridge that predicts the target."""

    parameters_type = BridgeParameters

    def objective(
        self, network: DiffusionUNet, clean: Tensor, x: Tensor, batch: Batch, draws: Draws
    ) -> Tensor:
        """Return the absolute error of the target and of its gradient."""
        p = self.parameters
        m = draws.steps(p.times) / p.times
        start = network.start(x, batch.condition)
        state = bridge(clean, start, draws.noise, over_state(m), p.spread)
        made: Tensor = network(x, batch.condition, state, m)
        gradient = gradient_l1(made, clean, batch.weight)
        return masked_l1(made, clean, batch.weight) + p.gradient_weight * gradient

    def sample(self, network: DiffusionUNet, x: Tensor, condition: Tensor, noise: Noise) -> Tensor:
        """Return one draw."""
        p = self.parameters

        def estimate(state: Tensor, step: int) -> Tensor:
            time = torch.full((len(state),), step / p.times, device=state.device)
            made: Tensor = network(x, condition, state, time)
            return made

        start = network.start(x, condition)
        times = spread_times(p.times, p.sampling_steps)
        return sample_bridge(estimate, start, p.times, times, spread=p.spread, noise=noise)
