"""The frame of a chart: scales, ticks, grid lines, titles, and labels that do not collide.

Charts are SVG text with CSS classes for every colour, so dark mode, print and high contrast are
the style sheet's business. Only what six small charts need is here; anything richer would want a
plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

CHARACTER_WIDTH = 8.8
LINE_HEIGHT = 15.0
MARK = 8.0
"""Half the width of the widest mark: a label nearer than this to a point covers it."""


class Scale(NamedTuple):
    """Maps a value to a place on the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of `value`, held inside the frame, rounded to a tenth of a unit."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> tuple[float, ...]:
        """About five round values inside the scale."""
        return _log_ticks(self) if self.log else _linear_ticks(self)


class Frame(NamedTuple):
    """A chart's size and its two scales."""

    width: int
    height: int
    x: Scale
    y: Scale


class Label(NamedTuple):
    """A text beside a point."""

    x: float
    y: float
    text: str
    css: str = ""


def log_scale(values: Iterable[float], start: float, end: float, *, room: float = 1.4) -> Scale:
    """A logarithmic scale around the positive `values`, with a factor of `room` on each side."""
    positive = [value for value in values if value > 0] or [1.0]
    return Scale(min(positive) / room, max(positive) * room, start, end, log=True)


def value_scale(values: Iterable[float], start: float, end: float) -> Scale:
    """A linear scale around values of zero or more, ending on round figures; equal values get room below."""
    there = list(values) or [0.0, 1.0]
    step = _round_step(max(max(there) - min(there), 0.02) / 4)
    low, high = (math.floor(min(there) / step + 1e-9) * step, math.ceil(max(there) / step - 1e-9) * step)
    if high - low < step / 2:
        low, high = (low - step, high) if low >= step else (low, low + step)
    return Scale(low, high, start, end)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)


def _linear_ticks(scale: Scale) -> tuple[float, ...]:
    step = _round_step((scale.high - scale.low) / 5)
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    return tuple(round(i * step, 10) for i in range(first, last + 1))


def _log_ticks(scale: Scale) -> tuple[float, ...]:
    decades = math.log10(scale.high / scale.low)
    steps = (1,) if decades > 2 else (1, 3) if decades > 1 else (1, 2, 5)
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    every = max(1, round(decades / 6))
    values = (m * 10.0**p for p in powers if p % every == 0 for m in steps)
    return tuple(v for v in values if scale.low <= v <= scale.high)


def axes(
    frame: Frame,
    *,
    x_title: str,
    y_title: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
) -> str:
    """Grid lines, tick texts and the two axis titles, the y title written level above its axis."""
    left, right, bottom, top = frame.x.start, frame.x.end, frame.y.start, frame.y.end
    parts = []
    for value in frame.y.ticks():
        y = frame.y.at(value)
        parts.append(f'<line class="grid" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>')
        parts.append(text(left - 8, y + 4, y_text(value), "tick", anchor="end"))
    for value in frame.x.ticks():
        x = frame.x.at(value)
        parts.append(f'<line class="axis" x1="{x}" y1="{bottom}" x2="{x}" y2="{round(bottom + 4, 1)}"/>')
        parts.append(text(x, bottom + 19, x_text(value), "tick", anchor="middle"))
    parts.append(f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    parts.append(text(4, top - 14, y_title, "axis-title"))
    parts.append(text(right, bottom + 39, x_title, "axis-title", anchor="end"))
    return "".join(parts)


def document(name: str, frame: Frame, body: str, *, title: str, description: str) -> Markup:
    """The whole SVG, with a title and a description that screen readers speak."""
    return Markup(
        f'<svg class="chart" id="{escape(name)}" viewBox="0 0 {frame.width} {frame.height}" '
        f'role="img" aria-labelledby="{escape(name)}-title {escape(name)}-desc">'
        f'<title id="{escape(name)}-title">{escape(title)}</title>'
        f'<desc id="{escape(name)}-desc">{escape(description)}</desc>{body}</svg>'
    )


def text(x: float, y: float, words: str, css: str, *, anchor: str = "start") -> str:
    """An SVG text, escaped."""
    return f'<text class="{css}" x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}">{escape(words)}</text>'


def line(points: Sequence[tuple[float, float]], css: str) -> str:
    """An open line through points given in drawing units."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline class="{css}" points="{path}"/>'


def band(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]]) -> str:
    """The filled area between two lines."""
    path = " ".join(f"{x},{y}" for x, y in [*upper, *reversed(lower)])
    return f'<polygon class="band" points="{path}"/>'


def place_labels(labels: Sequence[Label], frame: Frame, *, taken: Sequence[tuple[float, float]] = ()) -> str:
    """The texts beside their points: of eight places around a point the first that covers nothing.

    `taken` are further points to keep clear of (those of a curve). If every place covers
    something, the one that covers least is used.
    """
    points = [*taken, *((label.x, label.y) for label in labels)]
    boxes: list[tuple[float, float, float, float]] = []
    parts = []
    for label in labels:
        width = len(label.text) * CHARACTER_WIDTH
        places = [_box(label, width, place) for place in range(8)]
        best = min(places, key=lambda box: _cover(box, boxes, points, frame))
        boxes.append(best)
        parts.append(text(best[0], best[1] + 11, label.text, f"label {label.css}"))
    return "".join(parts)


def stack_labels(labels: Sequence[Label], frame: Frame) -> str:
    """The texts right of where lines end, moved apart so that none covers another."""
    ordered = sorted(labels, key=lambda label: label.y)
    heights: list[float] = []
    for label in ordered:
        heights.append(max(label.y, heights[-1] + LINE_HEIGHT) if heights else label.y)
    beyond = max(0.0, heights[-1] - frame.y.start) if heights else 0.0
    return "".join(
        text(label.x + 9, height - beyond + 4, label.text, f"label {label.css}")
        for label, height in zip(ordered, heights, strict=True)
    )


def _box(label: Label, width: float, place: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the text at one of eight places, best-liked first."""
    x, y = label.x, label.y
    left, top = (
        (x + 11, y - 8),
        (x - 11 - width, y - 8),
        (x + 9, y - 23),
        (x + 9, y + 8),
        (x - 9 - width, y - 23),
        (x - 9 - width, y + 8),
        (x + 11, y - 38),
        (x - width / 2, y + 24),
    )[place]
    return (left, top, left + width, top + LINE_HEIGHT)


def _cover(
    box: tuple[float, float, float, float],
    boxes: Sequence[tuple[float, float, float, float]],
    points: Sequence[tuple[float, float]],
    frame: Frame,
) -> float:
    left, top, right, bottom = box
    outside = left < 2 or right > frame.width - 2 or top < frame.y.end - 8 or bottom > frame.y.start
    overlaps = sum(
        left < b_right and b_left < right and top < b_bottom and b_top < bottom
        for b_left, b_top, b_right, b_bottom in boxes
    )
    hits = sum(left - MARK < x < right + MARK and top - 3 < y < bottom + 3 for x, y in points)
    return 100 * outside + 20 * overlaps + hits
