"""Candidates: the kinds of small model that a run fits, measures and may promote.

A candidate is one object: its name, its place in the order of sizes, its description, how it is fitted into a run
folder and how it is loaded from there. To add one, subclass Candidate in a module of its own and register an instance
under the entry-point group "smallfirst.candidates" (or with CANDIDATES.register in this process). The stages, the
report and the command line iterate over the registry and name no candidate.
"""

from __future__ import annotations

import asyncio
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from smallfirst.data.dataset import Dataset, sample_rows
from smallfirst.errors import ConfigError
from smallfirst.project.candidate_registry import CANDIDATES, FINE_TUNED, CandidateDescription, all_candidates
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.small_model import load_small
from smallfirst.project.task_file import TaskFile

if TYPE_CHECKING:
    from smallfirst.evaluation.results import EvaluatedRow
    from smallfirst.models.protocol import Model
    from smallfirst.stats.intervals import Estimate

__all__ = ["CANDIDATES", "FINE_TUNED", "Candidate", "fitted_candidates", "get_candidate", "project_candidates"]

MAX_CURVE_TEST_ROWS = 1000
"""Test rows on which a model trained on part of the rows is measured."""


class Candidate(CandidateDescription, ABC):
    """A kind of small model that a run can fit."""

    fitted_in_folds = False
    """It is fitted in seconds, so that `out_of_fold` answers the training rows."""

    @abstractmethod
    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Fit the model on `project.rows.train` and write it to `run_folder.model_folder(self.name)`.

        Choose hyperparameters on `project.rows.selection` alone.
        """

    def load(self, project: Project, run_folder: RunFolder) -> Model:
        """Return the fitted model, ready to answer, priced by the machine's time."""
        return load_small(project.file, run_folder.model_folder(self.name), name=f"{project.file.name}-{self.name}")

    def why_unsuitable(self, project: Project) -> str:
        """Return why it cannot be used for this task and its training rows, in a clause; empty if it can."""
        labels = project.task.answer_labels if self.several_labels else project.task.closed
        if self.closed_answers_only and not labels:
            return f"it needs a closed set of answers; this task of kind {project.file.kind} has none"
        return ""

    def minutes_to_fit(self, project: Project) -> float | None:
        """Return how long `fit` takes, where neither `encoder_setting` nor `training_setting` lets it be estimated."""
        return None

    def max_test_rows(self, file: TaskFile) -> int | None:
        """Return how many test rows to measure it on; None for all."""
        return None

    def accuracies(self, project: Project, parts: Sequence[Dataset], folder: Path) -> Iterator[Estimate]:
        """Yield the accuracy on test rows after training on each part; intermediate files go below `folder`."""
        for part in parts:
            run_folder = RunFolder(folder / f"{self.name}-{len(part)}")
            self.fit(project._replace(rows=project.rows.model_copy(update={"train": part})), run_folder)
            yield asyncio.run(self._accuracy(project, run_folder))
            shutil.rmtree(run_folder.path)

    def out_of_fold(self, project: Project) -> tuple[EvaluatedRow, ...] | None:
        """Return answers to the training rows by models that were fitted without them; None if that takes too long."""
        return None

    async def _accuracy(self, project: Project, run_folder: RunFolder) -> Estimate:
        from smallfirst.evaluation.evaluate import EvaluationSetup, evaluate

        model = self.load(project, run_folder)
        try:
            rows = sample_rows(project.rows.test, MAX_CURVE_TEST_ROWS)
            found = await evaluate(model, EvaluationSetup(project.task, rows, split="test"), candidate=self.name)
        finally:
            await model.aclose()
        return found.accuracy


def get_candidate(name: str) -> Candidate:
    """Return the registered candidate of this name. Raise ConfigError if there is none."""
    return cast(Candidate, CANDIDATES.get(name))


def project_candidates(project: Project) -> tuple[Candidate, ...]:
    """Return the candidates on the ladder, the smallest first. Raise ConfigError if it names one that cannot be used.

    Without a ladder these are the ones measured by default that fit the task; with `minutes` all that can go live,
    of which a run tries as many as its time allows.
    """
    ladder = project.file.ladder
    in_time = project.file.minutes is not None
    named = [
        cast(Candidate, c)
        for c in all_candidates()
        if (c.measured_by_default or (in_time and c.promotable) if ladder is None else c.name in ladder)
    ]
    unsuitable = {c.name: why for c in named if (why := c.why_unsuitable(project))}
    if unsuitable and ladder is not None:
        raise ConfigError(
            f"ladder: {'; '.join(f'{name}: {why}' for name, why in unsuitable.items())}",
            hint=f"leave it out of ladder in {project.file.folder / 'task.yaml'}; small suits every kind",
        )
    return tuple(candidate for candidate in named if candidate.name not in unsuitable)


def fitted_candidates(project: Project, run_folder: RunFolder) -> tuple[Candidate, ...]:
    """Return the candidates that a run has fitted, the smallest first."""
    found = run_folder.fitted()
    if found is None:  # a run of before 2026-11-27 has them all
        return project_candidates(project)
    return tuple(cast(Candidate, c) for c in all_candidates() if c.name in found.fitted)
