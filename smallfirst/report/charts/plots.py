"""The report's charts: pure functions from figures to SVG, colours left to the style sheet.

Points are told apart by shape and by a label beside them as well as by colour, so no legend is
needed and nothing is lost to colour blindness or a black-and-white printer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from smallfirst.evaluation.results import Evaluation
from smallfirst.evaluation.risk_coverage import RiskCoveragePoint
from smallfirst.report.charts.axes import (
    Frame,
    Label,
    Scale,
    axes,
    band,
    document,
    line,
    log_scale,
    place_labels,
    text,
    value_scale,
)
from smallfirst.report.findings import Ceiling
from smallfirst.report.formats import percent, usd, usd_tick
from smallfirst.report.measures import Reliability
from smallfirst.routing.certificate.certificate import ThresholdPoint
from smallfirst.stats.intervals import Estimate

TRIANGLES = ("words", "encoder", "tuned", "base")
FAR_BELOW = 0.25


def quality_frame(
    evaluations: Sequence[Evaluation], curve: Sequence[ThresholdPoint], ceiling: Ceiling | None = None
) -> Frame:
    """The frame of the quality-against-cost chart, shared with the slider that moves its point."""
    shown = in_view(evaluations)
    costs = [e.cost_usd_per_1k for e in evaluations] + [p.routed_cost_usd_per_1k for p in curve]
    shares = [x for e in shown for x in (e.accuracy.low, e.accuracy.high)]
    shares += [p.routed_accuracy for p in curve] + [share for share, _ in _ceilings(ceiling)]
    return Frame(540, 380, log_scale(costs, 62, 524, room=1.6), value_scale(shares, 324, 42))


def in_view(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Those within 25 points of the best; a far worse one would flatten the chart."""
    best = max(e.accuracy.value for e in evaluations)
    return tuple(e for e in evaluations if e.accuracy.value >= best - FAR_BELOW)


