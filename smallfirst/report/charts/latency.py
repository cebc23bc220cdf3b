"""How long one request takes on each path: median, 95th and 99th percentile, and how they are spread.

Latencies of rows asked all at once include waiting for each other, so they are used only for paths that report a
request's own time (endpoints, recordings); the others are known from their probes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.report.charts.axes import Frame, Scale, document, log_scale, text
from smallfirst.report.charts.plots import mark
from smallfirst.report.data import ReportData
from smallfirst.report.formats import ms

FEWEST_FOR_P99 = 100
ROW_HEIGHT = 46


class LatencyRow(Record):
    """One path's latency."""

    candidate: str
    """Which path."""
    p50_ms: float
    """Median."""
    p95_ms: float
    """95th percentile."""
    p99_ms: float | None
    """99th percentile; None with fewer than 100 requests."""
    requests_per_s: float | None
    """With all rows in flight at once; None for recorded answers."""
    how: str
    """Where the figures come from."""
    samples_ms: tuple[float, ...]
    """Latency of single requests; empty if only the percentiles are known."""


def latency_rows(data: ReportData) -> tuple[LatencyRow, ...]:
    """One row a path, in the order of the evaluations."""
    return tuple(_row(evaluation, data.probes_ms.get(evaluation.candidate, ())) for evaluation in data.evaluations)


def _row(evaluation: Evaluation, probes_ms: Sequence[float]) -> LatencyRow:
    samples, how = tuple(probes_ms), f"{len(probes_ms):,} requests asked one at a time"
    if not samples and evaluation.requests_per_s is None:
        samples = tuple(row.latency_ms for row in evaluation.rows if row.latency_ms > 0)
        how = f"{len(samples):,} requests as reported by the path"
    if not samples:
        how = "a few requests asked one at a time"
    p99 = float(np.quantile(samples, 0.99)) if len(samples) >= FEWEST_FOR_P99 else None
    return LatencyRow(
        candidate=evaluation.candidate,
        p50_ms=evaluation.p50_ms,
        p95_ms=evaluation.p95_ms,
        p99_ms=p99,
        requests_per_s=evaluation.requests_per_s,
        how=how,
        samples_ms=samples,
    )


def latency_chart(rows: Sequence[LatencyRow]) -> Markup:
    """Median to 95th percentile, one line a path, with the spread of single requests above it where it is known."""
    values = [x for row in rows for x in (row.p50_ms, row.p95_ms, row.p99_ms or row.p95_ms)]
    height = 70 + ROW_HEIGHT * len(rows)
    frame = Frame(540, height, log_scale(values, 84, 410), Scale(0, len(rows), height - 44, 26))
    body = []
    for value in frame.x.ticks():
        x = frame.x.at(value)
        body.append(f'<line class="grid" x1="{x}" y1="{frame.y.end}" x2="{x}" y2="{frame.y.start}"/>')
        body.append(text(x, frame.y.start + 18, ms(value), "tick", anchor="middle"))
    for place, row in enumerate(rows):
        y = frame.y.end + 34 + ROW_HEIGHT * place
        middle, late = frame.x.at(row.p50_ms), frame.x.at(row.p95_ms)
        css = row.candidate
        body.append(_spread(row, frame, y - 7))
        body.append(text(74, y + 4, css, f"label {css}", anchor="end"))
        body.append(f'<line class="stretch {css}" x1="{middle}" y1="{y}" x2="{late}" y2="{y}"/>')
        body.append(mark(css, middle, y))
        end = late
        if row.p99_ms is not None:
            end = frame.x.at(row.p99_ms)
            body.append(f'<line class="whisker {css}" x1="{end}" y1="{y - 5}" x2="{end}" y2="{y + 5}"/>')
        body.append(text(max(late, end) + 12, y + 4, f"{ms(row.p50_ms)} to {ms(row.p95_ms)}", "value"))
    title = "one request at a time, p50 to p95 (log scale)"
    body.append(text(410, frame.y.start + 36, title, "axis-title", anchor="end"))
    facts = "; ".join(f"{row.candidate}: {ms(row.p50_ms)} to {ms(row.p95_ms)}" for row in rows)
    return document(
        "latency",
        frame,
        "".join(body),
        title="Latency of each path",
        description=f"Median to 95th percentile. {facts}.",
    )


def _spread(row: LatencyRow, frame: Frame, floor: float, *, tallest: float = 18.0, bins: int = 54) -> str:
    """A small histogram over the same log scale; those beyond its ends count into the end bins."""
    if len(row.samples_ms) < 20:
        return ""
    edges = np.geomspace(frame.x.low, frame.x.high, bins + 1)
    counts, _ = np.histogram(np.clip(row.samples_ms, edges[0], edges[-1]), bins=edges)
    width = (frame.x.end - frame.x.start) / bins
    bars = []
    for place, n in enumerate(counts.tolist()):
        if n:
            tall = round(max(1.0, tallest * n / int(counts.max())), 1)
            x = round(frame.x.start + place * width, 1)
            bars.append(f"M{x} {round(floor, 1)}v-{tall}h{round(width - 0.6, 1)}v{tall}z")
    return f'<path class="spread {row.candidate}" d="{"".join(bars)}"/>'
