"""The charts of pages as SVG text with CSS classes: one scale, one pair of axes, and a legend beside the plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from smallfirst.measuring.calibration import RiskCoveragePoint
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.models.pricing import format_usd
from smallfirst.path.project.candidate_registry import FINE_TUNED
from smallfirst.path.report.formats import axis_percent, percent, usd_tick

LEGEND_WIDTH, LINE_HEIGHT = 140, 20

Place = tuple[float, float]
"""Coordinates in a chart."""


class Scale(NamedTuple):
    """Maps values to coordinates."""

    low: float
    high: float
    start: float = 0.0
    """The coordinates that a frame gives `low` and `high`."""
    end: float = 1.0
    log: bool = False

    def at(self, value: float) -> float:
        """Return the coordinate of `value`, clipped to the frame, rounded to a tenth of a unit."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> tuple[float, ...]:
        """Return about five round values inside the scale."""
        if not self.log:
            step = _round_step((self.high - self.low) / 5)
            steps = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
            return tuple(round(i * step, 10) for i in steps)
        decades = math.log10(self.high / self.low)
        digits = (1,) if decades > 2 else (1, 3) if decades > 1 else (1, 2, 5)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        every = max(1, round(decades / 6))
        values = (digit * 10.0**power for power in powers if power % every == 0 for digit in digits)
        return tuple(value for value in values if self.low <= value <= self.high)


class Axis(NamedTuple):
    """An axis: its title, its scale, and how its ticks are written."""

    title: str
    scale: Scale
    text: Callable[[float], str]


class Frame(NamedTuple):
    """The place of a plot between its axes; with a legend there is room for it on the right."""

    x: Axis
    y: Axis
    width: int = 420
    height: int = 320

    @classmethod
    def of(cls, x: Axis, y: Axis, *, plot: int = 420, height: int = 320, legend: bool = False) -> Frame:
        """Return a frame whose plot with its tick labels is `plot` wide."""
        x = x._replace(scale=x.scale._replace(start=58, end=plot - 16))
        y = y._replace(scale=y.scale._replace(start=height - 56, end=42))
        return cls(x, y, plot + LEGEND_WIDTH * legend, height)

    def at(self, x: float, y: float) -> Place:
        return self.x.scale.at(x), self.y.scale.at(y)

    def reference(self, y: float, words: str) -> str:
        """Return a line across the plot with words above its left end."""
        x, at = self.x.scale, self.y.scale.at(y)
        return line([(x.start, at), (x.end, at)], "reference") + text(x.start + 6, at - 5, words, "note")

    def whisker(self, css: str, x: float, low: float, high: float) -> str:
        """Return the vertical line at the coordinate `x` between two values: the interval of a point."""
        ends = self.y.scale.at(low), self.y.scale.at(high)
        return f'<line class="whisker {css}" x1="{x}" y1="{ends[0]}" x2="{x}" y2="{ends[1]}"/>'

    def legend(self, labels: Iterable[tuple[float, str, str]]) -> str:
        """Return marks and texts beside the plot, from (height of the point, candidate, text): the highest first."""
        x, parts = self.x.scale.end + 22, []
        for i, (_, candidate, words) in enumerate(sorted(labels)):
            y = self.y.scale.end + 6 + i * LINE_HEIGHT
            parts += [mark(candidate, (x, y)), text(x + 13, y + 4, words, f"label {candidate}")]
        return "".join(parts)


def log_scale(values: Iterable[float], *, margin: float = 1.4) -> Scale:
    """Return a logarithmic scale around the positive `values`, extended by a factor of `margin` on each side."""
    positive = [value for value in values if value > 0] or [1.0]
    return Scale(min(positive) / margin, max(positive) * margin, log=True)


def value_scale(values: Iterable[float]) -> Scale:
    """Return a linear scale around values of zero or more, ending on round numbers; equal values get room below."""
    known = list(values) or [0.0, 1.0]
    step = _round_step(max(max(known) - min(known), 0.02) / 4)
    low, high = (math.floor(min(known) / step + 1e-9) * step, math.ceil(max(known) / step - 1e-9) * step)
    if high - low < step / 2:
        low, high = (low - step, high) if low >= step else (low, low + step)
    return Scale(low, high)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)


def chart(name: str, frame: Frame, body: Iterable[str], *, title: str, description: str) -> Markup:
    """Return an SVG with grid, ticks and axis titles behind `body`, and what screen readers say of it."""
    x, y = frame.x.scale, frame.y.scale
    parts = []
    for value in y.ticks():
        at = y.at(value)
        parts.append(f'<line class="grid" x1="{x.start}" y1="{at}" x2="{x.end}" y2="{at}"/>')
        parts.append(text(x.start - 8, at + 4, frame.y.text(value), "tick", anchor="end"))
    for value in x.ticks():
        at = x.at(value)
        parts.append(f'<line class="axis" x1="{at}" y1="{y.start}" x2="{at}" y2="{round(y.start + 4, 1)}"/>')
        parts.append(text(at, y.start + 19, frame.x.text(value), "tick", anchor="middle"))
    parts.append(f'<line class="axis" x1="{x.start}" y1="{y.start}" x2="{x.end}" y2="{y.start}"/>')
    parts.append(text(4, y.end - 14, frame.y.title, "axis-title"))
    parts.append(text(x.end, y.start + 39, frame.x.title, "axis-title", anchor="end"))
    return Markup(
        f'<svg class="chart" id="{escape(name)}" viewBox="0 0 {frame.width} {frame.height}" '
        f'role="img" aria-labelledby="{escape(name)}-title {escape(name)}-desc">'
        f'<title id="{escape(name)}-title">{escape(title)}</title>'
        f'<desc id="{escape(name)}-desc">{escape(description)}</desc>{"".join([*parts, *body])}</svg>'
    )


