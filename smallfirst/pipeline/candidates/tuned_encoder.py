"""The sentence encoder fine-tuned together with a linear head, tracked in an MLflow run of its own."""

from __future__ import annotations

from smallfirst.pipeline.train import fine_tune
from smallfirst.project.candidates import Candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder


class TunedEncoder(Candidate):
    """A sentence encoder after fine-tuning. Measured only where task.yaml lists it."""

    name = "tuned"
    title = "fine-tuned sentence embeddings"
    role = "sentence embeddings after fine-tuning"
    explanation = "as sentence embeddings + linear, with the small model trained further on your rows"
    headline = "Fine-tuned sentence embeddings are good enough."
    size = 30
    folder = "tuned/model"
    closed_answers_only = True

    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Fine-tune on the training rows and keep the epoch that is best on the selection rows."""
        from smallfirst.training.recipes.contrastive import EncoderRecipe

        small = project.file.small
        recipe = EncoderRecipe(project.task, project.rows.train, project.rows.selection)
        folder = run_folder.model_folder(self.name).parent
        run_name = f"{run_folder.path.name}-{self.name}"
        fine_tune(project, recipe, small.encoder_training, base=small.encoder, folder=folder, run_name=run_name)


TUNED = TunedEncoder()
