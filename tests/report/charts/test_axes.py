"""Scales, ticks and labels, worked out by hand."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.report.charts.axes import (
    LINE_HEIGHT,
    Frame,
    Label,
    Scale,
    log_scale,
    note,
    place_labels,
    stack_labels,
    text,
    value_scale,
)

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


def test_labels_of_one_point_do_not_cover_each_other() -> None:
    labels = [Label(200.0, 150.0, "small"), Label(200.0, 150.0, "large")]
    drawn = place_labels(labels, FRAME)
    places = re.findall(r'x="([\d.]+)" y="([\d.]+)"', drawn)
    assert len(set(places)) == 2


def boxes_of(drawn: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each text, from its baseline."""
    found = re.findall(r'class="(\w+)[^"]*" x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)">([^<]*)', drawn)
    boxes = []
    for css, x, y, anchor, words in found:
        width = len(words) * {"label": 8.8, "note": 6.6}[css]
        left = float(x) - (width if anchor == "end" else 0)
        boxes.append((left, float(y) - 11, left + width, float(y) + 4))
    return boxes


@given(st.lists(st.tuples(st.floats(60, 340), st.floats(0, 8)), min_size=1, max_size=4), st.floats(60, 220))
def test_labels_cross_no_line_where_there_is_room(shifts: list[tuple[float, float]], height: float) -> None:
    # Marks 40 or more apart in height leave room for every label, wherever the line is.
    points = [(x, 60 + 48 * i + shift) for i, (x, shift) in enumerate(shifts)]
    ceiling = [(50.0, height), (350.0, height)]
    labels = [Label(x, y, "small") for x, y in points]
    drawn = place_labels([*labels, note("a note", *ceiling)], FRAME, lines=[ceiling])
    boxes = boxes_of(drawn)
    assert not [box for box in boxes if box[1] < height < box[3]]
    assert not [
        (a, b)
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]


def test_who_chooses_first_does_not_leave_the_other_on_a_line() -> None:
    # Lines above and below, whiskers on the right: there is room for both only if the second label chooses first.
    around = [[(x, 30.0), (x, 250.0)] for x in (232.0, 262.0)]
    around += [[(50.0, y), (350.0, y)] for y in (*range(40, 141, 10), *range(160, 250, 10))]
    drawn = place_labels([Label(130.0, 150.0, "first"), Label(220.0, 150.0, "second")], FRAME, lines=around)
    assert not [box for box in boxes_of(drawn) if any(box[0] < x < box[2] for x in (232, 262))]


@given(st.lists(st.floats(30, 250), min_size=1, max_size=8))
def test_stacked_labels_are_a_line_apart_and_above_the_axis(heights: list[float]) -> None:
    drawn = stack_labels([Label(350.0, y, "path") for y in heights], FRAME)
    found = [float(y) for y in re.findall(r' y="([-\d.]+)"', drawn)]
    assert all(b - a >= LINE_HEIGHT - 0.2 for a, b in pairwise(found))
    assert found[-1] <= FRAME.y.start + 4.1
