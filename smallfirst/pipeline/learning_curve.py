"""The learning curve of a run: the same candidates with fewer rows, and what more rows would bring.

Linear candidates are fitted anew in seconds, every text embedded once; fine-tuning on parts costs about as much as the
run itself, so it is done on demand. A part is trained for as many steps as the whole, but at most ten epochs.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.evaluation.evaluate import EvaluationSetup, evaluate
from smallfirst.evaluation.learning_curve import (
    LearningCurve,
    LearningPoint,
    forecast,
    learning_point,
    subsets_by_share,
    subsets_per_label,
)
from smallfirst.models.catalog import find_weights
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.linear.sentence_encoder import SentenceEncoder
from smallfirst.models.loading import load_model
from smallfirst.pipeline.large_model import sample_rows
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.registry import runs
from smallfirst.stats.intervals import Estimate, wilson
from smallfirst.training.config import TrainConfig, parse_duration

MOST_EPOCHS = 10
"""Passes over a part of the rows at most; more only learn it by heart."""
MOST_TEST_ROWS = 1000
"""Test rows that a fine-tuned model is asked for each point."""


def measure_curve(
    project: Project, run_folder: RunFolder, rungs: Sequence[str] = ("words", "encoder")
) -> LearningCurve:
    """The curve with new points of these rungs, kept in the run's folder; earlier points of others stay.

    The whole of the rows is the run's own evaluation, if there is one.
    """
    path = run_folder.folder / "learning.json"
    wanted = [rung for rung in rungs if rung in project.ladder]
    kept = [p for p in LearningCurve.load(path).points if p.candidate not in wanted] if path.exists() else []
    parts = subsets_per_label(project.rows.train) if project.task.closed else subsets_by_share(project.rows.train)
    new: list[LearningPoint] = []
    for rung in wanted:
        measure = _Linear(project, rung).accuracy if rung != "small" else _FineTuned(project, run_folder).accuracy
        for part in parts:
            new.append(LearningPoint(n_rows=len(part), candidate=rung, accuracy=measure(part)))
            project.progress.log(f"{rung} with {len(part)} rows: accuracy {new[-1].accuracy}")
        if (whole := run_folder.evaluation(rung, "test")) is not None:
            new.append(learning_point(whole, len(project.rows.train)))
    curve = LearningCurve(points=(*kept, *new))
    curve.save(path)
    return curve


def forecast_lines(curve: LearningCurve, n_rows: int) -> list[str]:
    """For each candidate, what twice the rows would bring, or why that cannot be said."""
    names = dict.fromkeys(point.candidate for point in curve.points)
    groups = ([p for p in curve.points if p.candidate == name] for name in names)
    return [f"{found.candidate}: {found.why}" for points in groups for found in [forecast(points, 2 * n_rows)]]


class _Remembering:
    """An encoder that embeds every text once."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self._encoder = encoder
        self._known: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= dict(zip(new, self._encoder.embed(new), strict=True))
        return np.stack([self._known[text] for text in texts])


class _Linear:
    """A linear rung fitted on parts."""

    def __init__(self, project: Project, kind: Any) -> None:
        self.project, self.kind = project, kind
        self.encoder: Any = None
        if kind == "encoder":
            self.encoder = _Remembering(SentenceEncoder(find_weights(project.file.small.encoder)))

    def accuracy(self, part: Dataset) -> Estimate:
        """Share of right answers on the test rows."""
        scorer = LinearClassifier.fit(self.kind, part, self.project.task, encoder=self.encoder)
        examples = self.project.rows.test.examples
        labels = self.project.task.closed
        said = [labels[int(np.argmax(s.log_probabilities))] for s in scorer.score([e.text for e in examples])]
        return wilson(sum(answer in e.golds for answer, e in zip(said, examples, strict=True)), len(examples))


class _FineTuned:
    """The small model fine-tuned on parts; the weights of a part are thrown away once it is measured."""

    def __init__(self, project: Project, run_folder: RunFolder) -> None:
        self.project, self.folder = project, run_folder.folder / "learning"

    def accuracy(self, part: Dataset) -> Estimate:
        """Share of right answers on at most MOST_TEST_ROWS test rows."""
        from smallfirst.training.recipes.recipe import TaskRecipe
        from smallfirst.training.run import train

        file, folder = self.project.file, self.folder / str(len(part))
        config = part_config(file.small.training, len(part), len(self.project.rows.train))
        name = f"learning-{len(part)}"
        with runs.open_run(file.name, name, params={"n_train": len(part)}) as tracked:
            train(
                TaskRecipe(self.project.task, part, self.project.rows.selection),
                config,
                base=(file.small.base, find_weights(file.small.base)),
                tracked=tracked,
                folder=folder,
            )
        found = asyncio.run(self._measured(folder / "model"))
        shutil.rmtree(folder)
        return found

    async def _measured(self, folder: Path) -> Estimate:
        model = load_model(folder)
        measuring = EvaluationSetup(
            self.project.task, sample_rows(self.project.rows.test, MOST_TEST_ROWS), split="test"
        )
        found = await evaluate(model, measuring, candidate="small")
        await model.aclose()
        return found.accuracy


def part_config(config: TrainConfig, n_part: int, n_whole: int) -> TrainConfig:
    """The settings for a part: as many steps as for the whole, but at most MOST_EPOCHS passes over it."""
    duration = parse_duration(config.duration)
    epochs = duration.amount if duration.unit == "ep" else 1
    return config.model_copy(update={"duration": f"{min(MOST_EPOCHS, math.ceil(epochs * n_whole / n_part))}ep"})
