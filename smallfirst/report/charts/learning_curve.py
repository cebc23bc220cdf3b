"""Accuracy by number of training rows, and what more rows are likely to give.

What is said of more rows is a straight line through the last two points on a log scale of rows: a guess, and called
so. Curves flatten, so it is rather too hopeful.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from smallfirst.report.charts.axes import Frame, Label, axes, document, line, log_scale, stack_labels, value_scale
from smallfirst.report.charts.plots import mark
from smallfirst.report.findings import LearningPoint
from smallfirst.report.formats import NAMES, accurate, percent, short, signed


def curves(points: Sequence[LearningPoint]) -> dict[str, list[LearningPoint]]:
    """Points by candidate, fewest rows first."""
    found: dict[str, list[LearningPoint]] = {}
    for point in sorted(points, key=lambda p: p.n_rows):
        found.setdefault(point.candidate, []).append(point)
    return found


def learning_chart(points: Sequence[LearningPoint]) -> Markup:
    """Accuracy with intervals by training rows on a log scale, one line a candidate, labelled at its end."""
    shares = [x for p in points for x in (p.accuracy.low, p.accuracy.high)]
    frame = Frame(
        540, 360, log_scale([float(p.n_rows) for p in points], 62, 462, room=1.15), value_scale(shares, 304, 42)
    )
    body = [
        axes(
            frame,
            x_title="training rows (log scale)",
            y_title="accuracy on test rows",
            x_text=short,
            y_text=lambda v: percent(v, digits=0),
        )
    ]
    labels = []
    for candidate, curve in curves(points).items():
        places = [(frame.x.at(p.n_rows), frame.y.at(p.accuracy.value)) for p in curve]
        body.append(line(places, f"curve {candidate}"))
        for point, (x, y) in zip(curve, places, strict=True):
            low, high = frame.y.at(point.accuracy.low), frame.y.at(point.accuracy.high)
            body.append(f'<line class="whisker {candidate}" x1="{x}" y1="{low}" x2="{x}" y2="{high}"/>')
            body.append(mark(candidate, x, y))
        labels.append(Label(places[-1][0] + 4, places[-1][1], candidate, candidate))
    body.append(stack_labels(labels, frame))
    facts = "; ".join(f"{p.candidate} with {p.n_rows:,} rows: {p.accuracy}" for p in points)
    return document(
        "learning", frame, "".join(body), title="Accuracy by number of training rows", description=f"{facts}."
    )


def gain_of_doubling(curve: Sequence[LearningPoint]) -> float | None:
    """Accuracy that twice the rows would add if the last step went on on a log scale; None from one point."""
    steps = [p for p in curve if p.n_rows > 0]
    if len(steps) < 2 or steps[-1].n_rows == steps[-2].n_rows:
        return None
    before, last = steps[-2], steps[-1]
    slope = (last.accuracy.value - before.accuracy.value) / math.log(last.n_rows / before.n_rows)
    return min(slope * math.log(2), 1 - last.accuracy.value)


def learning_sentence(points: Sequence[LearningPoint], candidate: str) -> str:
    """What more rows gave and may give this candidate; empty without two points."""
    curve = curves(points).get(candidate, [])
    gain = gain_of_doubling(curve)
    if gain is None:
        return ""
    before, last = curve[-2], curve[-1]
    rose = signed(last.accuracy.value - before.accuracy.value)
    start = (
        f"From {before.n_rows:,} to {last.n_rows:,} training rows the {NAMES.get(candidate, candidate)} changed by "
        f"{rose} points, to {accurate(last.accuracy)}."
    )
    if last.accuracy.low <= before.accuracy.value and gain < 0.01:
        return f"{start} It is close to flat: more rows of the same kind are not likely to help."
    return (
        f"{start} If that goes on, twice the rows are worth about {signed(gain)} points (a guess from the last step)."
    )
