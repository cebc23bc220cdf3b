"""The training stage: the candidates of a run fitted into one run folder, within its time where it has one.

With `minutes` candidates are admitted in the order of what they promise, since a larger encoder answers better than a
smaller one and a fine-tuned one better than a frozen one, on nearly every measured set (benchmarks/results/), and as
long as they fit; those that cost next to nothing before all. Of the admitted ones the quickest is fitted first, and the
plan is made anew after each: what one saved or lost decides about the others.

A sentence encoder is timed on a few of the task's own texts, read and trained on. A language model's time is that of
an earlier run, else of its own first steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from smallfirst.base.errors import ConfigError, NothingGained, SmallfirstError, StageMissing, WeightsNotFound
from smallfirst.base.paths import state_folder
from smallfirst.data.dataset import Dataset
from smallfirst.ledger.expenses import note_expense
from smallfirst.measuring.label_errors import read_relabels
from smallfirst.models.catalog import find_weights
from smallfirst.models.local.weights import release_memory
from smallfirst.models.manifest import TRAINED_ON, TrainedOn
from smallfirst.path.check import find_local_base, tokenize_rows, validation_work
from smallfirst.path.project.candidate_registry import FINE_TUNED
from smallfirst.path.project.candidates import Candidate, fits_in_folds, get_candidate, project_candidates
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.run_folder import FITTED, FittedCandidates, RunFolder, only_run
from smallfirst.path.project.task_file import RULES, TaskFile
from smallfirst.registry import runs
from smallfirst.training.config import TokenizedRow, TrainConfig, parse_duration
from smallfirst.training.estimates import (
    SAMPLE_ROWS,
    ValidationWork,
    count_epochs,
    encoder_pace,
    first_epoch,
)

QUICK_SHARE = 0.05
"""Candidates that take at most so much of the time left are admitted first."""
SAFETY = 1.15
"""A candidate is taken to need so many times its estimate."""
REST_SHARE, REST_S, REST_FACTOR = 0.05, 10.0, 2.0
"""Kept for gate, certificate, Router and report: a share of the time, and seconds, or so many times as long as it took
to read and to check the rows."""
COMBINING = 1.5
"""What combines others takes so many times as long as it takes to measure them: it asks them on all held-out rows, and
before that on selection rows to be fitted."""
REGRESSION_S = 1e-3
"""A row in a logistic regression on vectors: 8 s for 10,000 rows in 77 labels."""
OPTIMIZER_BYTES, MEMORY_BYTES_PER_S = 40, 20e9
"""Read and written for each trained weight in a step, and how fast."""
BEGIN_S = 5.0
"""To load, prepare and save a model that is fine-tuned."""


@shown_as("")
def train_stage(project: Project, *, resume: bool = False, began: float | None = None) -> RunFolder:
    """Fit the candidates of the project and return the run folder.

    `resume` continues the latest run that reached no report. Raise StageMissing if there is none or its rows were
    others, TrainingError while another run of the task is under way. `minutes` of task.yaml count from `began`, a time
    of the progress's clock; None: from now.
    """
    with only_run(project.file.name):
        return _fit_all(project, _run_folder(project, resume=resume), began)


def _run_folder(project: Project, *, resume: bool) -> RunFolder:
    name, log = project.file.name, project.progress.log
    unfinished = RunFolder.unfinished(name)
    if resume and unfinished is None:
        raise StageMissing(f"{name} has no interrupted run to resume", hint="smallfirst train task.yaml")
    if resume and unfinished is not None:
        log(f"resuming run {unfinished.path.name}")
        return unfinished
    if unfinished is not None:
        log(f"run {unfinished.path.name} has no report; --resume continues it, this is a new run")
    return RunFolder.new(name)


def _fit_all(project: Project, run_folder: RunFolder, began: float | None) -> RunFolder:
    candidates, progress = project_candidates(project), project.progress
    for skipped in project.rows.skipped:
        progress.log(f"{skipped.what}: {'; '.join(skipped.where)}")
    found = _fitted_so_far(project, run_folder, candidates)
    _note_labels(project)

    def leave_out(name: str, why: str) -> None:
        nonlocal found
        progress.log(f"{name} left out: {why}")
        found = found.model_copy(update={"left_out": {**found.left_out, name: why}})

    def fit(project: Project, candidate: Candidate) -> None:
        nonlocal found
        start = progress.clock()
        try:
            with progress.step(f"fitting {candidate.title}"):
                _fit_one(project, run_folder, candidate)
        except (NothingGained, WeightsNotFound) as error:
            if isinstance(error, WeightsNotFound) and _is_named(project.file, candidate):
                raise
            leave_out(candidate.name, " ".join(str(error).split()))
            return
        release_memory()
        minutes = {**found.minutes, candidate.name: (progress.clock() - start) / 60}
        found = found.model_copy(update={"fitted": (*found.fitted, candidate.name), "minutes": minutes})
        found.save(run_folder.path / FITTED)
        # At the machine's price an hour: it does nothing else then.
        hours, what = sum(minutes.values()) / 60, f"run {run_folder.path.name}: {', '.join(minutes)}"
        usd = hours * project.file.prices.machine.usd_per_hour
        note_expense(project.file.name, "training", run_folder.path.name, usd, what=what, busy_s=3600 * hours)

    waiting = [candidate for candidate in candidates if candidate.name not in found.fitted]
    if project.file.minutes is None:
        for candidate in sorted(waiting, key=lambda candidate: candidate.combines):
            fit(project, candidate)
    else:
        budget = TimeBudget(project, began=began, used_minutes=sum(found.minutes.values()))
        for name, why in fit_in_time(project, waiting, budget, fit).items():
            leave_out(name, why)
    if found.mlflow_run_id is None:
        run_id = _run_id(project, run_folder, found)
        found.model_copy(update={"mlflow_run_id": run_id}).save(run_folder.path / FITTED)
    return run_folder


def _fitted_so_far(project: Project, run_folder: RunFolder, candidates: Sequence[Candidate]) -> FittedCandidates:
    """Return and save what the run has fitted. Raise StageMissing if that was on other rows or another ladder."""
    ladder, rows = tuple(candidate.name for candidate in candidates), project.rows.train.content_fingerprint
    found = run_folder.fitted() or FittedCandidates(ladder=ladder, dataset_fingerprint=rows)
    if (found.ladder, found.dataset_fingerprint) != (ladder, rows):
        raise StageMissing(
            f"the rows or the ladder are others than when run {run_folder.path.name} began",
            hint="smallfirst run task.yaml   starts a new run",
        )
    found.save(run_folder.path / FITTED)
    return found


def _fit_one(project: Project, run_folder: RunFolder, candidate: Candidate) -> None:
    """Fit a candidate on training rows; where these are few, in folds first and then on training and selection rows."""
    if not _n_folds(project, candidate):
        candidate.fit(project, run_folder)
    else:
        rows = project.rows.development
        folds = run_folder.folds(candidate.name)
        if folds is None or folds.dataset_fingerprint != rows.content_fingerprint:
            with project.progress.step(f"{candidate.title}: answering {len(rows):,} rows out of fold"):
                folds = candidate.out_of_fold(project, run_folder)
            run_folder.save_folds(candidate.name, folds)
        candidate.refit(project, run_folder, folds)
    TrainedOn.of(project.rows.development).save(run_folder.model_folder(candidate.name) / TRAINED_ON)


def _note_labels(project: Project) -> None:
    """Write to the ledger what people's labels of probable label errors have cost so far."""
    file, relabels = project.file, project.file.data.relabels
    n = len(read_relabels(file.path(relabels))) if relabels else 0
    usd = n * (file.prices.usd_per_label or 0.0)
    note_expense(file.name, "labels", "labels", usd, what=f"{n:,} answers of people")


