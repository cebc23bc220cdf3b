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
from typing import TYPE_CHECKING, Literal

from smallfirst.data.dataset import sample_rows
from smallfirst.extensions import Registry

if TYPE_CHECKING:
    from smallfirst.data.dataset import Dataset
    from smallfirst.models.protocol import Model
    from smallfirst.project.project import Project
    from smallfirst.project.run_folder import RunFolder
    from smallfirst.project.task_file import TaskFile
    from smallfirst.stats.intervals import Estimate

FINE_TUNED = "small"
"""Name of the candidate that every run fine-tunes and that the report compares the others with."""
MAX_CURVE_TEST_ROWS = 1000
"""Test rows on which a model trained on part of the rows is measured."""

CANDIDATES: Registry[Candidate] = Registry(
    "smallfirst.candidates",
    {
        "words": "smallfirst.pipeline.candidates.linear:WORDS",
        "encoder": "smallfirst.pipeline.candidates.linear:ENCODER",
        "tuned": "smallfirst.pipeline.candidates.tuned_encoder:TUNED",
        "base": "smallfirst.pipeline.candidates.language_model:BASE",
        FINE_TUNED: "smallfirst.pipeline.candidates.language_model:SMALL",
    },
    noun="candidate",
)


class Candidate(ABC):
    """A kind of small model."""

    name: str
    """The name it is registered under; used in task.yaml, file names and the report: letters, digits, `-` and `_`."""
    title: str
    """Short name for tables, such as "words + linear"."""
    role: str
    """Noun phrase with an article, such as "a linear model on words"."""
    size: float
    """Sort key from the smallest model to the largest. Built in: words 10, encoder 20, tuned 30, base 40, small 50."""
    headline: str = ""
    """The report's first sentence if this is the smallest candidate that passes; left out: made from `role`."""

    measured_by_default = False
    """Measure it if task.yaml does not list `small.candidates`."""
    closed_answers_only = False
    """Leave it out for tasks whose answers are not a closed set."""
    promotable = True
    """The gate checks it and it may go live; False for a point of reference."""
    is_language_model = False
    """The report says when a candidate that is none suffices."""
    uses_sentence_encoder = False
    """Its sentence encoder is there to be used for out-of-domain detection as well."""
    learning_curve: Literal["always", "on request", "never"] = "never"
    """When it is trained on parts of the rows: in every run, by `smallfirst learn --small`, or not at all."""

    @property
    def folder(self) -> str:
        """Folder of its model below the run folder."""
        return self.name

    @abstractmethod
    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Fit the model on `project.rows.train` and write it to `run_folder.model_folder(self.name)`.

        Choose hyperparameters on `project.rows.selection` alone.
        """

    def load(self, project: Project, run_folder: RunFolder) -> Model:
        """Return the fitted model, ready to answer, priced by the machine's time."""
        from smallfirst.models.loading import load_model

        name = f"{project.file.name}-{self.name}"
        return load_model(run_folder.model_folder(self.name), name=name, price=project.file.prices.machine)

    def max_test_rows(self, file: TaskFile) -> int | None:
        """Return how many test rows to measure it on; None for all."""
        return None

    def accuracies(self, project: Project, parts: Sequence[Dataset], folder: Path) -> Iterator[Estimate]:
        """Yield the accuracy on test rows after training on each part; intermediate files go below `folder`."""
        from smallfirst.project.run_folder import RunFolder

        for part in parts:
            run_folder = RunFolder(folder / f"{self.name}-{len(part)}")
            self.fit(project.with_training_rows(part), run_folder)
            yield asyncio.run(self._accuracy(project, run_folder))
            shutil.rmtree(run_folder.path)

    async def _accuracy(self, project: Project, run_folder: RunFolder) -> Estimate:
        from smallfirst.evaluation.evaluate import EvaluationSetup, evaluate

        model = self.load(project, run_folder)
        try:
            rows = sample_rows(project.rows.test, MAX_CURVE_TEST_ROWS)
            found = await evaluate(model, EvaluationSetup(project.task, rows, split="test"), candidate=self.name)
        finally:
            await model.aclose()
        return found.accuracy


def all_candidates() -> tuple[Candidate, ...]:
    """Return every registered candidate, the smallest first."""
    return tuple(sorted((candidate for _, candidate in CANDIDATES), key=lambda candidate: candidate.size))


def promotable_names() -> tuple[str, ...]:
    """Return the names of the candidates that may go live, the smallest first."""
    return tuple(candidate.name for candidate in all_candidates() if candidate.promotable)