def text(x: float, y: float, words: str, css: str, *, anchor: str = "start") -> str:
    """Return an SVG text, escaped."""
    return f'<text class="{css}" x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}">{escape(words)}</text>'


def line(places: Iterable[Place], css: str) -> str:
    """Return an open line through `places`."""
    return f'<polyline class="{css}" points="{_path(places)}"/>'


def circle(css: str, place: Place, radius: float) -> str:
    """Return a circle around `place`."""
    return f'<circle class="{css}" cx="{place[0]}" cy="{place[1]}" r="{radius:g}"/>'


def mark(candidate: str, place: Place) -> str:
    """Return a candidate's mark: circle for small, square for large, diamond for routed, triangle for the others."""
    (x, y), css = place, f'class="mark {candidate}"'
    if candidate == "large":
        return f'<rect {css} x="{round(x - 5.5, 1)}" y="{round(y - 5.5, 1)}" width="11" height="11"/>'
    if candidate == "routed":
        return f'<path {css} d="M{x} {round(y - 7.5, 1)}l7.5 7.5l-7.5 7.5l-7.5 -7.5z"/>'
    if candidate == FINE_TUNED:
        return circle(f"mark {candidate}", place, 6)
    return f'<path {css} d="M{x} {round(y - 7, 1)}l6.5 12h-13z"/>'


def _path(places: Iterable[Place]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def quality_cost_chart(evaluations: Sequence[Evaluation]) -> Markup:
    """Draw accuracy and cost of every path."""
    y = value_scale([x for e in evaluations for x in (e.accuracy.low, e.accuracy.high)])
    frame = Frame.of(
        Axis("cost per 1,000 requests (log scale)", log_scale(e.cost_usd_per_1k for e in evaluations), usd_tick),
        Axis("right answers", y, axis_percent(y.high - y.low)),
        plot=460,
        height=380,
        legend=True,
    )
    body, labels = list[str](), list[tuple[float, str, str]]()
    facts = [f"{e.candidate}: {e.accuracy} at {format_usd(e.cost_usd_per_1k)}" for e in evaluations]
    for evaluation in evaluations:
        candidate, accuracy = evaluation.candidate, evaluation.accuracy
        place = frame.at(evaluation.cost_usd_per_1k, accuracy.value)
        body += [frame.whisker(candidate, place[0], accuracy.low, accuracy.high), mark(candidate, place)]
        labels.append((place[1], candidate, candidate))
    return chart(
        "overview",
        frame,
        [*body, frame.legend(labels)],
        title="Accuracy against cost",
        description=f"Accuracy with 95 % interval and cost per 1,000 requests. {'; '.join(facts)}.",
    )


def risk_coverage_chart(
    risks: Sequence[RiskCoveragePoint], candidate: str, *, max_error: float | None, accepted: float | None
) -> Markup:
    """Draw the error of accepted answers by the share accepted, with interval, guaranteed error and certified share."""
    top = max(p.error.high for p in risks if p.coverage >= 0.2 or p is risks[-1])
    y = value_scale([0.0, max(top, (max_error or 0.0) * 1.2)])
    frame = Frame.of(
        Axis("share of requests kept small", Scale(0.0, 1.0), axis_percent(1.0)),
        Axis("error of kept answers", y, axis_percent(y.high - y.low)),
    )
    upper = [frame.at(p.coverage, p.error.high) for p in risks]
    lower = [frame.at(p.coverage, p.error.low) for p in reversed(risks)]
    body = [
        f'<polygon class="band" points="{_path([*upper, *lower])}"/>',
        line([frame.at(p.coverage, p.error.value) for p in risks], f"curve {candidate}"),
    ]
    if max_error is not None:
        body.append(frame.reference(max_error, f"guaranteed: at most {percent(max_error)}"))
    if accepted is not None:
        nearest = min(risks, key=lambda p: abs(p.coverage - accepted))
        place = frame.at(accepted, nearest.error.value)
        kept = text(place[0], place[1] - 14, f"kept: {percent(accepted)}", f"label {candidate}", anchor="end")
        body += [circle("chosen", place, 7), kept]
    return chart(
        "risk-coverage",
        frame,
        body,
        title="Error of kept answers by share kept",
        description=f"{risks[-1].error} when {percent(risks[-1].coverage)} is kept.",
    )
