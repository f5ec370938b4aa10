"""Conditional diffusion: from noise to the target, given the sources (Ho 2020; Saharia 2022).

The network predicts the velocity (Salimans 2022) on a cosine schedule whose last step is pure noise
(Lin 2024), so that one evaluation there is the mean of what can be (YODA, Rassmann 2025). Draws
take DDIM's or DPM-Solver++'s steps.
"""

from typing import Literal

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
from synthesis.samplers import (
    Noise,
    clean_from_velocity,
    cosine_schedule,
    diffuse,
    sample_ddim,
    sample_dpm_solver,
    spread_times,
    velocity,
)


class DiffusionParameters(GenerativeParameters):
    """Hyper-parameters of `Diffusion`.

    Attributes:
        times: steps of the schedule that is learnt.
        sampler: takes `sampling_steps` of them.
        last_share: share of the training samples that are taken at the last step, on which the
            mean rests.
    """

    times: int = 1000
    sampler: Literal["ddim", "dpm++2m"] = "dpm++2m"
    last_share: float = 0.1


class Diffusion(Generative[DiffusionParameters]):
    """A denoising diffusion model that predicts velocities."""

    parameters_type = DiffusionParameters

    def objective(
        self, network: DiffusionUNet, clean: Tensor, x: Tensor, batch: Batch, draws: Draws
    ) -> Tensor:
        """Return the squared error of the velocity."""
        p = self.parameters
        steps = torch.where(draws.times() < p.last_share, p.times, draws.steps(p.times))
        alpha = over_state(cosine_schedule(p.times).to(clean.device)[steps])
        state = diffuse(clean, draws.noise, alpha)
        made: Tensor = network(x, batch.condition, state, steps / p.times)
        return masked_square(made, velocity(clean, draws.noise, alpha), batch.weight)

    def sample(self, network: DiffusionUNet, x: Tensor, condition: Tensor, noise: Noise) -> Tensor:
        """Return one draw."""
        p = self.parameters
        alphas = cosine_schedule(p.times)

        def estimate(state: Tensor, step: int) -> Tensor:
            time = torch.full((len(state),), step / p.times, device=state.device)
            made: Tensor = network(x, condition, state, time)
            return clean_from_velocity(state, made, alphas[step].float().to(state.device))

        times = spread_times(p.times, p.sampling_steps)
        take = sample_ddim if p.sampler == "ddim" else sample_dpm_solver
        return take(estimate, first_noise(p, noise), alphas, times)
