"""The training stage: the candidates of a run fitted into one run folder, within its time where it has one.

With `minutes` candidates are admitted in the order of what they promise, since a larger encoder answers better than a
smaller one and a fine-tuned one better than a frozen one, on nearly every measured set (benchmarks/results/), and as
long as they fit; those that cost next to nothing before all. Of the admitted ones the quickest is fitted first, and the
plan is made anew after each: what one saved or lost decides about the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from smallfirst.base.errors import ConfigError, NothingGained, SmallfirstError, StageMissing, WeightsNotFound
from smallfirst.ledger.expenses import note_expense
from smallfirst.measuring.label_errors import read_relabels
from smallfirst.models.local.weights import release_memory
from smallfirst.models.manifest import TRAINED_ON, TrainedOn
from smallfirst.path.durations import (
    TimeNeeded,
    forecast_candidates,
    forecast_in_words,
    in_minutes,
    n_folds_of,
    time_needed,
)
from smallfirst.path.project.candidate_registry import FINE_TUNED, all_candidates
from smallfirst.path.project.candidates import Candidate, fits_in_folds, get_candidate, project_candidates
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.run_folder import FITTED, FittedCandidates, RunFolder, only_run
from smallfirst.path.project.task_file import RULES, TaskFile
from smallfirst.registry import runs

HALF = 0.5
"""Share of the errors of the others that the larger encoder removes at most: it was a third on the sets measured
(benchmarks/results/encoder_candidates.md)."""
QUICK_SHARE = 0.05
"""Candidates that take at most so much of the time left are admitted first."""
REST_SHARE, REST_S, REST_FACTOR = 0.05, 10.0, 2.0
"""Kept for gate, certificate, Router and report: a share of the time, and seconds, or so many times as long as it took
to read and to check the rows."""
COMBINING = 1.5
"""What combines others takes so many times as long as it takes to measure them: it asks them on all held-out rows, and
before that on selection rows to be fitted."""


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
    race = Race(project, run_folder, _fitted_so_far(project, run_folder, candidates))
    _note_labels(project)
    waiting = [candidate for candidate in candidates if candidate.name not in race.found.fitted]
    names = {one.name for one in waiting}
    for line in forecast_in_words([one for one in forecast_candidates(project) if one.name in names]):
        progress.log(line)
    if project.file.minutes is None:
        for candidate in sorted(waiting, key=lambda candidate: candidate.combines):
            race.fit(project, candidate)
    else:
        budget = TimeBudget(project, began=began, used_minutes=sum(race.found.minutes.values()))
        for name, why in fit_in_time(project, waiting, budget, race.fit).items():
            race.leave_out(name, why)
    if race.found.mlflow_run_id is None:
        run_id = _run_id(project, run_folder, race.found)
        race.found.model_copy(update={"mlflow_run_id": run_id}).save(run_folder.path / FITTED)
    return run_folder


class Race:
    """The candidates of a run, fitted one after the other unless they can no longer win."""

    def __init__(self, project: Project, run_folder: RunFolder, found: FittedCandidates) -> None:
        self.found = found
        """What was fitted so far."""
        self._file, self._progress, self._run_folder = project.file, project.progress, run_folder
        self._missing = dict[str, str]()
        """By encoder, why its weights are not here."""

    def fit(self, project: Project, candidate: Candidate) -> None:
        """Fit one; leave it out if it can gain too little, or lacks weights that the task does not name."""
        began, encoder = self._progress.clock(), candidate.encoder_name(self._file.small)
        if why := self._missing.get(encoder) or self._why_needless(candidate, few=fits_in_folds(project)):
            return self.leave_out(candidate.name, why)
        try:
            with self._progress.step(f"fitting {candidate.title}"):
                score = _fit_one(project, self._run_folder, candidate)
        except NothingGained as error:
            return self.leave_out(candidate.name, _in_a_line(error))
        except WeightsNotFound as error:
            if _is_named(self._file, candidate):
                raise
            self._missing[encoder] = _in_a_line(error)
            return self.leave_out(candidate.name, _in_a_line(error))
        release_memory()
        name, found = candidate.name, self.found
        minutes = {**found.minutes, name: (self._progress.clock() - began) / 60}
        scores = found.scores if score is None else {**found.scores, name: score}
        self.found = found.model_copy(update={"fitted": (*found.fitted, name), "minutes": minutes, "scores": scores})
        self.found.save(self._run_folder.path / FITTED)
        # At the machine's price an hour: it does nothing else then.
        run, hours = self._run_folder.path.name, sum(minutes.values()) / 60
        usd, what = hours * self._file.prices.machine.usd_per_hour, f"run {run}: {', '.join(minutes)}"
        note_expense(self._file.name, "training", run, usd, what=what, busy_s=3600 * hours)
        return None

    def leave_out(self, name: str, why: str) -> None:
        self._progress.log(f"{name} left out: {why}")
        self.found = self.found.model_copy(update={"left_out": {**self.found.left_out, name: why}})

    def _why_needless(self, candidate: Candidate, *, few: bool) -> str:
        """Return why a candidate on the larger encoder is not begun; empty if it is.

        A gain within `accuracy_within` does not pay for what it costs to serve. So it is not begun where half of the
        errors of the best other candidate are less than that: no larger encoder removed more on a set that was
        measured. And of few rows its fine-tune is not begun where, frozen, it is ahead of the smaller one by less: the
        frozen ones take a hundredth of the time. With 9,000 rows of Banking77 it was ahead after its fine-tune alone.
        """
        routing, scores = self._file.routing, self.found.scores
        least = 0.0 if routing.usd_per_wrong_answer else routing.accuracy_within
        if candidate.encoder_setting != "larger_encoder" or _is_named(self._file, candidate):
            return ""
        if HALF * (1 - max(scores.values(), default=0.0)) <= least:
            return f"{max(scores.values()):.3f} is right without it; half of the errors are within {least:g}"
        linear = [one for one in all_candidates() if one.name in scores and not one.training_setting]
        frozen = {one.encoder_setting: scores[one.name] for one in linear}
        gain = frozen.get("larger_encoder", 1.0) - frozen.get("encoder", 0.0)
        if candidate.training_setting and few and gain <= least:
            return f"frozen, the larger encoder is ahead by {gain:.3f}, within {least:g}"
        return ""


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


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


def _fit_one(project: Project, run_folder: RunFolder, candidate: Candidate) -> float | None:
    """Fit a candidate on training rows; where these are few, in folds first and then on training and selection rows.

    Return its mean score on the rows that choose.
    """
    if not n_folds_of(project, candidate):
        score = candidate.fit(project, run_folder)
    else:
        rows = project.rows.development
        folds = run_folder.folds(candidate.name)
        if folds is None or folds.dataset_fingerprint != rows.content_fingerprint:
            with project.progress.step(f"{candidate.title}: answering {len(rows):,} rows out of fold"):
                folds = candidate.out_of_fold(project, run_folder)
            run_folder.save_folds(candidate.name, folds)
        candidate.refit(project, run_folder, folds)
        score = folds.calibrated(rows.examples)[0]
    TrainedOn.of(project.rows.development).save(run_folder.model_folder(candidate.name) / TRAINED_ON)
    return score


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
                left_out[one.name] = _in_a_line(error)
                continue
            if needed and shared and not one.is_language_model:
                needed = needed._replace(after_s=(1 + COMBINING) * needed.after_s)
            promise = one.size if one.promise is None else one.promise
            rungs[one.name] = Rung(one.name, promise, needed, _is_required(file, one))
    return rungs, left_out


def _is_named(file: TaskFile, candidate: Candidate) -> bool:
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
