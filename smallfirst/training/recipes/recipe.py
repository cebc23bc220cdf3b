"""What a run learns and how it is judged: the rows as tokens, the manifest of the model, the exam after each epoch.

`train()` knows no task; it is handed a Lesson. This one teaches a task of task.yaml.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from smallfirst.data.dataset import Dataset
from smallfirst.models.local.label_tokens import choose_label_tokens
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.task import Task
from smallfirst.training.backend import Backend, CausalBackend
from smallfirst.training.batches import TokenizedRow, encode_label_rows, encode_text_rows
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.distillation import DistillationBackend
from smallfirst.training.recipes.teacher import TeacherConfig
from smallfirst.training.validation import ValidationResult, validate_generation, validate_labels


class PreparedData(NamedTuple):
    """A lesson in the tokens of one base model."""

    rows: list[Any]
    """What is trained on, in the rows of its Study."""
    manifest: Manifest
    """What the model's folder will tell; an exam may add a calibration."""


class Recipe(Protocol):
    """What a run learns."""

    @property
    def name(self) -> str:
        """Name of the task or of the run."""
        ...

    @property
    def train_rows(self) -> Dataset:
        """The rows as they were read."""
        ...

    @property
    def study(self) -> Backend:
        """How the kind of model learns."""
        ...

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        """The rows in tokens. Raises DataError naming every row that cannot be trained on."""
        ...

    def exam(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult | None:
        """What the model is worth now; None if there is nothing to judge it by."""
        ...


class TaskRecipe(NamedTuple):
    """A task, its rows, the selection rows by which the best epoch is chosen, and a teacher if there is one."""

    task: Task
    train_rows: Dataset
    selection: Dataset
    teacher: TeacherConfig | None = None

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name

    @property
    def study(self) -> CausalBackend:
        """As a causal model, beside its teacher if it has one."""
        return DistillationBackend(self.teacher, self.task) if self.teacher else CausalBackend()

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        """A closed answer is one code token, any other is written out. Raises DataError as Lesson says."""
        most, closed = config.max_seq_tokens, self.task.closed
        codes = choose_label_tokens(closed, tokenizer) if closed else ()
        kind = "codes" if closed else "writes"
        manifest = Manifest(kind=kind, task=self.task, base=base, codes=codes, max_tokens=most)
        if closed:
            rows: list[TokenizedRow] = encode_label_rows(
                self.train_rows, self.task, codes=codes, tokenizer=tokenizer, max_tokens=most
            )
        else:
            rows = encode_text_rows(self.train_rows, self.task, tokenizer=tokenizer, max_tokens=most)
        return PreparedData(rows, manifest)

    def exam(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult:
        """Mean score on the selection rows."""
        examine = validate_labels if self.task.closed else validate_generation
        return examine(model, tokenizer, manifest, self.selection)
