"""The small language model: after fine-tuning and, on request, as published."""

from __future__ import annotations

from smallfirst.models.catalog import find_weights
from smallfirst.models.few_shot import PromptedModel, fixed_shots
from smallfirst.models.protocol import Model
from smallfirst.path.candidates.fine_tune import fine_tune
from smallfirst.path.project.candidate_registry import FINE_TUNED
from smallfirst.path.project.candidates import Candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import TaskFile


class BaseModel(Candidate):
    """The base model with the task in its prompt. Measured only where task.yaml lists it."""

    name = "base"
    title = "untrained small model"
    role = "a small language model before fine-tuning"
    explanation = "a small language model as it was published, for comparison"
    size = 40
    promotable = False
    is_language_model = True

    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Do nothing: the model is measured as it was published."""

    def load(self, project: Project, run_folder: RunFolder) -> Model:
        """Return the base model with the task's instructions in its prompt, and with solved rows for open answers.

        JSON is generated under its schema.
        """
        file, task = project.file, project.task
        folder, name, price = find_weights(file.small.base), file.small.base, file.prices.machine
        from smallfirst.models.generation.generator import Generator
        from smallfirst.models.generation.model import GenerativeModel

        generator = Generator.load(folder, chat=True)
        inner = GenerativeModel.published(generator, name=name, price=price, schema=task.answer_schema())
        shots = () if task.closed else fixed_shots(project.rows.train, task, 1)
        return PromptedModel(inner, task, shots=shots, max_tokens=task.max_answer_tokens)

    def max_test_rows(self, file: TaskFile) -> int | None:
        """Return `small.sample_base`: with the instructions in every prompt this model is slow."""
        return file.small.sample_base


class FineTunedModel(Candidate):
    """The fine-tuned small language model."""

    name = FINE_TUNED
    title = "fine-tuned small model"
    role = "a small language model after fine-tuning"
    explanation = "a small language model, trained further on your rows"
    size = 50
    promise = 15  # no measured set has shown it ahead of an encoder that suits the task; where none does, it is alone
    folder = "model"
    measured_by_default = True
    training_setting = "training"
    is_language_model = True

    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Fine-tune and keep the best epoch."""
        from smallfirst.training.recipe import TaskRecipe

        file, rows = project.file, project.rows
        recipe = TaskRecipe(project.task, rows.train, rows.selection)
        fine_tune(
            project,
            recipe,
            file.small.training,
            base=file.small.base,
            folder=run_folder.path,
            run_name=run_folder.path.name,
        )


BASE, SMALL = BaseModel(), FineTunedModel()
