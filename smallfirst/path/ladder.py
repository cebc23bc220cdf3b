"""Fit candidates within the time of a run: the most promising ones that end in it, quickest first.

Those that cost next to nothing come first. Then candidates are admitted in the order of what they promise, since a
larger encoder answers better than a smaller one and a fine-tuned one better than a frozen one, on nearly every measured
set (benchmarks/results/), and as long as they fit; fine-tunes with fewer epochs where all of them do not, but at least
half. Of the admitted ones the quickest is fitted first, and the plan is made anew after each: what one saved or lost
decides about the others.

A sentence encoder is timed on a few of the task's own texts, read and trained on. A language model's time is that of
an earlier run, else of its own first steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from smallfirst.base.errors import ConfigError, SmallfirstError, WeightsNotFound
from smallfirst.base.paths import state_folder
from smallfirst.data.dataset import Dataset
from smallfirst.models.catalog import find_weights
from smallfirst.path.check import find_local_base, tokenize_rows, validation_work
from smallfirst.path.project.candidates import Candidate, fits_in_folds, get_candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import RULES
from smallfirst.training.config import TrainConfig, parse_duration
from smallfirst.training.estimates import (
    SAMPLE_ROWS,
    ValidationWork,
    count_epochs,
    encoder_pace,
    first_epoch,
    training_pace,
)
from smallfirst.training.recipe import TokenizedRow

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
COMBINING = 1.5
"""What combines others takes so many times as long as it takes to measure them: it asks them on all held-out rows, and
before that on selection rows to be fitted."""
REGRESSION_S = 1e-3
"""A row in a logistic regression on vectors: 8 s for 10,000 rows in 77 labels."""
OPTIMIZER_BYTES, MEMORY_BYTES_PER_S = 40, 20e9
"""Read and written for each trained weight in a step, and how fast."""
BEGIN_S = 5.0
"""To load, prepare and save a model that is fine-tuned."""


class TimeNeeded(NamedTuple):
    """Time that a candidate takes, in seconds."""

    begin_s: float
    """To fit it, but for its epochs."""
    epoch_s: float = 0.0
    """An epoch with its validation; 0 for one that is not trained in epochs."""
    epochs: int = 0
    """Epochs of its settings; 0 if it is not trained in epochs."""
    after_s: float = 0.0
    """To measure it once it is fitted, and to fit it on parts of the rows for the learning curve."""

    def fit_s(self, epochs: int) -> float:
        """Return the time to fit it in so many epochs."""
        return self.begin_s + self.epoch_s * epochs

    def whole_s(self, epochs: int) -> float:
        """Return the time to fit it in so many epochs and to measure it."""
        return self.fit_s(epochs) + self.after_s


def time_needed(project: Project, candidate: Candidate) -> TimeNeeded | None:
    """Return how long a candidate takes; None if it does not say. Raise SmallfirstError if it lacks weights here."""
    minutes, n_fits = candidate.minutes_to_fit(project), max(1, _n_folds(project, candidate))
    if minutes is not None:  # n folds of (n - 1) / n of the rows, and then all
        return TimeNeeded(60 * minutes * n_fits, after_s=60 * minutes if candidate.learning_curve else 0.0)
    if candidate.encoder_setting:
        return _encoder_time(project, candidate)
    if candidate.is_language_model and candidate.training_setting:
        return _language_model_time(project, candidate)
    return None


def _encoder_time(project: Project, candidate: Candidate) -> TimeNeeded:
    rows, small = project.rows, project.file.small
    folder = find_weights(candidate.encoder_name(small), download=candidate.measured_by_default)
    every = max(1, len(rows.train) // SAMPLE_ROWS)
    pace = encoder_pace(folder, tuple(e.text for e in rows.train.examples[::every][:SAMPLE_ROWS]))
    n, validate_s, n_folds = len(rows.train), len(rows.selection) * pace.read_s, _n_folds(project, candidate)
    measure_s = (len(rows.selection) + len(rows.calibration) + len(rows.test)) * pace.read_s
    head_s = n * (pace.read_s + REGRESSION_S)
    curve_s = head_s if candidate.learning_curve else 0.0
    if n_folds:
        n += len(rows.selection)
    if not candidate.training_setting:
        fit_s = 2 * n * pace.read_s + n_folds * n * REGRESSION_S if n_folds else head_s + validate_s
        return TimeNeeded(fit_s, after_s=measure_s + curve_s)
    from smallfirst.training.encoders import epoch_passes  # loads PyTorch

    config: TrainConfig = getattr(small, candidate.training_setting)

    def epoch(n_rows: float) -> tuple[float, int]:
        """Return the seconds and the steps of an epoch on so many rows."""
        if project.task.answer_labels:
            n_rows *= epoch_passes(n_rows * pace.tokens, config)
        steps = math.ceil(n_rows * pace.tokens / config.batch_tokens)
        return n_rows * pace.train_s + steps * OPTIMIZER_BYTES * pace.parameters / MEMORY_BYTES_PER_S, steps

    epoch_s, steps = epoch(n)
    begin_s = BEGIN_S + n * (pace.read_s + REGRESSION_S)
    if n_folds:  # a fine-tune for each fold, which reads its own rows after each epoch, and one on all rows
        epoch_s += n_folds * epoch(n - n / n_folds)[0] + n * pace.read_s
        begin_s *= 1 + n_folds
    else:
        epoch_s += validate_s
    duration = parse_duration(config.duration)
    of = {"ep": 1, "ba": steps, "tok": max(1, steps * config.batch_tokens)}[duration.unit]
    return _in_epochs(begin_s, epoch_s, duration.amount / of, measure_s)


def _n_folds(project: Project, candidate: Candidate) -> int:
    return candidate.n_folds if candidate.n_folds and fits_in_folds(project) else 0


def _language_model_time(project: Project, candidate: Candidate) -> TimeNeeded:
    rows, config, name = project.rows, project.file.small.training, project.file.small.base
    folder = find_weights(name, download=candidate.measured_by_default)
    tokens, size, unknown = find_local_base(name)
    if tokens is None or size is None:
        raise WeightsNotFound(f"how long {name} takes is not known: {unknown}")

    def encoded(*parts: Dataset) -> list[TokenizedRow]:
        return [row for part in parts for row in tokenize_rows(project, part, tokens)]

    train, selection = encoded(rows.train), encoded(rows.selection)
    held_out = [*selection, *encoded(rows.calibration, rows.test)]
    rate = training_pace(state_folder() / "tasks", (name, folder), config, train).tokens_per_s
    n_tokens = sum(len(row.ids) - 1 for row in train)
    epoch_s = (n_tokens + validation_work(project, selection).as_trained) / rate
    written = 0 if project.task.closed else sum(len(row.ids) - row.n_prompt for row in held_out)
    asked = ValidationWork(sum(row.n_prompt for row in held_out), written)
    epochs = count_epochs(config, len(first_epoch(train, config)), n_tokens)
    return _in_epochs(BEGIN_S, epoch_s, epochs, asked.as_trained / rate)


def _in_epochs(begin_s: float, epoch_s: float, epochs: float, after_s: float) -> TimeNeeded:
    """Return the time of a fine-tune; one of less than an epoch has no epochs to be shortened by."""
    if epochs < 1:
        return TimeNeeded(begin_s + epochs * epoch_s, after_s=after_s)
    return TimeNeeded(begin_s, epoch_s, math.ceil(epochs), after_s)


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


Fit = Callable[[Project, Candidate], None]
"""Fits a candidate and notes that it is fitted."""


class Ladder:
    """The candidates of a run, fitted within its time."""

    def __init__(self, project: Project, candidates: Iterable[Candidate], budget: TimeBudget) -> None:
        """Estimate how long each candidate takes; those that cannot be used here are left out."""
        self.project, self.budget = project, budget
        self.left_out: dict[str, str] = {}
        """Why each candidate that was not fitted was left out."""
        self._waiting: dict[str, Rung] = {}
        self._combining_s = 0.0
        routing = project.file.routing
        required = {*routing.ahead, project.file.goes_live}.difference(RULES)
        with project.progress.step("estimating how long each candidate takes"):
            for candidate in candidates:
                try:
                    needed = time_needed(project, candidate)
                except SmallfirstError as error:
                    if candidate.name in required or candidate.name in (project.file.ladder or ()):
                        raise
                    self._leave_out(candidate.name, " ".join(str(error).split()))
                    continue
                promise = candidate.size if candidate.promise is None else candidate.promise
                self._waiting[candidate.name] = Rung(candidate.name, promise, needed, candidate.name in required)

    def fit(self, fit: Fit) -> None:
        """Fit what ends in time with `fit`.

        Raise ConfigError if a candidate that task.yaml needs does not end in time.
        """
        while (step := self._next(combines=False)) is not None:
            self._fit(step, fit)
        self.budget.keep(-self._combining_s)
        while (step := self._next(combines=True)) is not None:
            self._fit(step, fit)
        for name, rung in self._waiting.items():
            self._leave_out(name, why_left_out(self._with_time_kept(rung), self.budget.left_s, self.budget.total_s))

    def _next(self, *, combines: bool) -> Step | None:
        """Return what to fit now. What combines others comes after them, and time is kept for it."""
        rungs = [self._with_time_kept(rung) for rung in self._waiting.values() if _combines(rung.name) == combines]
        left_s = self.budget.left_s
        steps = plan_steps(rungs, left_s)
        planned = {step.name for step in steps}
        for rung in rungs:
            if rung.required and rung.name not in planned:
                raise ConfigError(
                    f"routing needs {rung.name}, which does not end in --minutes {self.budget.total_s / 60:g}: "
                    + why_left_out(rung, left_s, self.budget.total_s),
                    hint="give it that time, or leave it out of routing",
                )
        return steps[0] if steps else None

    def _with_time_kept(self, rung: Rung) -> Rung:
        """Return the rung with the time that it costs what combines others; that one itself with all of this time."""
        if _combines(rung.name):
            return rung._replace(time=rung.time or TimeNeeded(0.0, after_s=self._combining_s))
        if rung.time is None or not self._is_combined(rung.name):
            return rung
        return rung._replace(time=rung.time._replace(after_s=(1 + COMBINING) * rung.time.after_s))

    def _is_combined(self, name: str) -> bool:
        """Return True if another candidate is likely to ask this one; none asks a language model."""
        others = any(map(_combines, self._waiting))
        return others and not _combines(name) and not get_candidate(name).is_language_model

    def _fit(self, step: Step, fit: Fit) -> None:
        candidate = get_candidate(step.name)
        needed = self._with_time_kept(self._waiting[step.name]).time or TimeNeeded(0.0)
        self.budget.keep(needed.after_s)
        if self._is_combined(step.name):
            self._combining_s += needed.after_s * COMBINING / (1 + COMBINING)
        del self._waiting[step.name]
        project = self.project
        words = f"about {in_minutes(needed.fit_s(step.epochs))}" if step.seconds else "time not known"
        if step.epochs < needed.epochs:
            words += f", {step.epochs} of {needed.epochs} epochs"
            config = getattr(project.file.small, candidate.training_setting)
            shorter = config.model_copy(update={"duration": f"{step.epochs}ep"})
            small = project.file.small.model_copy(update={candidate.training_setting: shorter})
            project = project._replace(file=project.file.model_copy(update={"small": small}))
        project.progress.log(f"next {candidate.name}: {words}; {self.in_words}")
        fit(project._replace(on_epoch=ends_in_time(self.budget)), candidate)

    @property
    def in_words(self) -> str:
        """The time used and left."""
        used, total = self.budget.used_s, self.budget.total_s
        return f"{in_minutes(used)} of {in_minutes(total)} used"

    def _leave_out(self, name: str, why: str) -> None:
        self.left_out[name] = why
        self.project.progress.log(f"{name} left out: {why}")


def _combines(name: str) -> bool:
    return get_candidate(name).combines


def ends_in_time(budget: TimeBudget) -> Callable[[int, float], bool]:
    """Return a callback that ends a fine-tune after the last epoch that leaves no time for another."""
    last_s = budget.used_s

    def ends(epoch: int, score: float) -> bool:
        nonlocal last_s
        took_s, last_s = budget.used_s - last_s, budget.used_s
        return budget.left_s < took_s

    return ends
