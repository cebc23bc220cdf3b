"""A sentence encoder fine-tuned together with a linear head, tracked in an MLflow run of its own."""

from __future__ import annotations

from smallfirst.models.catalog import find_weights
from smallfirst.models.manifest import read_manifest
from smallfirst.pipeline.candidates.linear import calibrate
from smallfirst.pipeline.train import choose_precision, fine_tune
from smallfirst.project.candidates import Candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder


class TunedEncoder(Candidate):
    """A sentence encoder after fine-tuning."""

    closed_answers_only = True
    training_setting = "encoder_training"

    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Fine-tune on the training rows and keep the epoch that is best on the selection rows."""
        from smallfirst.models.linear.classifier import LinearClassifier
        from smallfirst.training.recipes.contrastive import EncoderRecipe, with_learning_rate

        small, base = project.file.small, self.encoder_name(project.file.small)
        recipe = EncoderRecipe(project.task, project.rows.train, project.rows.selection)
        config = with_learning_rate(small.encoder_training, find_weights(base, log=project.progress.log))
        folder = run_folder.model_folder(self.name).parent
        fine_tune(project, recipe, config, base=base, folder=folder, run_name=f"{run_folder.path.name}-{self.name}")
        choose_precision(project, run_folder.model_folder(self.name))
        if getattr(project.task, "other", None) is not None:
            model = run_folder.model_folder(self.name)
            manifest = read_manifest(model)
            calibrate(project, LinearClassifier.load(model, manifest), manifest, model)

    def why_unsuitable(self, project: Project) -> str:
        """Return why it cannot be used: only where an answer is one label or a list of labels can it be."""
        return "" if project.task.answer_labels else super().why_unsuitable(project)


class _Tuned(TunedEncoder):
    name = "tuned"
    title = "fine-tuned sentence embeddings"
    role = "sentence embeddings after fine-tuning"
    explanation = "as sentence embeddings + linear, with the small model trained further on your rows"
    headline = "Fine-tuned sentence embeddings are good enough."
    size = 30
    folder = "tuned/model"
    measured_by_default = True
    encoder_setting = "encoder"


class _LargerTuned(TunedEncoder):
    name = "larger_tuned"
    title = "larger fine-tuned sentence embeddings"
    role = "the embeddings of a larger sentence encoder after fine-tuning"
    explanation = "as fine-tuned sentence embeddings, with a published model of five times the size"
    headline = "Larger fine-tuned sentence embeddings are good enough."
    size = 32
    folder = "larger_tuned/model"
    encoder_setting = "larger_encoder"


TUNED, LARGER_TUNED = _Tuned(), _LargerTuned()
