"""Charts of confidence: reliability, and the error of accepted answers by the share accepted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from smallfirst.evaluation.risk_coverage import RiskCoveragePoint
from smallfirst.report.charts.axes import (
    Axis,
    Frame,
    band,
    chart,
    circle,
    line,
    linear_scale,
    small_frame,
    text,
    value_scale,
    whisker,
)
from smallfirst.report.formats import axis_percent, percent
from smallfirst.report.measures import Reliability
from smallfirst.stats.intervals import Estimate

WHOLE_PERCENT = axis_percent(1.0)


def reliability_chart(reliability: Reliability) -> Markup:
    """Draw accuracy against confidence in equal-count bins; the diagonal is perfect calibration."""
    shares = [b.confidence for b in reliability.bins]
    shares += [x for b in reliability.bins for x in (b.accuracy.low, b.accuracy.high)]
    scale = value_scale([*shares, 1.0])
    frame = small_frame(scale, scale)
    places = [frame.at(b.confidence, b.accuracy.value) for b in reliability.bins]
    body = [
        line([frame.at(v, v) for v in (scale.low, scale.high)], "reference"),
        line(places, "curve small"),
        *_bins(reliability, frame, radius=4),
        _diagonal_note("as sure as right", frame, places),
    ]
    facts = "; ".join(f"{b.confidence:.2f}: {b.accuracy}" for b in reliability.bins)
    return chart(
        "reliability",
        frame,
        body,
        x=Axis("confidence", WHOLE_PERCENT),
        y=Axis("accuracy", WHOLE_PERCENT),
        title="Reliability diagram",
        description=f"Accuracy by mean confidence in {len(reliability.bins)} bins. {facts}.",
    )


def reliability_sparkline(reliability: Reliability) -> Markup:
    """Draw the diagram without titles, from 0 to 1, small enough for a table cell."""
    scale = linear_scale(0.0, 1.0)
    frame = Frame(110, 70, scale._replace(start=6, end=104), scale._replace(start=64, end=6))
    body = ['<rect class="box" x="6" y="6" width="98" height="58"/>', line([(6, 64), (104, 6)], "reference")]
    body += _bins(reliability, frame, radius=3.4)
    return Markup(f'<svg class="spark" viewBox="0 0 110 70" aria-hidden="true">{"".join(body)}</svg>')


def risk_coverage_chart(
    risks: Sequence[RiskCoveragePoint], *, max_error: float | None, accepted: float | None
) -> Markup:
    """Draw the error of accepted answers by the share accepted, with interval, guaranteed error and certified share."""
    top = max(p.error.high for p in risks if p.coverage >= 0.2 or p is risks[-1])
    frame = small_frame(linear_scale(0.0, 1.0), value_scale([0.0, max(top, (max_error or 0.0) * 1.2)]))
    upper, lower, middle = (
        [frame.at(p.coverage, end) for p, end in zip(risks, ends, strict=True)]
        for ends in ([p.error.high for p in risks], [p.error.low for p in risks], [p.error.value for p in risks])
    )
    body = [band(upper, lower), line(middle, "curve small")]
    if max_error is not None:
        height = frame.y.at(max_error)
        body.append(line([(frame.x.start, height), (frame.x.end, height)], "reference"))
        body.append(text(frame.x.at(0.14), height - 6, f"guaranteed: {percent(max_error)}", "note"))
    if accepted is not None:
        nearest = min(risks, key=lambda p: abs(p.coverage - accepted))
        x, y = frame.at(accepted, nearest.error.value)
        body.append(circle("moving", (x, y), 7))
        # Beside the ring and away from where the curve rises.
        anchor, shift, drop = ("end", -14, 0) if accepted > 0.5 else ("start", 12, 18)
        body.append(text(x + shift, y + 4 + drop, f"kept: {percent(accepted)}", "label small", anchor=anchor))
    end = risks[-1]
    return chart(
        "risk-coverage",
        frame,
        body,
        x=Axis("share of requests kept small", WHOLE_PERCENT),
        y=Axis("error of kept answers", axis_percent(frame.y.high - frame.y.low)),
        title="Error of kept answers by share kept",
        description=f"{end.error} when {percent(end.coverage)} is kept.",
    )


def interval_bar(estimate: Estimate, css: str) -> Markup:
    """Draw a share from 0 to 1 as a point on a short line with its interval, for a table cell."""
    low, at, high = (round(2 + 76 * x, 1) for x in (estimate.low, estimate.value, estimate.high))
    return Markup(
        '<svg class="bar" viewBox="0 0 80 12" aria-hidden="true">'
        '<line class="grid" x1="2" y1="6" x2="78" y2="6"/>'
        f'<line class="stretch {css}" x1="{low}" y1="6" x2="{high}" y2="6"/>'
        f"{circle(f'mark {css}', (at, 6), 3.5)}</svg>"
    )


def _bins(reliability: Reliability, frame: Frame, *, radius: float) -> list[str]:
    parts = []
    for one in reliability.bins:
        x, y = frame.at(one.confidence, one.accuracy.value)
        parts.append(whisker("small", x, frame.y.at(one.accuracy.low), frame.y.at(one.accuracy.high)))
        parts.append(circle("mark small", (x, y), radius))
    return parts


def _diagonal_note(words: str, frame: Frame, places: Sequence[tuple[float, float]]) -> str:
    """Place the words just below the diagonal where the bins and the lines between them leave most room."""
    bins = [*places]
    for (ax, ay), (bx, by) in pairwise(places):
        bins += [(ax + share * (bx - ax), ay + share * (by - ay)) for share in (0.2, 0.4, 0.6, 0.8)]
    spots = []
    for part in (0.08, 0.25, 0.4, 0.55):
        x = frame.x.start + part * (frame.x.end - frame.x.start)
        y = frame.y.start + part * (frame.y.end - frame.y.start)
        room = min((x + 60 - bx) ** 2 + (y + 8 - by) ** 2 for bx, by in bins)
        spots.append((room, x, y))
    _, x, y = max(spots)
    return text(x + 12, y + 10, words, "note")
