"""A sentence encoder fine-tuned to mark fields in the text, for extraction where the values stand there."""

from __future__ import annotations

from typing import cast

from smallfirst.data.dataset import sample_rows
from smallfirst.models.catalog import find_weights
from smallfirst.models.spans.alignment import learn_plan
from smallfirst.pipeline.train import fine_tune
from smallfirst.project.candidates import Candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.tasks.extract import Extract

MAX_ROWS = 1000
"""Training rows from which is judged whether the values stand in the texts."""


_JUDGED: dict[tuple[str, str], str] = {}
"""Why a task's fields cannot be marked, by the task and the fingerprint of its rows: every stage asks again."""


class Tagger(Candidate):
    """An encoder that marks the fields of an answer."""

    name = "tagger"
    title = "tagger"
    role = "a small encoder that marks the fields in the text"
    explanation = (
        "marks the words that each field holds; writes nothing, so it is many times faster than a language model"
    )
    headline = "Marking the fields in the text is enough here."
    size = 30
    folder = "tagger/model"
    measured_by_default = True
    encoder_setting = "encoder"
    training_setting = "encoder_training"

    def why_unsuitable(self, project: Project) -> str:
        """Return why the fields cannot be marked; found out from the training rows."""
        task = project.task
        if not isinstance(task, Extract):
            return f"it marks fields of kind extract; this task is of kind {project.file.kind}"
        train = project.rows.train
        key = (task.model_dump_json(), train.content_fingerprint)
        if key not in _JUDGED:
            _JUDGED[key] = learn_plan(task, sample_rows(train, MAX_ROWS).examples)[1]
        return f"{_JUDGED[key]}: that needs writing, which small does" if _JUDGED[key] else ""

    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Fine-tune on the training rows and keep the epoch that is best on the selection rows."""
        from smallfirst.training.recipes.contrastive import with_learning_rate
        from smallfirst.training.recipes.tagging import TaggingRecipe

        small, base, rows = project.file.small, self.encoder_name(project.file.small), project.rows
        recipe = TaggingRecipe.of(cast(Extract, project.task), rows.train, rows.selection)
        config = with_learning_rate(small.encoder_training, find_weights(base, log=project.progress.log))
        folder = run_folder.model_folder(self.name).parent
        fine_tune(project, recipe, config, base=base, folder=folder, run_name=f"{run_folder.path.name}-{self.name}")


TAGGER = Tagger()
