"""Progress of long work: one line per step and, on a terminal, a bar with rate and time left.

Everything goes to standard error; in a pipe there are only the lines, so output can be read by a program.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol


class ProgressCallback(Protocol):
    """A function to call as work proceeds."""

    def __call__(self, done: int, of: int, words: str = "") -> None:
        """`done` of `of` units are done; `words` replace the rate at the end of the bar."""


class Progress:
    """Log lines and progress bars on standard error; `quiet` writes nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.on_terminal = sys.stderr.isatty() and not quiet
        self.began = time.monotonic()
        disable_tqdm_in_pipes()

    def log(self, text: str) -> None:
        """Write one line with the minutes and seconds since the start."""
        if not self.quiet:
            minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
            print(f"[{minutes:02d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "rows") -> Iterator[ProgressCallback]:
        """Yield a function to call with (done, total, text at the end); it draws a bar on a terminal."""
        if not self.on_terminal:
            yield _ignore
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("        {task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]} {task.fields[words]}"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(label, total=total, unit=unit, words="")
            began = time.monotonic()

            def update(done: int, of: int, words: str = "") -> None:
                rate = done / max(1e-6, time.monotonic() - began)
                bars.update(task, completed=done, total=of, words=words or f"{rate:.1f}/s")

            yield update


def format_duration(duration: timedelta) -> str:
    """Return a duration as `1d 2h`, `1h 5m`, `3m 20s` or `12s`; a negative one as `0s`."""
    seconds = max(0, round(duration.total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line for each row, in columns as wide as their widest cell; the first row is usually the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def disable_tqdm_in_pipes() -> None:
    """Keep libraries from drawing progress bars in a pipe.

    tqdm reads the variable when it is first imported, and PyTorch imports it: call this before.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def _ignore(done: int, of: int, words: str = "") -> None:
    """Nothing to draw on."""
