"""Charts about spending: money by number of requests, and the training run.

Where a line crosses the large path's, training is paid back.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from smallfirst.report.charts.axes import (
    Frame,
    Label,
    Scale,
    axes,
    document,
    line,
    log_scale,
    stack_labels,
    text,
    value_scale,
)
from smallfirst.report.data import TrainingSummary
from smallfirst.report.economics import PRICE_DROPS, PathCost, break_even_requests
from smallfirst.report.formats import MINUS, count, percent, short, usd_tick


def spending_chart(paths: Sequence[PathCost], large: PathCost, *, requests_per_month: int) -> Markup:
    """Total USD by requests, on log scales; thin lines are the large path at lower prices."""
    marks = _break_evens(paths, large)
    reach = [*marks, requests_per_month, requests_per_month * 12]
    x = log_scale([max(10.0, min(reach) / 10), max(reach)], 70, 470, room=1.2)
    grid = [x.low * (x.high / x.low) ** (i / 40) for i in range(41)]
    cheapest = max(large.total_usd(x.low, drop=PRICE_DROPS[-1]), 1e-4)
    y = log_scale([cheapest, large.total_usd(x.high)], 324, 42, room=1.5)
    frame = Frame(540, 380, x, y)
    body = [
        axes(
            frame,
            x_title="requests in all (log scale)",
            y_title="spent in all, training included (log scale)",
            x_text=short,
            y_text=usd_tick,
        )
    ]
    labels, evens = [], []
    for drop in PRICE_DROPS:
        css = "curve large" if drop == 0 else "curve large thin"
        places = [(x.at(n), y.at(large.total_usd(n, drop=drop))) for n in grid]
        body.append(line(places, css))
        words = "large" if drop == 0 else f"{MINUS}{percent(drop, digits=0)}"
        labels.append(Label(*places[-1], words, "large"))
    for path in paths:
        places = [(x.at(n), y.at(path.total_usd(n))) for n in grid]
        body.append(line(places, f"curve {path.candidate}"))
        labels.append(Label(*places[-1], path.candidate, path.candidate))
        even = break_even_requests(path.training_usd, path.cost_usd_per_1k, large.cost_usd_per_1k)
        evens.append(f"{path.candidate}: {count(even)}")
        if even:
            body.append(
                f'<circle class="mark {path.candidate}" cx="{x.at(even)}" cy="{y.at(large.total_usd(even))}" r="5"/>'
            )
    body.append(stack_labels(labels, frame))
    return document(
        "spending",
        frame,
        "".join(body),
        title="Money spent by number of requests",
        description=f"Requests after which a path has paid its training back. {'; '.join(evens)}.",
    )


def _break_evens(paths: Sequence[PathCost], large: PathCost) -> list[int]:
    """Every break-even the chart must have room for, at today's and at lower prices."""
    evens = (
        break_even_requests(path.training_usd, path.after_drop(drop), large.after_drop(drop))
        for path in paths
        for drop in PRICE_DROPS
    )
    return [even for even in evens if even]


def loss_chart(training: TrainingSummary, *, most: int = 200) -> Markup:
    """Training loss by step, thinned to at most `most` points."""
    every = max(1, len(training.loss_curve) // most)
    kept = training.loss_curve[::every]
    top = max(loss for _, loss in kept)
    frame = Frame(
        420,
        320,
        Scale(0.0, float(max(step for step, _ in kept) or 1), 58, 404),
        value_scale([0.0, top], 264, 42),
    )
    body = axes(frame, x_title="step", y_title="training loss", x_text=short, y_text=lambda v: f"{v:.3g}") + line(
        [(frame.x.at(step), frame.y.at(loss)) for step, loss in kept], "curve small"
    )
    return document(
        "loss",
        frame,
        body,
        title="Training loss by step",
        description=f"From {kept[0][1]:.3g} to {kept[-1][1]:.3g} in {kept[-1][0]:,} steps.",
    )


def validation_chart(training: TrainingSummary) -> Markup:
    """Mean score on validation rows by epoch."""
    shares = [share for _, share in training.validation_curve]
    epochs = [epoch for epoch, _ in training.validation_curve]
    frame = Frame(420, 320, Scale(0.0, max(epochs) * 1.04, 58, 404), value_scale(shares, 264, 42))
    places = [(frame.x.at(e), frame.y.at(s)) for e, s in training.validation_curve]
    body = [
        axes(
            frame,
            x_title="epoch",
            y_title="validation score",
            x_text=lambda v: f"{v:g}",
            y_text=lambda v: percent(v, digits=1),
        ),
        line(places, "curve small"),
        *(f'<circle class="mark small" cx="{px}" cy="{py}" r="4"/>' for px, py in places),
    ]
    last_x, last_y = places[-1]
    falls = len(shares) > 1 and shares[-1] < shares[-2]
    body.append(text(last_x - 6, last_y + (20 if falls else -9), f"{shares[-1]:.3f}", "label small", anchor="end"))
    facts = "; ".join(f"{e:g}: {s:.3f}" for e, s in training.validation_curve)
    return document(
        "validation",
        frame,
        "".join(body),
        title="Validation score by epoch",
        description=f"{facts}.",
    )
