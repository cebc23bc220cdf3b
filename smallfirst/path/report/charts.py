"""The chart of a report as SVG text with CSS classes: the error of kept answers by the share that is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from smallfirst.measuring.calibration import RiskCoveragePoint
from smallfirst.path.report.formats import axis_percent, percent

WIDTH, HEIGHT = 420, 320

Place = tuple[float, float]
"""Coordinates in a chart."""


class Axis(NamedTuple):
    """An axis: its title, its values from `low` to `high`, their coordinates, and how its ticks are written."""

    title: str
    low: float
    high: float
    start: float
    """Coordinate of `low`."""
    end: float
    """Coordinate of `high`."""

    @property
    def write(self) -> Callable[[float], str]:
        return axis_percent(self.high - self.low)

    def at(self, value: float) -> float:
        """Return the coordinate of `value`, clipped to the axis, rounded to a tenth of a unit."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> tuple[float, ...]:
        """Return about five round values on the axis."""
        step = _round_step((self.high - self.low) / 5)
        steps = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return tuple(round(i * step, 10) for i in steps)


def round_top(value: float) -> float:
    """Return a round number at or a little above a value, at least 0.02."""
    step = _round_step(max(value, 0.02) / 4)
    return math.ceil(value / step - 1e-9) * step or step


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)


def risk_coverage_chart(
    risks: Sequence[RiskCoveragePoint], candidate: str, *, max_error: float | None, accepted: float | None
) -> Markup:
    """Draw the error of accepted answers by the share accepted, with interval, guaranteed error and certified share."""
    top = max(p.error.high for p in risks if p.coverage >= 0.2 or p is risks[-1])
    x = Axis("share of requests kept small", 0.0, 1.0, 58, WIDTH - 16)
    y = Axis("error of kept answers", 0.0, round_top(max(top, (max_error or 0.0) * 1.2)), HEIGHT - 56, 42)
    upper = [(x.at(p.coverage), y.at(p.error.high)) for p in risks]
    lower = [(x.at(p.coverage), y.at(p.error.low)) for p in reversed(risks)]
    body = [
        *_axes(x, y),
        f'<polygon class="band" points="{_path([*upper, *lower])}"/>',
        _line([(x.at(p.coverage), y.at(p.error.value)) for p in risks], f"curve {candidate}"),
    ]
    if max_error is not None:
        at = y.at(max_error)
        body.append(_line([(x.start, at), (x.end, at)], "reference"))
        body.append(text(x.start + 6, at - 5, f"guaranteed: at most {percent(max_error)}", "note"))
    if accepted is not None:
        nearest = min(risks, key=lambda p: abs(p.coverage - accepted))
        ring = x.at(accepted), y.at(nearest.error.value)
        body.append(f'<circle class="chosen" cx="{ring[0]}" cy="{ring[1]}" r="7"/>')
        body.append(text(ring[0], ring[1] - 14, f"kept: {percent(accepted)}", f"label {candidate}", anchor="end"))
    described = escape(f"{risks[-1].error} when {percent(risks[-1].coverage)} is kept.")
    return Markup(
        f'<svg class="chart" id="risk-coverage" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-labelledby="risk-coverage-title risk-coverage-desc">'
        '<title id="risk-coverage-title">Error of kept answers by share kept</title>'
        f'<desc id="risk-coverage-desc">{described}</desc>{"".join(body)}</svg>'
    )


def _axes(x: Axis, y: Axis) -> list[str]:
    """Return grid, ticks and titles."""
    parts = []
    for value in y.ticks():
        at = y.at(value)
        parts.append(f'<line class="grid" x1="{x.start}" y1="{at}" x2="{x.end}" y2="{at}"/>')
        parts.append(text(x.start - 8, at + 4, y.write(value), "tick", anchor="end"))
    for value in x.ticks():
        at = x.at(value)
        parts.append(f'<line class="axis" x1="{at}" y1="{y.start}" x2="{at}" y2="{y.start + 4}"/>')
        parts.append(text(at, y.start + 19, x.write(value), "tick", anchor="middle"))
    parts.append(f'<line class="axis" x1="{x.start}" y1="{y.start}" x2="{x.end}" y2="{y.start}"/>')
    parts.append(text(4, y.end - 14, y.title, "axis-title"))
    parts.append(text(x.end, y.start + 39, x.title, "axis-title", anchor="end"))
    return parts


def text(x: float, y: float, words: str, css: str, *, anchor: str = "start") -> str:
    """Return an SVG text, escaped."""
    return f'<text class="{css}" x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}">{escape(words)}</text>'


def _line(places: Iterable[Place], css: str) -> str:
    return f'<polyline class="{css}" points="{_path(places)}"/>'


def _path(places: Iterable[Place]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)
