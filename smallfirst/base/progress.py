"""Progress of long work on standard error: a line for each step, and how far the one under way is.

On a terminal that is drawn anew every second; in a pipe it is a line at least once a minute.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Protocol

_CLEAR = "\r\033[K"
"""Begins the line of a terminal anew."""


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
        self.done, self.words = 0.0, ""
        self.began = self._last = clock()
        self._first: tuple[float, float] | None = None

    def report(self, done: float, of: float, words: str = "") -> None:
        self.done, self.total, self.words, self._last = done, of, words, self.clock()
        self._first = self._first or (self._last, done)

    def __str__(self) -> str:
        """Return what is done with the rate since the first report and the time left, else the time so far."""
        so_far = f"{format_duration(timedelta(seconds=self.clock() - self.began))} so far"
        if self.total is None:
            return f"{self.label}: {so_far}"
        at, done = self._first or (self._last, self.done)
        rate = (self.done - done) / (self._last - at) if self._last > at else 0.0
        pace = self.words or so_far
        if rate:
            left = timedelta(seconds=(self.total - self.done) / rate - (self.clock() - self._last))
            words = self.words or (f"{rate:.1f}/s" if rate >= 0.1 else f"{60 * rate:.1f}/min")
            pace = f"{words}, {format_duration(left)} left"
        amount = f"{self.done:,.0f} %" if self.unit == "%" else f"{self.done:,.0f} of {self.total:,.0f} {self.unit}"
        return f"{self.label}: {amount}, {pace}"


class Progress:
    """Log lines, and the step under way once no line was written for `line_every_s` seconds; `quiet` writes nothing."""

    def __init__(
        self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic, line_every_s: float | None = None
    ) -> None:
        self.quiet, self.clock = quiet, clock
        self.on_terminal = sys.stderr.isatty() and not quiet
        self.line_every_s = line_every_s if line_every_s is not None else 1.0 if self.on_terminal else 60.0
        self.began = self._last_line = clock()
        self._activities: list[Activity] = []
        disable_tqdm_in_pipes()

    def log(self, text: str) -> None:
        """Write one line with the minutes and seconds since the start."""
        if not self.quiet:
            self._last_line = self.clock()
            minutes, seconds = divmod(int(self._last_line - self.began), 60)
            clear = _CLEAR if self.on_terminal else ""
            print(f"{clear}[{minutes:02d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Show a step of unknown length while it lasts."""
        with self.bar(label, None):
            yield

    @contextmanager
    def bar(self, label: str, total: float | None, unit: str = "rows") -> Iterator[ProgressCallback]:
        """Yield a function to call with (done, total, words instead of the rate). Steps may be nested."""
        activity = Activity(label, total, unit, self.clock)
        self._activities.append(activity)
        try:
            with self._told():
                yield activity.report
        finally:
            self._activities.remove(activity)

    def tell(self) -> None:
        """Show the innermost step if no line was written for `line_every_s` seconds."""
        with suppress(IndexError):  # the step may end meanwhile
            if self.clock() - self._last_line < self.line_every_s:
                return
            if self.on_terminal:
                print(f"{_CLEAR}        {self._activities[-1]}", end="", file=sys.stderr, flush=True)
            else:
                self.log(str(self._activities[-1]))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell the step under way from a thread; the outermost step has it."""
        if self.quiet or len(self._activities) > 1:
            yield
            return
        ended = threading.Event()

        def tell_until_ended() -> None:
            while not ended.wait(min(1.0, self.line_every_s)):
                self.tell()

        self._last_line = self.clock()
        thread = threading.Thread(target=tell_until_ended, name="smallfirst-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            if self.on_terminal:
                thread.join()
                print(_CLEAR, end="", file=sys.stderr, flush=True)


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
