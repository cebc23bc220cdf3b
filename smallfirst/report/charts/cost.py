"""The chart of spending: where a line crosses the large path's, training is paid back."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from smallfirst.report.charts.axes import Axis, Label, chart, circle, large_frame, line, log_scale, stack_labels
from smallfirst.report.economics import PRICE_DROPS, PathCost, break_even
from smallfirst.report.formats import MINUS, count, percent, short, usd_tick


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
