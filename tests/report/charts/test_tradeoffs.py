"""The share that can stay small, drawn by promise."""

from __future__ import annotations

import re

from smallfirst.report.charts.tradeoffs import frontier_chart
from smallfirst.routing.certificate.curves import FrontierPoint
from smallfirst.stats.intervals import wilson


def point(max_error: float, n_accepted: int) -> FrontierPoint:
    return FrontierPoint(
        max_error=max_error,
        issued=n_accepted > 0,
        threshold=0.5 if n_accepted else 1.01,
        n_accepted=n_accepted,
        share=wilson(n_accepted, 100),
    )


POINTS = (point(0.01, 0), point(0.05, 40), point(0.10, 70))


def test_each_promise_that_is_shown_is_a_point_with_its_interval_and_the_others_are_crossed_out() -> None:
    drawn = str(frontier_chart(POINTS, promised=None))
    assert drawn.count('<circle class="mark routed"') == drawn.count('class="whisker routed"') == 2
    assert drawn.count("✕") == 1
    assert "moving" not in drawn
    assert "At most 10.0\xa0% wrong: 70.0\xa0% small." in drawn


def test_the_promise_stands_at_its_own_limit_and_share() -> None:
    drawn = str(frontier_chart(POINTS, promised=(0.05, wilson(35, 100))))
    ring = re.search(r'<circle class="moving" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    marks = re.findall(r'<circle class="mark routed" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert ring is not None
    assert ring.group(1) == marks[0][0]
    assert float(ring.group(2)) > float(marks[0][1])  # 35 % at its own look, below the 40 % of a first one
    assert "promised: 35\xa0% of calibration rows" in drawn


def test_a_promise_beyond_the_curve_is_still_inside_the_frame() -> None:
    drawn = str(frontier_chart(POINTS, promised=(0.30, wilson(90, 100))))
    ring = re.search(r'<circle class="moving" cx="([\d.]+)"', drawn)
    assert ring is not None
    assert float(ring.group(1)) < 510  # the axis ends at 520


def test_where_nothing_is_shown_there_are_crosses_alone() -> None:
    drawn = str(frontier_chart((point(0.05, 0), point(0.1, 0)), promised=None))
    assert (drawn.count("✕"), drawn.count("polyline")) == (2, 0)
    assert "None is shown." in drawn
