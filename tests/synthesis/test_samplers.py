"""Samplers against data whose every answer is known: normal ones."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synthesis.samplers import (
    bridge,
    clean_from_velocity,
    cosine_schedule,
    diffuse,
    sample_bridge,
    sample_ddim,
    sample_dpm_solver,
    sample_flow,
    spread_times,
    velocity,
)

LAST = 1000
MEAN, DEVIATION = 0.7, 0.3
ALPHAS = cosine_schedule(LAST)


def draw(count: int = 20_000, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def source(seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(20_000, generator=generator, dtype=torch.float64)


def best_guess(state: Tensor, step: int) -> Tensor:
    """Return the mean of x_0 given x_t, for x_0 normal."""
    alpha = ALPHAS[step]
    variance = alpha**2 * DEVIATION**2 + 1 - alpha**2
    return MEAN + alpha * DEVIATION**2 / variance * (state - alpha * MEAN)


def test_schedule_falls_from_the_image_to_nothing_but_noise() -> None:
    assert ALPHAS[0] == 1
    assert ALPHAS[-1] == 0
    assert (ALPHAS.diff() < 0).all()


def test_velocity_tells_the_clean_image() -> None:
    clean, noise = draw(seed=1), draw(seed=2)
    for step in (1, 400, LAST):
        alpha = ALPHAS[step]
        state = diffuse(clean, noise, alpha)
        found = clean_from_velocity(state, velocity(clean, noise, alpha), alpha)
        torch.testing.assert_close(found, clean)


@pytest.mark.parametrize("count", [1, 3, 10, 50])
def test_walk_begins_at_the_last_step_and_ends_at_the_image(count: int) -> None:
    times = spread_times(LAST, count)

    assert (times[0], times[-1], len(times)) == (LAST, 0, count + 1)
    assert times == sorted(set(times), reverse=True)


@pytest.mark.parametrize("sampler", [sample_ddim, sample_dpm_solver])
def test_one_step_is_the_mean(sampler: Callable[..., Tensor]) -> None:
    made = sampler(best_guess, draw(), ALPHAS, spread_times(LAST, 1))

    torch.testing.assert_close(made, torch.full_like(made, MEAN))


@pytest.mark.parametrize(
    ("sampler", "count", "tolerance"),
    [(sample_ddim, 500, 0.01), (sample_dpm_solver, 25, 0.01)],
)
def test_noise_walks_to_where_the_exact_flow_takes_it(
    sampler: Callable[..., Tensor], count: int, tolerance: float
) -> None:
    noise = draw()

    made = sampler(best_guess, noise, ALPHAS, spread_times(LAST, count))

    # the probability flow of a normal variable keeps its quantile
    assert (made - (MEAN + DEVIATION * noise)).abs().max() < tolerance * 4


def test_second_order_needs_fewer_steps_than_first() -> None:
    noise, times = draw(), spread_times(LAST, 20)

    errors = [
        (sampler(best_guess, noise, ALPHAS, times) - (MEAN + DEVIATION * noise)).abs().mean()
        for sampler in (sample_ddim, sample_dpm_solver)
    ]

    assert errors[1] < 0.3 * errors[0]


def test_ancestral_sampling_draws_the_distribution() -> None:
    made = sample_ddim(
        best_guess, draw(), ALPHAS, spread_times(LAST, 200), eta=1.0, noise=source(5)
    )

    assert float(made.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(made.std()) == pytest.approx(DEVIATION, rel=0.05)


def guess_on_bridge(start: Tensor, spread: float) -> Callable[[Tensor, int], Tensor]:
    """Return the mean of x_0 given x_t and y."""

    def guess(state: Tensor, step: int) -> Tensor:
        m = step / LAST
        variance = (1 - m) ** 2 * DEVIATION**2 + 2 * spread**2 * m * (1 - m)
        gain = (1 - m) * DEVIATION**2 / variance if variance > 0 else 0.0
        return MEAN + gain * (state - (1 - m) * MEAN - m * start)

    return guess


def test_bridge_draws_the_distribution() -> None:
    start = draw(seed=3)

    made = sample_bridge(
        guess_on_bridge(start, 0.5),
        start,
        LAST,
        spread_times(LAST, 250),
        spread=0.5,
        noise=source(6),
    )

    assert float(made.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(made.std()) == pytest.approx(DEVIATION, rel=0.05)


def test_one_step_over_the_bridge_is_the_estimate_at_its_end() -> None:
    start = draw(seed=3)

    made = sample_bridge(
        guess_on_bridge(start, 0.5), start, LAST, [LAST, 0], spread=0.5, noise=source(6)
    )

    torch.testing.assert_close(made, torch.full_like(made, MEAN))


def test_bridge_holds_both_ends_and_is_widest_between() -> None:
    clean, start, noise = draw(seed=1), draw(seed=2), draw(seed=3)

    ends = [bridge(clean, start, noise, torch.tensor(m), 0.5) for m in (0.0, 1.0)]
    middle = bridge(clean, start, noise, torch.tensor(0.5), 0.5)

    torch.testing.assert_close(ends[0], clean)
    torch.testing.assert_close(ends[1], start)
    torch.testing.assert_close(middle - (clean + start) / 2, 0.5 * math.sqrt(0.5) * noise)


def test_flow_keeps_quantiles_and_its_first_step_is_the_mean() -> None:
    origin, spread = -0.4, 0.5

    def estimate(state: Tensor, time: float) -> Tensor:
        middle = (1 - time) * origin + time * MEAN
        variance = (1 - time) ** 2 * spread**2 + time**2 * DEVIATION**2
        slope = (time * DEVIATION**2 - (1 - time) * spread**2) / variance
        return MEAN - origin + slope * (state - middle)

    noise = draw()
    start = origin + spread * noise

    torch.testing.assert_close(sample_flow(estimate, start, 1), torch.full_like(start, MEAN))
    made = sample_flow(estimate, start, 400)
    assert (made - (MEAN + DEVIATION * noise)).abs().max() < 0.02
