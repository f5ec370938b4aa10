"""Figures as inline SVG, drawn on the server: how near what was made is to what was acquired.

Colors and fonts come from the style sheet, by class; no style stands in the markup, which the
page's Content Security Policy would drop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 12, 28
_TICKS = 4
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value at one time, and where a click on it leads."""

    at: datetime
    value: float
    href: str
    label: str


def draw_points(points: Sequence[Point], unit: str, name: str) -> Markup:
    """Return values over time as dots, with their median as a line.

    Args:
        points: one or more.
        unit: of the values, beside the axis.
        name: what a screen reader calls the chart.
    """
    values = [point.value for point in points]
    ticks = _choose_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    first, last = min(p.at for p in points), max(p.at for p in points)
    span = (last - first).total_seconds()

    def place_x(at: datetime) -> float:
        part = (at - first).total_seconds() / span if span else 0.5
        return _LEFT + part * (WIDTH - _LEFT - _RIGHT)

    def place_y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    middle = median(values)
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, name
        )
    ]
    for tick in ticks:
        y = place_y(tick)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{:g}</text>'
            ).format(_LEFT, WIDTH - _RIGHT, y, y, _LEFT - 8, y + 4, tick)
        )
    y = place_y(middle)
    parts.append(
        Markup('<line class="median" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _LEFT, WIDTH - _RIGHT, y, y
        )
    )
    for point in points:
        parts.append(
            Markup(
                '<a href="{}"><circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4">'
                "<title>{}</title></circle></a>"
            ).format(point.href, place_x(point.at), place_y(point.value), point.label)
        )
    days = [(first, "start")] if span == 0 else [(first, "start"), (last, "end")]
    for at, anchor in days:
        x = _LEFT if anchor == "start" else WIDTH - _RIGHT
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                x, HEIGHT - 8, anchor, f"{at:%Y-%m-%d}"
            )
        )
    parts.append(
        Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text></svg>').format(
            (WIDTH + _LEFT - _RIGHT) // 2, HEIGHT - 8, escape(unit)
        )
    )
    return Markup("").join(parts)


def _choose_ticks(low: float, high: float) -> list[float]:
    """Return round numbers that reach from below `low` to above `high`."""
    rough = ((high - low) or abs(high) / 10 or 1.0) / (_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in _STEPS if power * each >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * k, 10) for k in range(first, max(last, first + 1) + 1)]
