"""Charts of training: loss by step, score by epoch, and accuracy by number of training rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from smallfirst.evaluation.learning_curve import LearningPoint
from smallfirst.report.charts.axes import (
    Axis,
    Label,
    Scale,
    chart,
    circle,
    large_frame,
    line,
    log_scale,
    mark,
    small_frame,
    stack_labels,
    text,
    value_scale,
    whisker,
)
from smallfirst.report.data import TrainingSummary
from smallfirst.report.formats import axis_percent, percent, short

MAX_LOSS_POINTS = 200


def loss_chart(training: TrainingSummary) -> Markup:
    """Draw training loss by step, thinned to about 200 points."""
    points = training.loss_curve[:: max(1, len(training.loss_curve) // MAX_LOSS_POINTS)]
    steps, losses = zip(*points, strict=True)
    frame = small_frame(Scale(0.0, float(max(steps) or 1)), value_scale([0.0, max(losses)]))
    return chart(
        "loss",
        frame,
        [line([frame.at(*point) for point in points], "curve small")],
        x=Axis("step", short),
        y=Axis("training loss", "{:.3g}".format),
        title="Training loss by step",
        description=f"From {losses[0]:.3g} to {losses[-1]:.3g} in {steps[-1]:,} steps.",
    )


def validation_chart(training: TrainingSummary) -> Markup:
    """Draw the mean score on validation rows by epoch."""
    epochs, scores = zip(*training.validation_curve, strict=True)
    frame = small_frame(Scale(0.0, max(epochs) * 1.04), value_scale(scores))
    places = [frame.at(*point) for point in training.validation_curve]
    falls = len(scores) > 1 and scores[-1] < scores[-2]
    last_x, last_y = places[-1]
    facts = "; ".join(f"{epoch:g}: {score:.3f}" for epoch, score in training.validation_curve)
    return chart(
        "validation",
        frame,
        [
            line(places, "curve small"),
            *(circle("mark small", place, 4) for place in places),
            text(last_x - 6, last_y + (20 if falls else -9), f"{scores[-1]:.3f}", "label small", anchor="end"),
        ],
        x=Axis("epoch", "{:g}".format),
        y=Axis("validation score", percent),
        title="Validation score by epoch",
        description=f"{facts}.",
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
        labels.append(Label(places[-1][0] + 4, places[-1][1], candidate, candidate))
    facts = "; ".join(f"{p.candidate} with {p.n_rows:,} rows: {p.accuracy}" for p in points)
    return chart(
        "learning",
        frame,
        [*body, stack_labels(labels, frame)],
        x=Axis("training rows (log scale)", short),
        y=Axis("accuracy on test rows", axis_percent(1.0)),
        title="Accuracy by number of training rows",
        description=f"{facts}.",
    )
