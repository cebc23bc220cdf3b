"""Scales, ticks and labels, worked out by hand."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.report.axes import LINE_HEIGHT, Frame, Label, Scale, log_scale, place_labels, text, value_scale

FRAME = Frame(400, 300, Scale(0, 1, 50, 350), Scale(0, 1, 250, 30))


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


def places_of(drawn: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'x="([-\d.]+)" y="([-\d.]+)"', drawn)]


def test_a_label_goes_below_what_is_in_its_way_and_left_where_the_frame_ends() -> None:
    drawn = place_labels([Label(200.0, 150.0, "small"), Label(210.0, 150.0, "large")], FRAME)
    assert places_of(drawn) == [(209.0, 169.0), (219.0, 154.0)]  # the first below the other mark
    assert 'x="371.0" y="104.0" text-anchor="end"' in place_labels([Label(380.0, 100.0, "small")], FRAME)


@given(st.lists(st.floats(30, 250), min_size=1, max_size=8))
def test_labels_where_lines_end_are_a_line_apart_and_above_the_axis(heights: list[float]) -> None:
    found = [y for _, y in places_of(place_labels([Label(350.0, y, "path") for y in heights], FRAME))]
    assert all(b - a >= LINE_HEIGHT - 0.2 for a, b in pairwise(found))
    assert found[-1] <= FRAME.y.start + 4.1
