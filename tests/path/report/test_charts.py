"""Scales, ticks and the legend, worked out by hand."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from smallfirst.path.report.charts import Axis, Frame, Scale, log_scale, text, value_scale


def test_a_logarithmic_scale_gives_each_decade_the_same_room() -> None:
    scale = Scale(0.01, 100.0, 0, 400, log=True)
    assert [scale.at(v) for v in (0.01, 0.1, 1, 10, 100)] == [0, 100, 200, 300, 400]
    assert scale.ticks() == pytest.approx((0.01, 0.1, 1, 10, 100))


def test_values_beyond_a_scale_stay_inside_the_frame() -> None:
    assert log_scale([1.0, 10.0]).at(0.0) == 0
    assert Scale(0.0, 1.0, 10, 20).at(5.0) == 20


def test_a_value_scale_ends_on_round_figures_and_never_beyond_one() -> None:
    scale = value_scale([0.861, 0.988])
    assert (scale.low, scale.high) == pytest.approx((0.85, 1.0))
    assert scale.ticks() == pytest.approx((0.85, 0.9, 0.95, 1.0))


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.995, 1.0), (0.0, 0.0, 0.005)])
def test_a_scale_of_one_value_has_room_and_stays_a_share(value: float, low: float, high: float) -> None:
    scale = value_scale([value, value])
    assert (scale.low, scale.high) == pytest.approx((low, high))


def test_text_in_a_chart_is_escaped() -> None:
    assert "&lt;b&gt;" in text(0, 0, "<b>", "label")


def test_the_legend_names_each_path_on_a_line_of_its_own_the_highest_first() -> None:
    frame = Frame.of(Axis("x", Scale(0, 1), str), Axis("y", Scale(0, 1), str), legend=True)
    drawn = frame.legend([(200.0, "small", "small"), (200.0, "large", "large"), (60.0, "routed", "routed")])
    names = re.findall(r'y="([\d.]+)" text-anchor="start">(\w+)<', drawn)
    assert [name for _, name in names] == ["routed", "large", "small"]
    heights = [float(y) for y, _ in names]
    assert heights == sorted(heights)
    assert min(b - a for a, b in pairwise(heights)) >= 14
