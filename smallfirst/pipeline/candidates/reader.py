"""The answer to a question marked in its context, tracked in an MLflow run of its own."""

from __future__ import annotations

from typing import cast

from smallfirst.data.dataset import sample_rows
from smallfirst.models.catalog import find_weights
from smallfirst.pipeline.train import fine_tune
from smallfirst.project.candidates import Candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.tasks.answer import Answer, split_context

MIN_SHARE = 0.9
"""Least share of the answers that stand in their context."""
MAX_ROWS = 1000
"""Training rows from which that is judged; every stage of a run asks."""


class ContextReader(Candidate):
    """A sentence encoder fine-tuned to mark the answer to a question in its context."""

    name = "reader"
    title = "answer marked in the context"
    role = "an encoder that marks the answer in the context"
    explanation = "marks the words of the context that answer the question, or says that none do; it writes nothing"
    headline = "An encoder that marks the answer is good enough."
    size = 30
    folder = "reader/model"
    measured_by_default = True
    encoder_setting = "encoder"
    training_setting = "encoder_training"

    def why_unsuitable(self, project: Project) -> str:
        """Return why it cannot be used: another kind of task, or answers that do not stand in their contexts."""
        task = project.task
        if not isinstance(task, Answer) or task.choices:
            other = "has a closed set of answers" if project.task.closed else f"is of kind {project.file.kind}"
            return f"it marks answers to questions in their contexts; this task {other}"
        rows = sample_rows(project.rows.train, MAX_ROWS).examples
        answered = [e for e in rows if any(not task.abstains(gold) for gold in e.golds)]
        without = sum(not split_context(e.text)[0] for e in rows)
        if without > (1 - MIN_SHARE) * len(rows):
            return f"it marks answers in a context; {without} of {len(rows)} training rows have none"
        from smallfirst.models.spans.occurrences import occurrences

        inside = sum(any(occurrences(gold, split_context(e.text)[0]) for gold in e.golds) for e in answered)
        if not answered or inside < MIN_SHARE * len(answered):
            share = inside / max(1, len(answered))
            return (
                f"it marks answers in their contexts; {share:.0%} of {len(answered)} training answers stand there "
                f"word for word, at least {MIN_SHARE:.0%} must"
            )
        return ""

    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Fine-tune on the training rows and keep the epoch that is best on the selection rows."""
        from smallfirst.training.recipes.contrastive import with_learning_rate
        from smallfirst.training.recipes.reading import ReadingRecipe

        small, rows, base = project.file.small, project.rows, self.encoder_name(project.file.small)
        recipe = ReadingRecipe(cast(Answer, project.task), rows.train, rows.selection)
        config = with_learning_rate(small.encoder_training, find_weights(base, log=project.progress.log))
        folder = run_folder.model_folder(self.name).parent
        fine_tune(project, recipe, config, base=base, folder=folder, run_name=f"{run_folder.path.name}-{self.name}")


READER = ContextReader()
