"""Schedules and samplers of diffusion, bridges and flows: pure functions, each with its equation.

A model is a function from (state, time) to its estimate; the samplers know nothing of networks.
States are tensors of any shape whose first axis is the batch.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Estimate = Callable[[Tensor, int], Tensor]
"""From a state and its time step to the estimate of the clean image."""
Noise = Callable[[], Tensor]
"""Fresh standard normal noise of the state's shape."""
OFFSET = 0.008
"""Of the cosine schedule (Nichol 2021, section 3.2)."""


def cosine_schedule(steps: int) -> Tensor:
    """Return (steps + 1,) alpha_t of x_t = alpha_t x_0 + sigma_t e, sigma_t^2 = 1 - alpha_t^2.

    The cosine schedule (Nichol 2021, eq. 17), shifted and scaled so that the last step is nothing
    but noise (Lin 2024, algorithm 1): alpha_0 = 1, alpha_T = 0.
    """
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    bar = torch.cos((t + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2
    alpha = (bar / bar[0]).clamp(0, 1).sqrt()
    return (alpha - alpha[-1]) / (alpha[0] - alpha[-1])


def diffuse(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Return x_t = alpha x_0 + sigma e (Ho 2020, eq. 4)."""
    return alpha * clean + (1 - alpha**2).sqrt() * noise


def velocity(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Return v = alpha e - sigma x_0 (Salimans 2022, appendix D)."""
    return alpha * noise - (1 - alpha**2).sqrt() * clean


def clean_from_velocity(state: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    """Return x_0 = alpha x_t - sigma v (Salimans 2022, appendix D)."""
    return alpha * state - (1 - alpha**2).sqrt() * v


def spread_times(last: int, count: int) -> list[int]:
    """Return `count` + 1 time steps from `last` down to 0, evenly spaced, `last` always first.

    A sampler that begins below the last step would begin at a noise level that it is not given
    (Lin 2024, section 3.3).
    """
    return [round(last * (count - n) / count) for n in range(count + 1)]


def sample_ddim(
    estimate: Estimate,
    state: Tensor,
    alphas: Tensor,
    times: Sequence[int],
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
) -> Tensor:
    """Return x_0 by DDIM (Song 2021, eq. 12 and 16).

    Args:
        estimate: of x_0.
        state: x_T, pure noise.
        alphas: of `cosine_schedule`.
        times: of `spread_times`.
        eta: 0 is deterministic, 1 is DDPM's ancestral sampling.
        noise: needed for eta above 0.
    """
    for now, then in pairwise(times):
        alpha, after = float(alphas[now]), float(alphas[then])
        sigma, sigma_after = math.sqrt(1 - alpha**2), math.sqrt(max(0.0, 1 - after**2))
        clean = estimate(state, now)
        grain = (state - alpha * clean) / sigma
        fresh = 0.0
        if eta > 0 and after > 0:
            fresh = eta * sigma_after / sigma * math.sqrt(max(0.0, 1 - (alpha / after) ** 2))
        state = after * clean + math.sqrt(max(0.0, sigma_after**2 - fresh**2)) * grain
        if fresh > 0 and noise is not None:
            state = state + fresh * noise()
    return state


def sample_dpm_solver(
    estimate: Estimate, state: Tensor, alphas: Tensor, times: Sequence[int]
) -> Tensor:
    """Return x_0 by DPM-Solver++ of second order with two steps (Lu 2022, algorithm 2).

    With lambda = log(alpha / sigma), h its step and r the ratio of the last step to this one:

        D = (1 + 1 / 2r) x_0(t) - 1 / 2r x_0(t before)
        x = sigma_after / sigma x - alpha_after (exp(-h) - 1) D

    At the first step lambda is minus infinity and at the last plus infinity: there the step is of
    first order, which is DDIM's.
    """
    before: Tensor | None = None
    step_before = math.inf
    for now, then in pairwise(times):
        clean = estimate(state, now)
        alpha, after = float(alphas[now]), float(alphas[then])
        sigma, sigma_after = math.sqrt(1 - alpha**2), math.sqrt(max(0.0, 1 - after**2))
        step = _half_log_snr(after) - _half_log_snr(alpha)
        direction = clean
        if before is not None and math.isfinite(step) and math.isfinite(step_before):
            half = step / (2 * step_before)
            direction = (1 + half) * clean - half * before
        state = sigma_after / sigma * state - after * math.expm1(-step) * direction
        before, step_before = clean, step
    return state


def _half_log_snr(alpha: float) -> float:
    if alpha <= 0:
        return -math.inf
    if alpha >= 1:
        return math.inf
    return math.log(alpha) - 0.5 * math.log1p(-(alpha**2))


def bridge(clean: Tensor, start: Tensor, noise: Tensor, m: Tensor, spread: float) -> Tensor:
    """Return x_t = (1 - m) x_0 + m y + s sqrt(2 m (1 - m)) e (Li 2023, BBDM, eq. 3 and 4).

    Args:
        clean: x_0, the target.
        start: y, the end from which sampling starts.
        noise: e.
        m: t / T, broadcast over the state.
        spread: s.
    """
    return (1 - m) * clean + m * start + spread * (2 * m * (1 - m)).sqrt() * noise


def sample_bridge(
    estimate: Estimate,
    start: Tensor,
    last: int,
    times: Sequence[int],
    *,
    spread: float,
    noise: Noise | None = None,
) -> Tensor:
    """Return x_0 from y over the bridge's own steps.

    Between two steps the bridge's noise B has the covariance 2 s^2 m_u (1 - m_t), u before t, so
    that given B_t it is normal with mean m_u / m_t B_t and variance 2 s^2 m_u (m_t - m_u) / m_t
    (Li 2023, eq. 11 to 13). Without noise the walk stays on its mean: from y, where B is 0, that
    is the straight line.

    Args:
        estimate: of x_0.
        start: y = x_T.
        last: T.
        times: from T down to 0, see `spread_times`.
        spread: s.
        noise: fresh noise for a sample of the posterior; None for the deterministic walk.
    """
    state = start
    for now, then in pairwise(times):
        m, after = now / last, then / last
        clean = estimate(state, now)
        left = state - (1 - m) * clean - m * start
        state = (1 - after) * clean + after * start + after / m * left
        if noise is not None:
            state = state + spread * math.sqrt(2 * after * (m - after) / m) * noise()
    return state


def sample_flow(estimate: Callable[[Tensor, float], Tensor], state: Tensor, count: int) -> Tensor:
    """Return x_1 of dx/dt = v(x, t) from x_0 by Euler's method in `count` steps (Liu 2023, eq. 1).

    Args:
        estimate: of the velocity at a time from 0 to 1.
        state: x_0, where the flow starts.
        count: steps; one is x_0 + v(x_0, 0), which is the mean of what can be.
    """
    for number in range(count):
        state = state + estimate(state, number / count) / count
    return state
