"""Figures of people compared: intervals over people, paired tests, and what may be said.

A person is one draw, whatever number of voxels or slices he has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

DRAWS = 4000
LEVEL = 0.95
FEWEST_FOR_A_TEST = 6
"""With fewer people a signed-rank test cannot reach 5 % whatever the figures are."""
SEED = 2026


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over people and its 95 % interval; no interval of fewer than two people."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Figures of the same people by two methods.

    Attributes:
        interval: of the mean gain over the other method.
        p_value: of Wilcoxon's signed-rank test, two-sided, from six people on.
    """

    interval: Interval
    p_value: float | None


def bootstrap(values: Sequence[float]) -> Interval:
    """Return the mean and the percentile interval of its redrawn means; the same every time."""
    array = np.asarray(values, float)
    if array.size < 2:  # noqa: PLR2004 - one person has no spread
        return Interval(mean=float(array.mean()), low=None, high=None, n=array.size)
    draws = np.random.default_rng(SEED).integers(0, array.size, (DRAWS, array.size))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(array[draws].mean(axis=1), [tail, 100 - tail])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high), n=array.size)


def compare(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Difference | None:
    """Return the gain over another method on the people whom both have; None without any."""
    both = sorted(set(ours) & set(theirs))
    if not both:
        return None
    gains = np.array([ours[person] - theirs[person] for person in both])
    p_value = None
    if gains.size >= FEWEST_FOR_A_TEST and bool(np.any(gains != 0)):
        p_value = float(stats.wilcoxon(gains).pvalue)
    return Difference(interval=bootstrap(gains.tolist()), p_value=p_value)


def compare_shares(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Difference | None:
    """Return by which share of the other method's figure ours is less, as `compare` does.

    Whoever has zero there has no share.
    """
    both = [person for person in ours if theirs.get(person)]
    less = {person: 1 - ours[person] / theirs[person] for person in both}
    return compare(less, dict.fromkeys(both, 0.0))


def decide(interval: Interval, bar: float) -> str:
    """Return `reached`, `missed`, or `not shown` where the interval includes the bar."""
    if interval.low is None or interval.high is None or interval.low <= bar <= interval.high:
        return "not shown"
    return "reached" if interval.low > bar else "missed"


def write_interval(interval: Interval, digits: int) -> str:
    """Return `mean [low, high]`, or the mean alone where there is no interval."""
    text = f"{interval.mean:.{digits}f}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
