"""The frame of a chart as SVG text with CSS classes: scales, ticks, titles, marks and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from smallfirst.project.candidate_registry import FINE_TUNED

CHARACTER_WIDTH = 8.8
LINE_HEIGHT = 15.0
MARK_RADIUS = 8.0

Place = tuple[float, float]


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


class Frame(NamedTuple):
    """Size and scales of a chart."""

    width: int
    height: int
    x: Scale
    y: Scale

    def at(self, x: float, y: float) -> Place:
        return self.x.at(x), self.y.at(y)


class Axis(NamedTuple):
    """Title of an axis, and how its ticks are written."""

    title: str
    text: Callable[[float], str]


class Label(NamedTuple):
    """A text beside a point."""

    x: float
    y: float
    text: str
    css: str = ""


def large_frame(x: Scale, y: Scale, *, height: int = 380, left: float = 62, right: float = 470) -> Frame:
    """Return a frame of the large chart size, with `left` and `right` as the ends of the x axis."""
    return Frame(540, height, x._replace(start=left, end=right), y._replace(start=height - 56, end=42))


def small_frame(x: Scale, y: Scale) -> Frame:
    """Return a frame of the small chart size."""
    return Frame(420, 320, x._replace(start=58, end=404), y._replace(start=264, end=42))


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


def chart(name: str, frame: Frame, body: Iterable[str], *, x: Axis, y: Axis, title: str, description: str) -> Markup:
    """Return an SVG with grid lines, tick labels and axis titles behind `body`, and what screen readers say of it.

    The y title stands above its axis.
    """
    left, right, bottom, top = frame.x.start, frame.x.end, frame.y.start, frame.y.end
    parts = []
    for value in frame.y.ticks():
        at = frame.y.at(value)
        parts.append(f'<line class="grid" x1="{left}" y1="{at}" x2="{right}" y2="{at}"/>')
        parts.append(text(left - 8, at + 4, y.text(value), "tick", anchor="end"))
    for value in frame.x.ticks():
        at = frame.x.at(value)
        parts.append(f'<line class="axis" x1="{at}" y1="{bottom}" x2="{at}" y2="{round(bottom + 4, 1)}"/>')
        parts.append(text(at, bottom + 19, x.text(value), "tick", anchor="middle"))
    parts.append(f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    parts.append(text(4, top - 14, y.title, "axis-title"))
    parts.append(text(right, bottom + 39, x.title, "axis-title", anchor="end"))
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


def band(upper: Sequence[Place], lower: Sequence[Place]) -> str:
    """Return the filled area between two lines."""
    return f'<polygon class="band" points="{_path([*upper, *reversed(lower)])}"/>'


def whisker(css: str, x: float, low: float, high: float) -> str:
    """Return a vertical line from `low` to `high`: the interval of a point."""
    return f'<line class="whisker {css}" x1="{x}" y1="{low}" x2="{x}" y2="{high}"/>'


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


def note(y: float, words: str, frame: Frame) -> str:
    """Return a text on a level line, at its left end."""
    return text(frame.x.start + 6, y - 5, words, "note")


def place_labels(labels: Sequence[Label], frame: Frame) -> str:
    """Return the texts right of their points, or left where the frame ends, below the texts and points in their way."""
    taken = [(label.x - MARK_RADIUS, label.x + MARK_RADIUS, label.y) for label in labels]
    placed = []
    for label in sorted(labels, key=lambda label: label.y):
        width, y = CHARACTER_WIDTH * len(label.text), label.y
        before = label.x + 9 + width > frame.width
        left = label.x - 9 - width if before else label.x + 9
        for start, end, at in sorted(taken, key=lambda box: box[2]):
            if left < end and start < left + width and abs(y - at) < LINE_HEIGHT:
                y = at + LINE_HEIGHT
        taken.append((left, left + width, y))
        placed.append((label, y, (label.x - 9, "end") if before else (left, "start")))
    excess = max([0.0, *(y - frame.y.start for _, y, _ in placed)])
    return "".join(
        text(x, y - excess + 4, label.text, f"label {label.css}", anchor=anchor) for label, y, (x, anchor) in placed
    )


def _path(places: Iterable[Place]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
