"""Sentence encoders after fine-tuning: with a linear head, or to mark fields or an answer in the text.

Each is tracked in an MLflow run of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from smallfirst.data.dataset import sample_rows
from smallfirst.models.catalog import find_weights
from smallfirst.models.manifest import read_manifest
from smallfirst.models.spans.alignment import learn_plan
from smallfirst.pipeline.candidates.linear import calibrate
from smallfirst.pipeline.train import choose_precision, fine_tune
from smallfirst.project.candidates import Candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.tasks.answer import Answer, split_context
from smallfirst.tasks.extract import Extract

if TYPE_CHECKING:
    from smallfirst.training.recipes.recipe import Recipe

MAX_ROWS = 1000
"""Training rows from which is judged whether values stand in the texts; every stage of a run asks."""
MIN_SHARE = 0.9
"""Least share of the answers that stand in their context."""

_JUDGED: dict[tuple[str, str], str] = {}
"""Why a task's fields cannot be marked, by the task and the fingerprint of its rows."""


class TunedEncoder(Candidate):
    """A sentence encoder after fine-tuning."""

    size = 30
    measured_by_default = True
    encoder_setting: Literal["", "encoder", "larger_encoder"] = "encoder"
    training_setting = "encoder_training"

    @property
    def folder(self) -> str:
        return f"{self.name}/model"

    @abstractmethod
    def recipe(self, project: Project) -> Recipe:
        """Return what it learns from."""

    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Fine-tune on the training rows and keep the epoch that is best on the selection rows."""
        from smallfirst.training.recipes.contrastive import with_learning_rate

        small, folder = project.file.small, run_folder.model_folder(self.name)
        base, run_name = self.encoder_name(small), f"{run_folder.path.name}-{self.name}"
        config = with_learning_rate(small.encoder_training, find_weights(base, log=project.progress.log))
        fine_tune(project, self.recipe(project), config, base=base, folder=folder.parent, run_name=run_name)
        self.finish(project, folder)

    def finish(self, project: Project, folder: Path) -> None:
        """Complete the model in `folder`."""


class _Tuned(TunedEncoder):
    name = "tuned"
    title = "fine-tuned sentence embeddings"
    role = "sentence embeddings after fine-tuning"
    explanation = "as sentence embeddings + linear, with the small model trained further on your rows"
    headline = "Fine-tuned sentence embeddings are good enough."
    closed_answers_only = True
    several_labels = True

    def recipe(self, project: Project) -> Recipe:
        from smallfirst.training.recipes.contrastive import EncoderRecipe

        return EncoderRecipe(project.task, project.rows.train, project.rows.selection)

    def finish(self, project: Project, folder: Path) -> None:
        from smallfirst.models.linear.classifier import LinearClassifier

        choose_precision(project, folder)
        if getattr(project.task, "other", None) is not None:
            manifest = read_manifest(folder)
            calibrate(project, LinearClassifier.load(folder, manifest), manifest, folder)


class _LargerTuned(_Tuned):
    name = "larger_tuned"
    title = "larger fine-tuned sentence embeddings"
    role = "the embeddings of a larger sentence encoder after fine-tuning"
    explanation = "as fine-tuned sentence embeddings, with a published model of five times the size"
    headline = "Larger fine-tuned sentence embeddings are good enough."
    size = 32
    measured_by_default = False
    encoder_setting = "larger_encoder"


class _Tagger(TunedEncoder):
    name = "tagger"
    title = "tagger"
    role = "a small encoder that marks the fields in the text"
    explanation = (
        "marks the words that each field holds; writes nothing, so it is many times faster than a language model"
    )
    headline = "Marking the fields in the text is enough here."

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

    def recipe(self, project: Project) -> Recipe:
        from smallfirst.training.recipes.tagging import TaggingRecipe

        return TaggingRecipe(cast(Extract, project.task), project.rows.train, project.rows.selection)


class _Reader(TunedEncoder):
    name = "reader"
    title = "answer marked in the context"
    role = "an encoder that marks the answer in the context"
    explanation = "marks the words of the context that answer the question, or says that none do; it writes nothing"
    headline = "An encoder that marks the answer is good enough."

    def why_unsuitable(self, project: Project) -> str:
        """Return why it cannot be used: another kind of task, or answers that do not stand in their contexts."""
        from smallfirst.models.spans.occurrences import occurrences

        task = project.task
        if not isinstance(task, Answer) or task.choices:
            other = "has a closed set of answers" if project.task.closed else f"is of kind {project.file.kind}"
            return f"it marks answers to questions in their contexts; this task {other}"
        rows = sample_rows(project.rows.train, MAX_ROWS).examples
        answered = [e for e in rows if any(not task.abstains(gold) for gold in e.golds)]
        without = sum(not split_context(e.text)[0] for e in rows)
        if without > (1 - MIN_SHARE) * len(rows):
            return f"it marks answers in a context; {without} of {len(rows)} training rows have none"
        inside = sum(any(occurrences(gold, split_context(e.text)[0]) for gold in e.golds) for e in answered)
        if answered and inside >= MIN_SHARE * len(answered):
            return ""
        return (
            f"it marks answers in their contexts; {inside / max(1, len(answered)):.0%} of {len(answered)} training "
            f"answers stand there word for word, at least {MIN_SHARE:.0%} must"
        )

    def recipe(self, project: Project) -> Recipe:
        from smallfirst.training.recipes.reading import ReadingRecipe

        return ReadingRecipe(cast(Answer, project.task), project.rows.train, project.rows.selection)


TUNED, LARGER_TUNED, TAGGER, READER = _Tuned(), _LargerTuned(), _Tagger(), _Reader()
