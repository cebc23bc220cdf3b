"""The axes of the chart, worked out by hand."""

from __future__ import annotations

import pytest

from smallfirst.path.report.charts import Axis, round_top, text


def test_values_have_round_ticks_and_stay_on_the_axis() -> None:
    axis = Axis("share", 0.0, 1.0, 100, 500)
    assert axis.ticks() == pytest.approx((0, 0.2, 0.4, 0.6, 0.8, 1.0))
    assert [axis.at(value) for value in (-1, 0, 0.25, 1, 5)] == [100, 100, 200, 500, 500]


@pytest.mark.parametrize(("value", "top"), [(0.0, 0.005), (0.012, 0.015), (0.06, 0.06), (0.131, 0.15), (1.0, 1.0)])
def test_an_axis_ends_on_a_round_figure(value: float, top: float) -> None:
    assert round_top(value) == pytest.approx(top)


def test_text_in_a_chart_is_escaped() -> None:
    assert "&lt;b&gt;" in text(0, 0, "<b>", "label")
