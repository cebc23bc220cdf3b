"""The chart of the frontier: for each promise the share of requests that can stay small."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from smallfirst.report.charts.axes import (
    Axis,
    Label,
    chart,
    circle,
    large_frame,
    line,
    linear_scale,
    place_labels,
    text,
    whisker,
)
from smallfirst.report.formats import axis_percent, percent
from smallfirst.routing.certificate.frontier import FrontierPoint
from smallfirst.stats.intervals import Estimate


def frontier_chart(points: Sequence[FrontierPoint], *, promised: tuple[float, Estimate] | None) -> Markup:
    """Draw the share that can stay small by the limit on errors, with intervals; the promise that was made is ringed.

    `promised`: the issued certificate's limit in (0, 1) and the share that it keeps; None if there is none. The curve
    joins the limits that the rows show; where a limit cannot be shown, a cross on the axis says so.
    """
    highest = max(points[-1].max_error, promised[0] if promised else 0.0)
    frame = large_frame(linear_scale(0.0, highest * 1.04), linear_scale(0.0, 1.0), height=340, right=520)
    shown = [point for point in points if point.issued]
    curve = [frame.at(point.max_error, point.share.value) for point in shown]
    body, labels = [line(curve, "curve routed")] if len(curve) > 1 else [], []
    for point, (x, y) in zip(shown, curve, strict=True):
        body.append(whisker("routed", x, frame.y.at(point.share.low), frame.y.at(point.share.high)))
        body.append(circle("mark routed", (x, y), 4))
    if promised is not None:
        x, y = frame.at(promised[0], promised[1].value)
        body.append(circle("moving", (x, y), 9))
        labels.append(Label(x, y, f"promised: {percent(promised[1].value, digits=0)} stays small", "routed"))
    for point in points:
        if not point.issued:
            body.append(text(*frame.at(point.max_error, 0.0), "✕", "tick", anchor="middle"))
    body.append(place_labels(labels, frame, lines=[curve]))
    said = "None is shown."
    if shown:
        best = max(shown, key=lambda point: point.share.value)
        said = f"At most {percent(best.max_error)} wrong: {percent(best.share.value)} small."
    return chart(
        "frontier",
        frame,
        body,
        x=Axis("promise: at most so many kept answers are wrong", axis_percent(frame.x.high)),
        y=Axis("share of requests that stays small", axis_percent(1.0)),
        title="How much can stay small, by promise",
        description=said,
    )
