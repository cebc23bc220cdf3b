"""The charts of the report: accuracy for cost, confidence, and training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from smallfirst.evaluation.learning_curve import LearningPoint
from smallfirst.evaluation.results import Evaluation
from smallfirst.evaluation.risk_coverage import RiskCoveragePoint
from smallfirst.evaluation.self_agreement import SelfAgreement
from smallfirst.pricing.money import format_usd
from smallfirst.report.axes import (
    Axis,
    Frame,
    Label,
    Scale,
    band,
    chart,
    circle,
    large_frame,
    line,
    log_scale,
    mark,
    note,
    place_labels,
    small_frame,
    value_scale,
    whisker,
)
from smallfirst.report.formats import axis_percent, percent, short, usd_tick
from smallfirst.report.measures import Reliability
from smallfirst.routing.certificate.summary import ThresholdPoint

MAX_GAP = 0.25
"""A candidate this much less accurate than the best is drawn at the lower edge, since it would flatten the chart."""
CEILING_LABEL = "large agrees with itself:"


def quality_frame(
    evaluations: Sequence[Evaluation], curve: Sequence[ThresholdPoint], agreement: SelfAgreement | None = None
) -> Frame:
    """Return the frame of the chart; the slider that moves its point uses it too."""
    costs = [e.cost_usd_per_1k for e in evaluations] + [p.routed_cost_usd_per_1k for p in curve]
    shares = [x for e in _in_view(evaluations) for x in (e.accuracy.low, e.accuracy.high)]
    shares += [p.routed_accuracy for p in curve] + ([agreement.agreement.value] if agreement else [])
    positive = [cost for cost in costs if cost > 0] or [1.0]
    room = max(1.6, (max(positive) / min(positive)) ** 0.15)  # for a label left of the cheapest
    cost = log_scale(positive, margin=1.4)._replace(low=min(positive) / room)
    return large_frame(cost, value_scale(shares), right=480)


def quality_cost_chart(
    evaluations: Sequence[Evaluation],
    curve: Sequence[ThresholdPoint],
    *,
    chosen: int | None,
    agreement: SelfAgreement | None = None,
    name: str = "quality-cost",
) -> Markup:
    """Draw every path, the routed curve with a ring at `chosen`, and the agreement; `name` is unique on a page."""
    frame, shown = quality_frame(evaluations, curve, agreement), _in_view(evaluations)
    places = [frame.at(p.routed_cost_usd_per_1k, p.routed_accuracy) for p in curve]
    body, labels = list[str](), list[Label]()
    ceiling = f"{CEILING_LABEL} {percent(agreement.agreement.value)}" if agreement else ""
    if agreement is not None:
        y = frame.y.at(agreement.agreement.value)
        body += [line([(frame.x.start, y), (frame.x.end, y)], "reference ceiling"), note(y, ceiling, frame)]
    if places:
        body.append(line(places, "curve routed"))
    for evaluation in evaluations:
        candidate, accuracy = evaluation.candidate, evaluation.accuracy
        x, y = frame.at(evaluation.cost_usd_per_1k, accuracy.value)
        if evaluation in shown:
            body.append(whisker(candidate, x, frame.y.at(accuracy.low), frame.y.at(accuracy.high)))
            labels.append(Label(x, y, candidate, candidate))
        else:
            y = frame.y.start - 12
            labels.append(Label(x, y, f"{candidate} ↓ {percent(accuracy.value)}", candidate))
        body.append(mark(candidate, (x, y)))
    if chosen is not None and places:
        x, y = places[chosen]
        body.append(f'<circle id="moving" class="moving" cx="{x}" cy="{y}" r="8"/>')
    body.append(place_labels(labels, frame))
    facts = "; ".join(f"{e.candidate}: {e.accuracy} at {format_usd(e.cost_usd_per_1k)}" for e in evaluations)
    facts += f"; {ceiling}" if ceiling else ""
    return chart(
        name,
        frame,
        body,
        x=Axis("cost per 1,000 requests (log scale)", usd_tick),
        y=Axis("right answers", axis_percent(frame.y.high - frame.y.low)),
        title="Accuracy against cost",
        description=f"Accuracy with 95 % interval and cost per 1,000 requests. {facts}.",
    )


def _in_view(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    best = max(e.accuracy.value for e in evaluations)
    return tuple(e for e in evaluations if e.accuracy.value >= best - MAX_GAP)


def reliability_chart(reliability: Reliability, candidate: str) -> Markup:
    """Draw accuracy against confidence in equal-count bins; the diagonal is perfect calibration."""
    shares = [b.confidence for b in reliability.bins]
    shares += [x for b in reliability.bins for x in (b.accuracy.low, b.accuracy.high)]
    scale = value_scale([*shares, 1.0])
    frame = small_frame(scale, scale)
    body = [line([frame.at(v, v) for v in (scale.low, scale.high)], "reference")]
    body.append(line([frame.at(b.confidence, b.accuracy.value) for b in reliability.bins], f"curve {candidate}"))
    for one in reliability.bins:
        x, y = frame.at(one.confidence, one.accuracy.value)
        body.append(whisker(candidate, x, frame.y.at(one.accuracy.low), frame.y.at(one.accuracy.high)))
        body.append(circle(f"mark {candidate}", (x, y), 4))
    facts = "; ".join(f"{b.confidence:.2f}: {b.accuracy}" for b in reliability.bins)
    return chart(
        "reliability",
        frame,
        body,
        x=Axis("confidence", axis_percent(1.0)),
        y=Axis("accuracy", axis_percent(1.0)),
        title="Reliability diagram",
        description=f"Accuracy by mean confidence in {len(reliability.bins)} bins. {facts}.",
    )


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
    body = [band(upper, lower), line(middle, f"curve {candidate}")]
    if max_error is not None:
        y = frame.y.at(max_error)
        body.append(line([(frame.x.start, y), (frame.x.end, y)], "reference"))
        body.append(note(y, f"guaranteed: at most {percent(max_error)}", frame))
    if accepted is not None:
        nearest = min(risks, key=lambda p: abs(p.coverage - accepted))
        x, y = frame.at(accepted, nearest.error.value)
        body += [
            circle("moving", (x, y), 7),
            place_labels([Label(x, y - 14, f"kept: {percent(accepted)}", candidate)], frame),
        ]
    end = risks[-1]
    return chart(
        "risk-coverage",
        frame,
        body,
        x=Axis("share of requests kept small", axis_percent(1.0)),
        y=Axis("error of kept answers", axis_percent(frame.y.high - frame.y.low)),
        title="Error of kept answers by share kept",
        description=f"{end.error} when {percent(end.coverage)} is kept.",
    )


def learning_chart(points: Sequence[LearningPoint]) -> Markup:
    """Draw accuracy with intervals by training rows on a log scale, one line for each candidate."""
    shares = [x for p in points for x in (p.accuracy.low, p.accuracy.high)]
    rows = log_scale([float(p.n_rows) for p in points], margin=1.15)
    frame = large_frame(rows, value_scale(shares), height=360, right=462)
    curves: dict[str, list[LearningPoint]] = defaultdict(list)
    for point in sorted(points, key=lambda p: p.n_rows):
        curves[point.candidate].append(point)
    body, labels = [], []
    for candidate, curve in curves.items():
        places = [frame.at(p.n_rows, p.accuracy.value) for p in curve]
        body.append(line(places, f"curve {candidate}"))
        for point, place in zip(curve, places, strict=True):
            body.append(whisker(candidate, place[0], frame.y.at(point.accuracy.low), frame.y.at(point.accuracy.high)))
            body.append(mark(candidate, place))
        labels.append(Label(*places[-1], candidate, candidate))
    facts = "; ".join(f"{p.candidate} with {p.n_rows:,} rows: {p.accuracy}" for p in points)
    return chart(
        "learning",
        frame,
        [*body, place_labels(labels, frame)],
        x=Axis("training rows (log scale)", short),
        y=Axis("accuracy on test rows", axis_percent(1.0)),
        title="Accuracy by number of training rows",
        description=f"{facts}.",
    )
