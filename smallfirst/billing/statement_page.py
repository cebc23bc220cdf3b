"""The page of a statement, for people and for print."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from markupsafe import Markup

from smallfirst.billing.saved import is_small
from smallfirst.report.charts import Axis, Frame, Scale, chart, line, value_scale
from smallfirst.report.formats import usd_tick
from smallfirst.report.page import render_page

if TYPE_CHECKING:
    from smallfirst.billing.statement import Statement


def page_of(statement: Statement, public_key: str) -> bytes:
    """Return the page of a statement: it follows from what is signed and the key, byte for byte."""
    title = f"Statement of {statement.since:%B %Y}{' so far' if statement.so_far else ''}"
    values = {"title": title, "statement": statement, "chart": money_chart(statement), "public_key": public_key}
    return render_page("statement.html", **values).encode()


def money_chart(statement: Statement) -> Markup | None:
    """Draw what was spent by day, and what the large model alone would have billed; None where there is one day."""
    means = {one.task: one.large_usd.usd if one.large_usd else 0.0 for one in statement.figures.savings}
    spent, alone = defaultdict[int, float](float), defaultdict[int, float](float)
    for one in statement.figures.sums:
        day = int(one.period[8:])
        if one.kind in ("answer", "audit"):
            spent[day] += one.cost_usd
            answered = one.task and one.kind == "answer" and one.outcome == "answered"
            stayed = means.get(one.task, 0.0) * one.n if answered and is_small(one.stage) else None
            alone[day] += stayed if stayed is not None else (one.cost_usd - one.draft_usd) * (one.kind == "answer")
    if len(spent) < 2:
        return None
    frame = Frame.of(
        Axis(f"day of {statement.month}", Scale(1, max(spent)), lambda day: f"{day:g}"),
        Axis("USD a day", value_scale([0.0, *spent.values(), *alone.values()]), usd_tick),
        plot=460,
        height=300,
        legend=True,
    )
    body, labels = [], []
    for name, days, css in (("spent", spent, "routed"), ("large model alone", alone, "large")):
        places = [frame.at(day, days[day]) for day in range(min(spent), max(spent) + 1)]
        body.append(line(places, f"curve {css}"))
        labels.append((places[-1][1], css, name))
    return chart(
        "money",
        frame,
        [*body, frame.legend(labels)],
        title="Money by day",
        description=f"In all {sum(spent.values()):.2f} spent, {sum(alone.values()):.2f} with the large model alone.",
    )