def _run_id(project: Project, run_folder: RunFolder, found: FittedCandidates) -> str:
    """Return the id of the fine-tune's MLflow run; without one, of a new, finished run.

    Raise WeightsNotFound if nothing was fitted.
    """
    if not found.fitted:
        raise WeightsNotFound("no candidate can be fitted: " + "; ".join(map(": ".join, found.left_out.items())))
    if FINE_TUNED in found.fitted:
        return str(json.loads((run_folder.path / "run.json").read_text(encoding="utf-8"))["run_id"])
    params = {"task": project.file.name, "ladder": ", ".join(found.fitted), "n_train": len(project.rows.train)}
    params |= {"dataset_fingerprint": found.dataset_fingerprint}
    with runs.open_run(project.file.name, run_folder.path.name, params=params) as tracked:
        return tracked.run_id


class TimeNeeded(NamedTuple):
    """Time that a candidate takes, in seconds."""

    fit_s: float
    after_s: float = 0.0
    """To measure it once it is fitted."""

    @property
    def whole_s(self) -> float:
        """The time to fit it and to measure it, with a margin."""
        return SAFETY * (self.fit_s + self.after_s)


def time_needed(project: Project, candidate: Candidate) -> TimeNeeded | None:
    """Return how long a candidate takes; None if it does not say. Raise SmallfirstError if it lacks weights here."""
    minutes, n_fits = candidate.minutes_to_fit(project), max(1, _n_folds(project, candidate))
    if minutes is not None:  # n folds of (n - 1) / n of the rows, and then all
        return TimeNeeded(60 * minutes * n_fits)
    if candidate.encoder_setting:
        return _encoder_time(project, candidate)
    if candidate.is_language_model and candidate.training_setting:
        return _language_model_time(project, candidate)
    return None


