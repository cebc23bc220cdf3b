"""Fit candidates within the time of a run: the most promising ones that end in it, quickest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.pipeline.ladder.plan import Rung, Step, TimeBudget, in_minutes, plan_steps, why_left_out
from smallfirst.pipeline.ladder.times import TimeNeeded, time_needed
from smallfirst.project.candidates import Candidate, get_candidate
from smallfirst.project.project import Project
from smallfirst.project.task_file import RULES

Fit = Callable[[Project, Candidate], None]
"""Fits a candidate and notes that it is fitted."""


COMBINING = 1.5
"""What combines others takes so many times as long as it takes to measure them: it asks them on all held-out rows, and
before that on selection rows to be fitted."""


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