def quality_cost_chart(
    evaluations: Sequence[Evaluation],
    curve: Sequence[ThresholdPoint],
    *,
    chosen: int | None,
    ceiling: Ceiling | None = None,
    name: str = "quality-cost",
) -> Markup:
    """Accuracy against cost of every path, the routed curve and a ring at its place `chosen`, the ceiling as a line.

    A page with two of them gives each its own `name`.
    """
    frame, shown = quality_frame(evaluations, curve, ceiling), in_view(evaluations)
    body = [
        axes(
            frame,
            x_title="cost per 1,000 requests (log scale)",
            y_title="right answers",
            x_text=usd_tick,
            y_text=lambda v: percent(v, digits=_digits(frame.y)),
        )
    ]
    for share, words in _ceilings(ceiling):
        y = frame.y.at(share)
        body.append(line([(frame.x.start, y), (frame.x.end, y)], "reference ceiling"))
        body.append(text(frame.x.start + 6, y - 5, f"{words} {percent(share)}", "note"))
    places = [(frame.x.at(p.routed_cost_usd_per_1k), frame.y.at(p.routed_accuracy)) for p in curve]
    if places:
        body.append(line(places, "curve routed"))
    labels, whiskers = [], []
    for evaluation in evaluations:
        x, y = frame.x.at(evaluation.cost_usd_per_1k), frame.y.at(evaluation.accuracy.value)
        if evaluation not in shown:
            words = f"{evaluation.candidate} ↓ {percent(evaluation.accuracy.value)}"
            labels.append(Label(x, frame.y.start - 12, words, evaluation.candidate))
            body.append(mark(evaluation.candidate, x, frame.y.start - 12))
            continue
        low, high = frame.y.at(evaluation.accuracy.low), frame.y.at(evaluation.accuracy.high)
        body.append(f'<line class="whisker {evaluation.candidate}" x1="{x}" y1="{low}" x2="{x}" y2="{high}"/>')
        whiskers += [(x, high), (x, (high + y) / 2), (x, (low + y) / 2), (x, low)]
        body.append(mark(evaluation.candidate, x, y))
        labels.append(Label(x, y, evaluation.candidate, evaluation.candidate))
    if chosen is not None and places:
        x, y = places[chosen]
        body.append(f'<circle id="moving" class="moving" cx="{x}" cy="{y}" r="8"/>')
    taken = [*whiskers, *places[:: max(1, len(places) // 24)]]
    for share, words in _ceilings(ceiling):
        taken += [(frame.x.start + 6 + 14.0 * i, frame.y.at(share) - 9) for i in range(len(words) // 2 + 4)]
    body.append(place_labels(labels, frame, taken=taken))
    facts = "; ".join(f"{e.candidate}: {e.accuracy} at {usd(e.cost_usd_per_1k)}" for e in evaluations)
    facts += "".join(f"; {words}: {percent(share)}" for share, words in _ceilings(ceiling))
    return document(
        name,
        frame,
        "".join(body),
        title="Accuracy against cost",
        description=f"Accuracy with 95 % interval and cost per 1,000 requests. {facts}.",
    )


def _ceilings(ceiling: Ceiling | None) -> list[tuple[float, str]]:
    if ceiling is None:
        return []
    return [(ceiling.itself.value, "large agrees with itself:")]


def mark(candidate: str, x: float, y: float) -> str:
    """A point: circle for small, square for large, diamond for routed, triangle for the rest."""
    css = f'class="mark {candidate}"'
    if candidate == "large":
        return f'<rect {css} x="{round(x - 5.5, 1)}" y="{round(y - 5.5, 1)}" width="11" height="11"/>'
    if candidate == "routed":
        return f'<path {css} d="M{x} {round(y - 7.5, 1)}l7.5 7.5l-7.5 7.5l-7.5 -7.5z"/>'
    if candidate in TRIANGLES:
        return f'<path {css} d="M{x} {round(y - 7, 1)}l6.5 12h-13z"/>'
    return f'<circle {css} cx="{x}" cy="{y}" r="6"/>'


def reliability_chart(reliability: Reliability) -> Markup:
    """Accuracy against confidence in equal-count bins; the diagonal is perfect calibration."""
    shares = [b.confidence for b in reliability.bins]
    shares += [x for b in reliability.bins for x in (b.accuracy.low, b.accuracy.high)]
    scale = value_scale([*shares, 1.0], 0, 1)
    frame = _small(scale, scale)
    low, high = scale.low, scale.high
    body = [
        axes(frame, x_title="confidence", y_title="accuracy", x_text=_whole, y_text=_whole),
        line(
            [(frame.x.at(v), frame.y.at(v)) for v in (low, high)],
            "reference",
        ),
        line(
            [(frame.x.at(b.confidence), frame.y.at(b.accuracy.value)) for b in reliability.bins],
            "curve small",
        ),
    ]
    for one in reliability.bins:
        x = frame.x.at(one.confidence)
        body.append(
            f'<line class="whisker small" x1="{x}" y1="{frame.y.at(one.accuracy.low)}" '
            f'x2="{x}" y2="{frame.y.at(one.accuracy.high)}"/>'
            f'<circle class="mark small" cx="{x}" cy="{frame.y.at(one.accuracy.value)}" r="4"/>'
        )
    body.append(_on_diagonal("as sure as right", frame, reliability))
    facts = "; ".join(f"{b.confidence:.2f}: {b.accuracy}" for b in reliability.bins)
    return document(
        "reliability",
        frame,
        "".join(body),
        title="Reliability diagram",
        description=f"Accuracy by mean confidence in {len(reliability.bins)} bins. {facts}.",
    )


def reliability_sparkline(reliability: Reliability) -> Markup:
    """The same without titles, from 0 to 1, small enough for a table cell; the figures stand beside it."""
    scale = Scale(0.0, 1.0, 0, 1)
    x, y = scale._replace(start=6, end=104), scale._replace(start=64, end=6)
    body = ['<rect class="box" x="6" y="6" width="98" height="58"/>', line([(6, 64), (104, 6)], "reference")]
    for one in reliability.bins:
        at, share = x.at(one.confidence), one.accuracy
        body.append(f'<line class="whisker small" x1="{at}" y1="{y.at(share.low)}" x2="{at}" y2="{y.at(share.high)}"/>')
        body.append(f'<circle class="mark small" cx="{at}" cy="{y.at(share.value)}" r="3.4"/>')
    return Markup(f'<svg class="spark" viewBox="0 0 110 70" aria-hidden="true">{"".join(body)}</svg>')


def _on_diagonal(words: str, frame: Frame, reliability: Reliability) -> str:
    """The words just below the diagonal, where the bins leave most room."""
    bins = [(frame.x.at(b.confidence), frame.y.at(b.accuracy.value)) for b in reliability.bins]
    bins += [
        (ax + share * (bx - ax), ay + share * (by - ay))
        for (ax, ay), (bx, by) in pairwise(bins)
        for share in (0.2, 0.4, 0.6, 0.8)
    ]
    spots = []
    for part in (0.08, 0.25, 0.4, 0.55):
        x = frame.x.start + part * (frame.x.end - frame.x.start)
        y = frame.y.start + part * (frame.y.end - frame.y.start)
        room = min((x + 60 - bx) ** 2 + (y + 8 - by) ** 2 for bx, by in bins)
        spots.append((room, x, y))
    _, x, y = max(spots)
    return text(x + 12, y + 10, words, "note")


def risk_coverage_chart(
    risks: Sequence[RiskCoveragePoint], *, promised_error: float | None, kept: float | None
) -> Markup:
    """Error of kept answers by share kept, with interval, promised error and certified share."""
    top = max(p.error.high for p in risks if p.coverage >= 0.2 or p is risks[-1])
    y = value_scale([0.0, max(top, (promised_error or 0.0) * 1.2)], 0, 1)
    frame = _small(Scale(0.0, 1.0, 0, 1), y)
    upper = [(frame.x.at(p.coverage), frame.y.at(p.error.high)) for p in risks]
    lower = [(frame.x.at(p.coverage), frame.y.at(p.error.low)) for p in risks]
    body = [
        axes(
            frame,
            x_title="share of requests kept small",
            y_title="error of kept answers",
            x_text=_whole,
            y_text=lambda v: percent(v, digits=_digits(frame.y)),
        ),
        band(upper, lower),
        line([(frame.x.at(p.coverage), frame.y.at(p.error.value)) for p in risks], "curve small"),
    ]
    if promised_error is not None:
        height = frame.y.at(promised_error)
        body.append(line([(frame.x.start, height), (frame.x.end, height)], "reference"))
        words = f"promised: {percent(promised_error)}"
        body.append(text(frame.x.at(0.14), height - 6, words, "note"))
    if kept is not None:
        x = frame.x.at(kept)
        nearest = min(risks, key=lambda p: abs(p.coverage - kept))
        body.append(f'<circle class="moving" cx="{x}" cy="{frame.y.at(nearest.error.value)}" r="7"/>')
        # Beside the ring and away from where the curve rises.
        side, shift, drop = ("end", -14, 0) if kept > 0.5 else ("start", 12, 18)
        words = f"kept: {percent(kept)}"
        body.append(text(x + shift, frame.y.at(nearest.error.value) + 4 + drop, words, "label small", anchor=side))
    end = risks[-1]
    return document(
        "risk-coverage",
        frame,
        "".join(body),
        title="Error of kept answers by share kept",
        description=f"{end.error} when {percent(end.coverage)} is kept.",
    )


def interval_bar(estimate: Estimate, css: str) -> Markup:
    """A share from 0 to 1 as a point on a short line, with its interval, for a table cell."""
    low, at, high = (round(2 + 76 * x, 1) for x in (estimate.low, estimate.value, estimate.high))
    return Markup(
        '<svg class="bar" viewBox="0 0 80 12" aria-hidden="true">'
        '<line class="grid" x1="2" y1="6" x2="78" y2="6"/>'
        f'<line class="stretch {css}" x1="{low}" y1="6" x2="{high}" y2="6"/>'
        f'<circle class="mark {css}" cx="{at}" cy="6" r="3.5"/></svg>'
    )


def _small(x: Scale, y: Scale) -> Frame:
    """A frame of the small chart size with these value ranges."""
    return Frame(420, 320, x._replace(start=58, end=404), y._replace(start=264, end=42))


def _digits(scale: Scale) -> int:
    return 0 if scale.high - scale.low >= 0.045 else 1


def _whole(share: float) -> str:
    return percent(share, digits=0)
