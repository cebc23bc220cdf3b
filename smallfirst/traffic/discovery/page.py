"""The report of a discovery as one HTML file that loads nothing: what can move, what stays, and on what this rests."""

from __future__ import annotations

from pathlib import Path

from smallfirst.files import write_atomically
from smallfirst.report.page import render_page
from smallfirst.traffic.discovery.found import Discovery, FoundTask

_ORDER = {"moves": 0, "unclear": 1, "stays": 2}
_WORDS = {"moves": "can move", "unclear": "unclear", "stays": "stays"}


def save(found: Discovery, path: Path) -> Path:
    """Write the report to `path` and return the path."""
    return write_atomically(path, render(found).encode())


def render(found: Discovery) -> str:
    """Return the report as HTML."""
    tasks = sorted(found.tasks, key=lambda task: (_ORDER[task.verdict], -_weight(task, found)))
    return render_page(
        "discovery.html",
        found=found,
        tasks=tasks,
        weight={task.name: _weight(task, found) for task in tasks},
        heaviest=max((_weight(task, found) for task in tasks), default=1.0) or 1.0,
        headline=headline(found),
        words=_WORDS,
    )


def headline(found: Discovery) -> str:
    """Return in a sentence how much can move."""
    if not found.tasks:
        return "No recurring task was found in this traffic"
    what = "bill" if found.cost_usd else "requests"
    at = found.moving
    if at.high < 0.005:
        if any(task.verdict == "unclear" for task in found.tasks):
            return f"What of the {what} can move cannot be told yet"
        return f"Nothing of the {what} can be expected to move"
    return f"About {at.share:.0%} of the {what} can move: between {at.low:.0%} and {at.high:.0%}"


def _weight(task: FoundTask, found: Discovery) -> float:
    """Return the task's part of the bill, or of the requests if no price is known."""
    return (task.cost_usd or 0.0) if found.cost_usd else float(task.n_requests)
