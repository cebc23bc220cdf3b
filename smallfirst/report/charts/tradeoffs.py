"""What is given up for what: accuracy for cost, and money spent for requests."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from smallfirst.evaluation.results import Evaluation
from smallfirst.evaluation.self_agreement import SelfAgreement
from smallfirst.pricing.money import format_usd
from smallfirst.report.charts.axes import (
    Axis,
    Frame,
    Label,
    chart,
    circle,
    large_frame,
    line,
    log_scale,
    mark,
    note,
    place_labels,
    stack_labels,
    value_scale,
    whisker,
)
from smallfirst.report.economics import PRICE_DROPS, PathCost, break_even
from smallfirst.report.formats import MINUS, axis_percent, count, percent, short, usd_tick
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
    body: list[str] = []
    places = [frame.at(p.routed_cost_usd_per_1k, p.routed_accuracy) for p in curve]
    lines, labels, notes = [places], [], []
    if agreement is not None:
        y = frame.y.at(agreement.agreement.value)
        lines.append([(frame.x.start, y), (frame.x.end, y)])
        body.append(line(lines[-1], "reference ceiling"))
        notes.append(note(f"{CEILING_LABEL} {percent(agreement.agreement.value)}", *lines[-1]))
    if places:
        body.append(line(places, "curve routed"))
    for evaluation in evaluations:
        candidate, accuracy = evaluation.candidate, evaluation.accuracy
        x, y = frame.at(evaluation.cost_usd_per_1k, accuracy.value)
        if evaluation in shown:
            low, high = frame.y.at(accuracy.low), frame.y.at(accuracy.high)
            body.append(whisker(candidate, x, low, high))
            lines.append([(x, high), (x, low)])
            labels.append(Label(x, y, candidate, candidate))
        else:
            y = frame.y.start - 12
            labels.append(Label(x, y, f"{candidate} ↓ {percent(accuracy.value)}", candidate))
        body.append(mark(candidate, (x, y)))
    if chosen is not None and places:
        x, y = places[chosen]
        body.append(f'<circle id="moving" class="moving" cx="{x}" cy="{y}" r="8"/>')
    body.append(place_labels([*labels, *notes], frame, lines=lines))
    facts = "; ".join(f"{e.candidate}: {e.accuracy} at {format_usd(e.cost_usd_per_1k)}" for e in evaluations)
    facts += f"; {CEILING_LABEL} {percent(agreement.agreement.value)}" if agreement else ""
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


def spending_chart(paths: Sequence[PathCost], large: PathCost, *, requests_per_month: int) -> Markup:
    """Draw total USD by requests on log scales; thin lines are the large path at lower prices."""
    evens = [break_even(path, large, drop=drop) for path in paths for drop in PRICE_DROPS]
    reach = [*filter(None, evens), requests_per_month, requests_per_month * 12]
    x = log_scale([max(10.0, min(reach) / 10), max(reach)], margin=1.2)
    lowest = (large.total_usd(x.low, drop=PRICE_DROPS[-1]), *(path.total_usd(x.low) for path in paths))
    cheapest = max(min(lowest), large.total_usd(x.low) / 10_000)
    y = log_scale([cheapest, large.total_usd(x.high)], margin=1.5)
    frame = large_frame(x, y, left=70)
    requests = [x.low * (x.high / x.low) ** (i / 40) for i in range(41)]
    body, labels, facts = [], [], []
    for drop in PRICE_DROPS:
        places = [frame.at(n, large.total_usd(n, drop=drop)) for n in requests]
        body.append(line(places, "curve large" if drop == 0 else "curve large thin"))
        labels.append(Label(*places[-1], "large" if drop == 0 else f"{MINUS}{percent(drop, digits=0)}", "large"))
    for path in paths:
        places = [frame.at(n, path.total_usd(n)) for n in requests]
        body.append(line(places, f"curve {path.candidate}"))
        labels.append(Label(*places[-1], path.candidate, path.candidate))
        even = break_even(path, large)
        facts.append(f"{path.candidate}: {count(even)}")
        if even:
            body.append(circle(f"mark {path.candidate}", frame.at(even, large.total_usd(even)), 5))
    return chart(
        "spending",
        frame,
        [*body, stack_labels(labels, frame)],
        x=Axis("requests in all (log scale)", short),
        y=Axis("spent in all, training included (log scale)", usd_tick),
        title="Money spent by number of requests",
        description=f"Requests after which a path has paid its training back. {'; '.join(facts)}.",
    )
