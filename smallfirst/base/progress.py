"""Progress of long work: one line per step and, on a terminal, a bar with rate and time left.

Everything goes to standard error. In a pipe there are only lines, at least one a minute while a step is under way.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


class ProgressCallback(Protocol):
    """A function to call as work proceeds. What the first call says was done before: rates leave it out."""

    def __call__(self, done: float, of: float, words: str = "") -> None:
        """`done` of `of` units are done; `words` replace the rate."""


def no_progress(done: float, of: float, words: str = "") -> None:
    """Show nothing."""


class Activity:
    """A step under way: how much of it is done, how fast, and how long the rest takes at this rate."""

    def __init__(self, label: str, total: float | None, unit: str, clock: Callable[[], float]) -> None:
        self.label, self.total, self.unit, self.clock = label, total, unit, clock
        self.began = clock()
        self.done, self.words = 0.0, ""
        self._first: tuple[float, float] | None = None
        self._last = self.began

    def report(self, done: float, of: float, words: str = "") -> None:
        """Note that `done` of `of` units are done."""
        self.done, self.total, self.words, self._last = done, of, words, self.clock()
        self._first = self._first or (self._last, done)

    @property
    def rate(self) -> float:
        """Units per second since the first report; 0 while unknown."""
        at, done = self._first or (self._last, self.done)
        return (self.done - done) / (self._last - at) if self._last > at else 0.0

    @property
    def pace(self) -> str:
        """Return the rate, or the words of the last report, and the time left."""
        rate = self.words or (f"{self.rate:.1f}/s" if self.rate >= 0.1 else f"{60 * self.rate:.1f}/min")
        if not self.rate or self.total is None:
            return self.words
        left = (self.total - self.done) / self.rate - (self.clock() - self._last)
        return f"{rate}, {format_duration(timedelta(seconds=left))} left"

    def __str__(self) -> str:
        so_far = f"{format_duration(timedelta(seconds=self.clock() - self.began))} so far"
        if self.total is None:
            return f"{self.label}: {so_far}"
        amount = f"{self.done:,.0f} %" if self.unit == "%" else f"{self.done:,.0f} of {self.total:,.0f} {self.unit}"
        return f"{self.label}: {amount}, {self.pace or so_far}"


class Progress:
    """Log lines and progress bars on standard error; `quiet` writes nothing.

    In a pipe the step under way is told once no line was written for `line_every_s` seconds.
    """

    def __init__(
        self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic, line_every_s: float = 60.0
    ) -> None:
        self.quiet, self.clock, self.line_every_s = quiet, clock, line_every_s
        self.on_terminal = sys.stderr.isatty() and not quiet
        self.began = self._last_line = clock()
        self._activities: list[Activity] = []
        self._bars: Bars | None = None
        disable_tqdm_in_pipes()

    def log(self, text: str) -> None:
        """Write one line with the minutes and seconds since the start."""
        if not self.quiet:
            self._last_line = self.clock()
            minutes, seconds = divmod(int(self._last_line - self.began), 60)
            print(f"[{minutes:02d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Show a step of unknown length while it lasts."""
        with self.bar(label, None):
            yield

    @contextmanager
    def bar(self, label: str, total: float | None, unit: str = "rows") -> Iterator[ProgressCallback]:
        """Yield a function to call with (done, total, words instead of the rate). Bars may be nested."""
        activity = Activity(label, total, unit, self.clock)
        self._activities.append(activity)
        try:
            with self._drawn(activity) if self.on_terminal else self._told(activity) as update:
                yield update
        finally:
            self._activities.remove(activity)

    def tell(self) -> None:
        """Write a line on the innermost step if none was written for `line_every_s` seconds."""
        with suppress(IndexError):  # the step may end meanwhile
            if self.clock() - self._last_line >= self.line_every_s:
                self.log(str(self._activities[-1]))

    @contextmanager
    def _told(self, activity: Activity) -> Iterator[ProgressCallback]:
        """Tell the step under way from a thread; the outermost step has it."""
        if self.quiet or len(self._activities) > 1:
            yield activity.report
            return
        ended = threading.Event()

        def tell_until_ended() -> None:
            while not ended.wait(min(1.0, self.line_every_s)):
                self.tell()

        self._last_line = self.clock()
        threading.Thread(target=tell_until_ended, name="smallfirst-progress", daemon=True).start()
        try:
            yield activity.report
        finally:
            ended.set()

    @contextmanager
    def _drawn(self, activity: Activity) -> Iterator[ProgressCallback]:
        outermost = self._bars is None
        bars = self._bars = self._bars or _bars()
        if outermost:
            bars.start()
        shown = bars.add_task(activity.label, total=activity.total, unit=activity.unit, words="")

        def update(done: float, of: float, words: str = "") -> None:
            activity.report(done, of, words)
            amount = f"{done:,.0f}/{of:,.0f} {activity.unit}"
            bars.update(shown, completed=done, total=of, words=f"{amount} {activity.pace}")

        try:
            yield update
        finally:
            bars.remove_task(shown)
            if outermost:
                bars.stop()
                self._bars = None


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("        {task.description}"),
        BarColumn(bar_width=28),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    return Bars(*columns, console=Console(stderr=True), transient=True)


def format_duration(duration: timedelta) -> str:
    """Return a duration as `1d 2h`, `1h 5m`, `3m 20s` or `12s`; a negative one as `0s`."""
    seconds = max(0, round(duration.total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"


def format_table(rows: Sequence[Sequence[str]], *, right: Container[int] = ()) -> list[str]:
    """Return one line for each row, in columns as wide as their widest cell; the first row is usually the heading.

    Columns whose numbers, from 0, are in `right` are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    columns = [f"{'>' if i in right else '<'}{width}" for i, width in enumerate(widths)]
    return ["  ".join(map(format, row, columns)).rstrip() for row in rows]


def one_line(text: str, most: int = 160) -> str:
    """Return the text on one line, of at most so many characters."""
    plain = " ".join(text.split())
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def disable_tqdm_in_pipes() -> None:
    """Keep libraries from drawing progress bars in a pipe.

    tqdm reads the variable when it is first imported, and PyTorch imports it: call this before.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
