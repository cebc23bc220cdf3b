"""Charts of confidence: reliability, and the error of accepted answers by the share accepted."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from smallfirst.evaluation.risk_coverage import RiskCoveragePoint
from smallfirst.report.charts.axes import (
    Axis,
    Frame,
    Label,
    Scale,
    band,
    chart,
    circle,
    line,
    note,
    place_labels,
    small_frame,
    value_scale,
    whisker,
)
from smallfirst.report.formats import axis_percent, percent
from smallfirst.report.measures import Reliability
from smallfirst.stats.intervals import Estimate

WHOLE_PERCENT = axis_percent(1.0)


def reliability_chart(reliability: Reliability, candidate: str) -> Markup:
    """Draw accuracy against confidence in equal-count bins; the diagonal is perfect calibration."""
    shares = [b.confidence for b in reliability.bins]
    shares += [x for b in reliability.bins for x in (b.accuracy.low, b.accuracy.high)]
    scale = value_scale([*shares, 1.0])
    frame = small_frame(scale, scale)
    places = [frame.at(b.confidence, b.accuracy.value) for b in reliability.bins]
    diagonal = [frame.at(v, v) for v in (scale.low, scale.high)]
    whiskers = [[frame.at(b.confidence, end) for end in (b.accuracy.low, b.accuracy.high)] for b in reliability.bins]
    body = [
        line(diagonal, "reference"),
        line(places, f"curve {candidate}"),
        *_bins(reliability, frame, candidate, radius=4),
        place_labels([note("as sure as right", *diagonal)], frame, lines=[diagonal, places, *whiskers]),
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
    scale = Scale(0.0, 1.0)
    frame = Frame(110, 70, scale._replace(start=6, end=104), scale._replace(start=64, end=6))
    body = ['<rect class="box" x="6" y="6" width="98" height="58"/>', line([(6, 64), (104, 6)], "reference")]
    body += _bins(reliability, frame, "", radius=3.4)
    return Markup(f'<svg class="spark" viewBox="0 0 110 70" aria-hidden="true">{"".join(body)}</svg>')


def risk_coverage_chart(
    risks: Sequence[RiskCoveragePoint], candidate: str, *, max_error: float | None, accepted: float | None
) -> Markup:
    """Draw the error of accepted answers by the share accepted, with interval, guaranteed error and certified share."""
    top = max(p.error.high for p in risks if p.coverage >= 0.2 or p is risks[-1])
    frame = small_frame(Scale(0.0, 1.0), value_scale([0.0, max(top, (max_error or 0.0) * 1.2)]))
    upper, lower, middle = (
        [frame.at(p.coverage, end) for p, end in zip(risks, ends, strict=True)]
        for ends in ([p.error.high for p in risks], [p.error.low for p in risks], [p.error.value for p in risks])
    )
    body, lines, labels = [band(upper, lower), line(middle, f"curve {candidate}")], [middle], []
    if max_error is not None:
        lines.append([(frame.x.start, frame.y.at(max_error)), (frame.x.end, frame.y.at(max_error))])
        body.append(line(lines[-1], "reference"))
        labels.append(note(f"guaranteed: at most {percent(max_error)}", *lines[-1]))
    if accepted is not None:
        nearest = min(risks, key=lambda p: abs(p.coverage - accepted))
        x, y = frame.at(accepted, nearest.error.value)
        body.append(circle("moving", (x, y), 7))
        labels.insert(0, Label(x, y, f"kept: {percent(accepted)}", candidate))
    body.append(place_labels(labels, frame, lines=lines))
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


def _bins(reliability: Reliability, frame: Frame, candidate: str, *, radius: float) -> list[str]:
    parts = []
    for one in reliability.bins:
        x, y = frame.at(one.confidence, one.accuracy.value)
        parts.append(whisker(candidate, x, frame.y.at(one.accuracy.low), frame.y.at(one.accuracy.high)))
        parts.append(circle(f"mark {candidate}", (x, y), radius))
    return parts
