"""Charts of the figures: each dot where its value and its time are, and where it leads."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from dicom_node.admin.charts import HEIGHT, WIDTH, Point, draw_points

LEFT_OF_THE_AXIS = "32"
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


def draw(values: Sequence[float], label: str = "a study") -> ET.Element:
    points = [
        Point(at=BEGIN + timedelta(days=k), value=value, href=f"/studies/{k}", label=label)
        for k, value in enumerate(values)
    ]
    return ET.fromstring(str(draw_points(points, "dB", "PSNR")))  # noqa: S314 - our own


def find_dots(chart: ET.Element) -> list[tuple[float, float]]:
    return [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in chart.iter("circle")]


def find_line(chart: ET.Element, kind: str) -> float:
    [line] = [each for each in chart.iter("line") if each.get("class") == kind]
    assert line.get("y1") == line.get("y2")
    return float(line.get("y1", ""))


def test_later_is_right_and_more_is_above() -> None:
    dots = find_dots(draw([20.0, 30.0, 25.0]))

    (first, low), (second, high), (third, middle) = dots
    assert first < second < third
    assert high < middle < low
    assert middle == pytest.approx((high + low) / 2, abs=0.2)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in dots)


def test_line_is_at_the_median() -> None:
    values = [20.0, 21.0, 22.0, 40.0, 80.0]
    chart = draw(values)

    at_the_median = find_dots(chart)[values.index(median(values))][1]
    assert find_line(chart, "median") == pytest.approx(at_the_median, abs=0.2)


@pytest.mark.parametrize(
    "values", [[0.91, 0.93, 0.87], [17.3, 34.1], [0.0], [5.0, 5.0], [-1e-6, 1e6]]
)
def test_axis_has_round_numbers_that_hold_every_value(values: list[float]) -> None:
    chart = draw(values)

    heights = {float(line.get("y1", "")) for line in chart.iter("line")}
    ticks = [
        float(each.text or "") for each in chart.iter("text") if each.get("x") == LEFT_OF_THE_AXIS
    ]
    assert min(ticks) <= min(values)
    assert max(values) <= max(ticks)
    assert len({round(each, 9) for each in np.diff(ticks)}) == 1
    assert all(min(heights) - 0.1 <= y <= max(heights) + 0.1 for _, y in find_dots(chart))


def test_dot_leads_to_its_study_and_its_label_is_text() -> None:
    chart = draw([1.0, 2.0], label="<script>alert(1)</script>")

    links = list(chart.iter("a"))
    assert [each.get("href") for each in links] == ["/studies/0", "/studies/1"]
    assert [each.findtext(".//title") for each in links] == ["<script>alert(1)</script>"] * 2
    assert not list(chart.iter("script"))


def test_screen_reader_is_told_what_the_chart_is() -> None:
    chart = draw([1.0])

    assert (chart.get("role"), chart.get("aria-label")) == ("img", "PSNR")
