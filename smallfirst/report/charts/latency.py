"""Latency on each path; under load it includes waiting, so only paths that report a request's own time show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from smallfirst.evaluation.results import Evaluation
from smallfirst.report.charts.axes import Frame, Scale, document, log_scale, mark, text, whisker
from smallfirst.report.formats import ms

MIN_FOR_P99 = 100
MIN_FOR_HISTOGRAM = 20
ROW_HEIGHT = 46
N_BINS = 54
HISTOGRAM_HEIGHT = 18.0


class LatencyRow(NamedTuple):
    """Latency of one path."""

    evaluation: Evaluation
    samples_ms: tuple[float, ...]
    """Of single requests; empty if only the percentiles are known."""
    source: str

    @property
    def p99_ms(self) -> float | None:
        """99th percentile; None with fewer than 100 requests."""
        return float(np.quantile(self.samples_ms, 0.99)) if len(self.samples_ms) >= MIN_FOR_P99 else None


def latency_row(evaluation: Evaluation) -> LatencyRow:
    """Return the latency of one path."""
    if samples := evaluation.probes_ms:
        return LatencyRow(evaluation, samples, f"{len(samples):,} requests asked one at a time")
    reported = tuple(row.latency_ms for row in evaluation.rows if row.latency_ms > 0)
    if reported and evaluation.requests_per_s is None:
        return LatencyRow(evaluation, reported, f"{len(reported):,} requests as reported by the path")
    return LatencyRow(evaluation, (), "a few requests asked one at a time")


def latency_chart(rows: Sequence[LatencyRow]) -> Markup:
    """Draw median to 95th percentile, one line for each path, with a histogram of single requests where known."""
    paths = [row.evaluation for row in rows]
    values = [*(x for path in paths for x in (path.p50_ms, path.p95_ms)), *(row.p99_ms or 0.0 for row in rows)]
    height = 70 + ROW_HEIGHT * len(rows)
    x_scale, y_scale = log_scale(values)._replace(start=84, end=410), Scale(0, len(rows))
    frame = Frame(540, height, x_scale, y_scale._replace(start=height - 44, end=26))
    body = []
    for value in frame.x.ticks():
        x = frame.x.at(value)
        body.append(f'<line class="grid" x1="{x}" y1="{frame.y.end}" x2="{x}" y2="{frame.y.start}"/>')
        body.append(text(x, frame.y.start + 18, ms(value), "tick", anchor="middle"))
    for place, (row, path) in enumerate(zip(rows, paths, strict=True)):
        y = frame.y.end + 34 + ROW_HEIGHT * place
        median, p95 = frame.x.at(path.p50_ms), frame.x.at(path.p95_ms)
        css = path.candidate
        body.append(_histogram(row, frame, y - 7))
        body.append(text(74, y + 4, css, f"label {css}", anchor="end"))
        body.append(f'<line class="stretch {css}" x1="{median}" y1="{y}" x2="{p95}" y2="{y}"/>')
        body.append(mark(css, (median, y)))
        end = p95
        if row.p99_ms is not None:
            end = frame.x.at(row.p99_ms)
            body.append(whisker(css, end, y - 5, y + 5))
        body.append(text(max(p95, end) + 12, y + 4, f"{ms(path.p50_ms)} to {ms(path.p95_ms)}", "value"))
    title = "one request at a time, p50 to p95 (log scale)"
    body.append(text(410, frame.y.start + 36, title, "axis-title", anchor="end"))
    facts = "; ".join(f"{path.candidate}: {ms(path.p50_ms)} to {ms(path.p95_ms)}" for path in paths)
    return document(
        "latency", frame, body, title="Latency of each path", description=f"Median to 95th percentile. {facts}."
    )


def _histogram(row: LatencyRow, frame: Frame, floor: float) -> str:
    """Draw a small histogram over the same log scale; latencies beyond its ends count into the end bins."""
    if len(row.samples_ms) < MIN_FOR_HISTOGRAM:
        return ""
    edges = np.geomspace(frame.x.low, frame.x.high, N_BINS + 1)
    counts, _ = np.histogram(np.clip(row.samples_ms, edges[0], edges[-1]), bins=edges)
    width = (frame.x.end - frame.x.start) / N_BINS
    bars = []
    for place, n in enumerate(counts.tolist()):
        if n:
            height = round(max(1.0, HISTOGRAM_HEIGHT * n / int(counts.max())), 1)
            x = round(frame.x.start + place * width, 1)
            bars.append(f"M{x} {round(floor, 1)}v-{height}h{round(width - 0.6, 1)}v{height}z")
    return f'<path class="spread {row.evaluation.candidate}" d="{"".join(bars)}"/>'
