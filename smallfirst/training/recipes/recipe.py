"""What a run learns and how it is judged: the rows as tokens, the manifest of the model, the exam after each epoch.

`train()` knows no task; it is handed a Lesson. This one teaches a task of task.yaml.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from smallfirst.data.dataset import Dataset
from smallfirst.models.local.label_tokens import choose_codes
from smallfirst.models.manifest import Manifest
from smallfirst.tasks import AnyTask
from smallfirst.training.backend import Causal, Study
from smallfirst.training.batches import Row, label_rows, text_rows
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.distillation import Distilled
from smallfirst.training.recipes.teacher import Teacher
from smallfirst.training.validation import Exam, code_exam, writing_exam


class Prepared(NamedTuple):
    """A lesson in the tokens of one base model."""

    rows: list[Any]
    """What is trained on, in the rows of its Study."""
    manifest: Manifest
    """What the model's folder will tell; an exam may add a calibration."""


class Lesson(Protocol):
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
    def study(self) -> Study:
        """How the kind of model learns."""
        ...

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> Prepared:
        """The rows in tokens. Raises DataError naming every row that cannot be trained on."""
        ...

    def exam(self, model: Any, tokenizer: Any, manifest: Manifest) -> Exam | None:
        """What the model is worth now; None if there is nothing to judge it by."""
        ...


class TaskLesson(NamedTuple):
    """A task, its rows, the selection rows by which the best epoch is chosen, and a teacher if there is one."""

    task: AnyTask
    train_rows: Dataset
    selection: Dataset
    teacher: Teacher | None = None

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name

    @property
    def study(self) -> Causal:
        """As a causal model, beside its teacher if it has one."""
        return Distilled(self.teacher, self.task) if self.teacher else Causal()

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> Prepared:
        """A closed answer is one code token, any other is written out. Raises DataError as Lesson says."""
        most, closed = config.max_seq_tokens, self.task.closed
        codes = choose_codes(closed, tokenizer) if closed else ()
        kind = "codes" if closed else "writes"
        manifest = Manifest(kind=kind, task=self.task, base=base, codes=codes, max_tokens=most)
        if closed:
            rows: list[Row] = label_rows(self.train_rows, self.task, codes=codes, tokenizer=tokenizer, max_tokens=most)
        else:
            rows = text_rows(self.train_rows, self.task, tokenizer=tokenizer, max_tokens=most)
        return Prepared(rows, manifest)

    def exam(self, model: Any, tokenizer: Any, manifest: Manifest) -> Exam:
        """Mean score on the selection rows."""
        examine = code_exam if self.task.closed else writing_exam
        return examine(model, tokenizer, manifest, self.selection)
