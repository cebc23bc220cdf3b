"""Fit candidates within the time of a run: the most promising ones that end in it, quickest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.pipeline.ladder.plan import Rung, Step, in_minutes, plan_steps, why_left_out
from smallfirst.pipeline.ladder.time_budget import TimeBudget
from smallfirst.pipeline.ladder.times import TimeNeeded, time_needed
from smallfirst.project.candidates import Candidate, get_candidate
from smallfirst.project.project import Project
from smallfirst.project.task_file import SMALLEST

Fit = Callable[[Project, Candidate], None]
"""Fits a candidate and notes that it is fitted."""


class Ladder:
    """The candidates of a run, fitted within its time."""

    def __init__(self, project: Project, candidates: Iterable[Candidate], *, used_minutes: float = 0.0) -> None:
        """Estimate how long each candidate takes; those that cannot be used here are left out."""
        self.project, self.budget = project, TimeBudget(project, used_minutes=used_minutes)
        self.left_out: dict[str, str] = {}
        """Why each candidate that was not fitted was left out."""
        self._waiting: dict[str, Rung] = {}
        routing = project.file.routing
        required = {*routing.ahead, *routing.agreement, project.file.goes_live} - {SMALLEST}
        with project.progress.step("estimating how long each candidate takes"):
            for candidate in candidates:
                try:
                    needed = time_needed(project, candidate)
                except SmallfirstError as error:
                    if candidate.name in required or candidate.name in (project.file.ladder or ()):
                        raise
                    self._leave_out(candidate.name, str(error))
                    continue
                promise = candidate.size if candidate.promise is None else candidate.promise
                self._waiting[candidate.name] = Rung(candidate.name, promise, needed, candidate.name in required)

    def fit(self, fit: Fit) -> None:
        """Fit what ends in time with `fit`. Raise ConfigError if a candidate that task.yaml needs does not."""
        for combines in (False, True):
            while (step := self._next(combines=combines)) is not None:
                self._fit(step, fit)
        for name, rung in self._waiting.items():
            self._leave_out(name, why_left_out(rung, self.budget.left_s, self.budget.total_s))

    def _next(self, *, combines: bool) -> Step | None:
        """Return what to fit now. What combines others waits for them, but its time is kept."""
        left_s = self.budget.left_s
        steps = plan_steps(list(self._waiting.values()), left_s)
        planned = {step.name for step in steps}
        for name, rung in self._waiting.items():
            if rung.required and name not in planned:
                raise ConfigError(
                    f"routing needs {name}, which does not end in --minutes {self.budget.total_s / 60:g}: "
                    + why_left_out(rung, left_s, self.budget.total_s),
                    hint="give it that time, or leave it out of routing",
                )
        return next((step for step in steps if get_candidate(step.name).combines == combines), None)

    def _fit(self, step: Step, fit: Fit) -> None:
        candidate, needed = get_candidate(step.name), self._waiting.pop(step.name).time or TimeNeeded(0.0)
        self.budget.keep(needed.after_s)
        project = self.project
        words = f"about {in_minutes(needed.fit_s(step.epochs))}" if step.seconds else "time not known"
        if step.epochs < needed.epochs:
            words += f", {step.epochs} of {needed.epochs} epochs"
            project = with_epochs(project, candidate, step.epochs)
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


def with_epochs(project: Project, candidate: Candidate, epochs: int) -> Project:
    """Return the project with so many epochs in the candidate's training settings."""
    return with_training(project, candidate, duration=f"{epochs}ep")


def with_training(project: Project, candidate: Candidate, **changes: object) -> Project:
    """Return the project with other training settings for the candidate."""
    small, name = project.file.small, candidate.training_setting
    config = getattr(small, name).model_copy(update=changes)
    file = project.file.model_copy(update={"small": small.model_copy(update={name: config})})
    return project._replace(file=file)


def ends_in_time(budget: TimeBudget) -> Callable[[int, float], bool]:
    """Return a callback that ends a fine-tune after the last epoch that leaves no time for another."""
    last_s = budget.used_s

    def ends(epoch: int, score: float) -> bool:
        nonlocal last_s
        took_s, last_s = budget.used_s - last_s, budget.used_s
        return budget.left_s < took_s

    return ends