def _encoder_time(project: Project, candidate: Candidate) -> TimeNeeded:
    rows, small, n_folds = project.rows, project.file.small, _n_folds(project, candidate)
    folder = find_weights(candidate.encoder_name(small), download=candidate.measured_by_default)
    every = max(1, len(rows.train) // SAMPLE_ROWS)
    pace = encoder_pace(folder, tuple(e.text for e in rows.train.examples[::every][:SAMPLE_ROWS]))
    n = len(rows.development if n_folds else rows.train)
    validate_s = len(rows.selection) * pace.read_s
    measure_s = (len(rows.selection) + len(rows.calibration) + len(rows.test)) * pace.read_s
    head_s = n * (pace.read_s + REGRESSION_S)
    if not candidate.training_setting:
        fit_s = 2 * n * pace.read_s + n_folds * n * REGRESSION_S if n_folds else head_s + validate_s
        return TimeNeeded(fit_s, after_s=measure_s)
    from smallfirst.training.encoders import epoch_passes  # loads PyTorch

    config: TrainConfig = getattr(small, candidate.training_setting)

    def epoch(n_rows: float) -> tuple[float, int]:
        """Return the seconds and the steps of an epoch on so many rows."""
        n_rows *= epoch_passes(n_rows * pace.tokens, config)
        steps = math.ceil(n_rows * pace.tokens / config.batch_tokens)
        return n_rows * pace.train_s + steps * OPTIMIZER_BYTES * pace.parameters / MEMORY_BYTES_PER_S, steps

    epoch_s, steps = epoch(n)
    begin_s = BEGIN_S + head_s
    if n_folds:  # a fine-tune for each fold, which reads its own rows after each epoch, and one on all rows
        epoch_s += n_folds * epoch(n - n / n_folds)[0] + n * pace.read_s
        begin_s *= 1 + n_folds
    else:
        epoch_s += validate_s
    duration = parse_duration(config.duration)
    of = {"ep": 1, "ba": steps, "tok": max(1, steps * config.batch_tokens)}[duration.unit]
    return TimeNeeded(begin_s + epoch_s * duration.amount / of, measure_s)


def _n_folds(project: Project, candidate: Candidate) -> int:
    return candidate.n_folds if candidate.n_folds and fits_in_folds(project) else 0


def _language_model_time(project: Project, candidate: Candidate) -> TimeNeeded:
    from smallfirst.training.run import training_pace  # loads PyTorch

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
    return TimeNeeded(BEGIN_S + epoch_s * epochs, asked.as_trained / rate)


class TimeBudget:
    """Seconds that are left of `minutes` since the run began, on the clock of its progress."""

    def __init__(self, project: Project, *, began: float | None = None, used_minutes: float = 0.0) -> None:
        """The run `began` at this time of its progress's clock, None: now; `used_minutes` were used before."""
        assert project.file.minutes is not None
        self.total_s, self._clock = 60 * project.file.minutes, project.progress.clock
        now = self._clock()
        before_s = 0.0 if began is None else now - began
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

    def why_left_out(self, left_s: float, budget_s: float) -> str:
        """Return how long it takes, what was left, and which time would have included it."""
        if self.time is None:
            return f"how long it takes is not known, and {in_minutes(left_s)} were left"
        needed_s = self.time.whole_s
        wanted = math.ceil((budget_s + (needed_s - left_s) / (1 - REST_SHARE)) / 60)
        return f"about {in_minutes(needed_s)}, {in_minutes(left_s)} were left; --minutes {wanted} would include it"


def plan_steps(rungs: Sequence[Rung], left_s: float) -> list[Rung]:
    """Return what to fit in `left_s` seconds, the quickest first."""
    known = [(rung, rung.time.whole_s) for rung in rungs if rung.time is not None]
    steps, rest_s = list[tuple[float, Rung]](), left_s
    for rung, needed_s in sorted(
        known, key=lambda one: (not one[0].required, one[1] > QUICK_SHARE * left_s, -one[0].promise)
    ):
        if needed_s <= rest_s:
            steps.append((needed_s, rung))
            rest_s -= needed_s
    unknown = [rung for rung in rungs if rung.time is None and rest_s > 0]
    return [*(rung for _, rung in sorted(steps, key=lambda step: step[0])), *unknown]


def in_minutes(seconds: float) -> str:
    """Return a time as `9 minutes` or, below two minutes, `40 seconds`."""
    return f"{max(0, round(seconds))} seconds" if seconds < 120 else f"{round(seconds / 60)} minutes"


def fit_in_time(
    project: Project, candidates: Iterable[Candidate], budget: TimeBudget, fit: Callable[[Project, Candidate], None]
) -> dict[str, str]:
    """Fit what ends in time with `fit`; return why each of the others was left out.

    What combines others comes after them, in the time that was kept for it with each. Raise ConfigError if a candidate
    that task.yaml needs does not end in time.
    """
    combining = [one for one in candidates if one.combines]
    rungs, left_out = _rungs(project, [one for one in candidates if not one.combines], shared=bool(combining))
    while steps := plan_steps([*rungs.values()], left_s := budget.left_s):
        _require(rungs, steps, left_s, budget)
        rung = rungs.pop(steps[0].name)
        needed = rung.time or TimeNeeded(0.0)
        budget.keep(needed.after_s)
        words = f"about {in_minutes(needed.fit_s)}" if rung.time else "time not known"
        used = f"{in_minutes(budget.used_s)} of {in_minutes(budget.total_s)} used"
        project.progress.log(f"next {rung.name}: {words}; {used}")
        fit(project._replace(on_epoch=ends_in_time(budget)), get_candidate(rung.name))
    _require(rungs, [], budget.left_s, budget)
    for candidate in combining if budget.left_s >= 0 else ():
        fit(project, candidate)
    return left_out | {name: rung.why_left_out(budget.left_s, budget.total_s) for name, rung in rungs.items()}


def _rungs(
    project: Project, candidates: Sequence[Candidate], *, shared: bool
) -> tuple[dict[str, Rung], dict[str, str]]:
    """Return the candidates with how long each takes, and why those were left out that cannot be used here.

    `shared`: another one will ask them, but for language models.
    """
    rungs, left_out, file = dict[str, Rung](), dict[str, str](), project.file
    with project.progress.step("estimating how long each candidate takes"):
        for one in candidates:
            try:
                needed = time_needed(project, one)
            except SmallfirstError as error:
                if _is_named(file, one):
                    raise
                left_out[one.name] = " ".join(str(error).split())
                continue
            if needed and shared and not one.is_language_model:
                needed = needed._replace(after_s=(1 + COMBINING) * needed.after_s)
            promise = one.size if one.promise is None else one.promise
            rungs[one.name] = Rung(one.name, promise, needed, _is_required(file, one))
    return rungs, left_out


def _is_named(file: TaskFile, candidate: Candidate) -> bool:
    """Return True if the task asks for it by name."""
    return _is_required(file, candidate) or candidate.name in (file.ladder or ())


def _is_required(file: TaskFile, candidate: Candidate) -> bool:
    """Return True if the task's Router needs it."""
    return candidate.name in {*file.routing.ahead, file.goes_live}.difference(RULES)


def _require(rungs: dict[str, Rung], planned: Sequence[Rung], left_s: float, budget: TimeBudget) -> None:
    for rung in rungs.values():
        if rung.required and rung not in planned:
            raise ConfigError(
                f"routing needs {rung.name}, which does not end in --minutes {budget.total_s / 60:g}: "
                + rung.why_left_out(left_s, budget.total_s),
                hint="give it that time, or leave it out of routing",
            )


def ends_in_time(budget: TimeBudget) -> Callable[[int, float], bool]:
    """Return a callback that ends a fine-tune after the last epoch that leaves no time for another."""
    last_s = budget.used_s

    def ends(epoch: int, score: float) -> bool:
        nonlocal last_s
        took_s, last_s = budget.used_s - last_s, budget.used_s
        return budget.left_s < took_s

    return ends
