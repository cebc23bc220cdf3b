"""Which candidate is fitted next within the time that is left, and what has to be left out.

Those that cost next to nothing come first. Then candidates are admitted in the order of what they promise, since a
larger encoder answers better than a smaller one and a fine-tuned one better than a frozen one, on nearly every measured
set (benchmarks/results/), and as long as they fit; fine-tunes with fewer epochs where all of them do not, but at least
half. Of the admitted ones the quickest is fitted first, and the plan is made anew after each: what one saved or lost
decides about the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from smallfirst.pipeline.ladder.times import TimeNeeded
from smallfirst.project.project import Project

QUICK_SHARE = 0.05
"""Candidates that take at most so much of the time left are admitted first."""
LEAST_EPOCHS = 0.5
"""Share of the epochs of its settings with which a fine-tune is still worth its time."""
SAFETY = 1.15
"""A candidate is taken to need so many times its estimate."""


REST_SHARE, REST_S = 0.05, 10.0
"""Kept for gate, certificate, Router and report: a share of the time, and seconds."""
REST_FACTOR = 2.0
"""They take at least so many times as long as it took to read and to check the rows."""


class TimeBudget:
    """Seconds that are left of `minutes` since the run began, on the clock of its progress."""

    def __init__(self, project: Project, *, began: float | None = None, used_minutes: float = 0.0) -> None:
        """The run `began` at this time of its progress's clock, None: now; `used_minutes` were used before."""
        assert project.file.minutes is not None
        self.total_s = 60 * project.file.minutes
        self._clock = project.progress.clock
        now = self._clock()
        before_s = now - (now if began is None else began)
        self._began = now - before_s - 60 * used_minutes
        self._kept_s = REST_SHARE * self.total_s + max(REST_S, REST_FACTOR * before_s)

    @property
    def used_s(self) -> float:
        """Seconds used so far."""
        return self._clock() - self._began

    @property
    def left_s(self) -> float:
        """Seconds left for candidates."""
        return self.total_s - self.used_s - self._kept_s

    def keep(self, seconds: float) -> None:
        """Keep so many more seconds for later, such as to measure what was fitted."""
        self._kept_s += seconds


class Rung(NamedTuple):
    """A candidate that may be fitted."""

    name: str
    promise: float
    """Candidates of a higher one are preferred."""
    time: TimeNeeded | None
    """None if it does not say: it is tried last, if any time is left."""
    required: bool = False
    """task.yaml needs it: it comes before all others."""


class Step(NamedTuple):
    """A candidate to fit."""

    name: str
    epochs: int
    """Epochs to train it for; 0 if it is not trained in epochs."""
    seconds: float
    """What it takes, measuring included, with a margin; 0 if unknown."""


def plan_steps(rungs: Sequence[Rung], left_s: float) -> list[Step]:
    """Return what to fit in `left_s` seconds, the quickest first; those that do not say how long they take last."""
    known = {rung.name: rung.time for rung in rungs if rung.time is not None}

    def preference(rung: Rung) -> tuple[bool, bool, float]:
        needed = known[rung.name]
        quick = SAFETY * needed.whole_s(needed.epochs) <= QUICK_SHARE * left_s
        return not rung.required, not quick, -rung.promise

    steps, rest_s = [], left_s
    for rung in sorted((rung for rung in rungs if rung.name in known), key=preference):
        epochs = epochs_in_time(known[rung.name], rest_s)
        if epochs is None:
            continue
        seconds = SAFETY * known[rung.name].whole_s(epochs)
        steps.append(Step(rung.name, epochs, seconds))
        rest_s -= seconds
    unknown = [Step(rung.name, 0, 0.0) for rung in rungs if rung.name not in known] if rest_s > 0 else []
    return [*sorted(steps, key=lambda step: step.seconds), *unknown]


def epochs_in_time(needed: TimeNeeded, left_s: float) -> int | None:
    """Return the most epochs of a candidate that fit into `left_s` seconds, 0 without epochs; None if too few do."""
    spare_s = left_s / SAFETY - needed.whole_s(0)
    if not needed.epochs:
        return 0 if spare_s >= 0 else None
    epochs = min(needed.epochs, math.floor(spare_s / needed.epoch_s))
    return epochs if epochs >= max(1, math.ceil(LEAST_EPOCHS * needed.epochs)) else None


def why_left_out(rung: Rung, left_s: float, budget_s: float) -> str:
    """Return how long a candidate that was left out takes, what was left, and which time would have included it."""
    if rung.time is None:
        return f"how long it takes is not known, and {in_minutes(left_s)} were left"
    needed_s = SAFETY * rung.time.whole_s(rung.time.epochs)
    wanted = math.ceil((budget_s + (needed_s - left_s) / (1 - REST_SHARE)) / 60)
    return f"about {in_minutes(needed_s)}, {in_minutes(left_s)} were left; --minutes {wanted} would include it"


def in_minutes(seconds: float) -> str:
    """Return a time as `9 minutes` or, below two minutes, `40 seconds`."""
    if seconds < 120:
        return f"{max(0, round(seconds))} seconds"
    return f"{round(seconds / 60)} minutes"
