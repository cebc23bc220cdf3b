"""Where latencies come from."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smallfirst.report.charts.latency import latency_chart, latency_row
from smallfirst.report.data import ReportData


def test_latency_says_how_it_was_measured(make_report: Callable[..., ReportData]) -> None:
    small, large, routed = make_report().evaluations
    probed = latency_row(small.model_copy(update={"probes_ms": tuple(float(x) for x in range(1, 101))}))
    assert probed.source == "100 requests asked one at a time"
    assert probed.p99_ms == pytest.approx(99.01)
    recorded = latency_row(large)
    assert (recorded.source, recorded.p99_ms) == ("8 requests as reported by the path", None)
    unknown = latency_row(routed)
    assert (unknown.source, unknown.samples_ms) == ("a few requests asked one at a time", ())
    assert str(latency_chart([probed, recorded, unknown])).count('class="spread') == 1  # eight rows are too few
