"""What a run learns from and how it is validated: rows as tokens, the model's manifest, a score after each epoch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from smallfirst.data.dataset import Dataset
from smallfirst.models.local.tokenizer import choose_label_tokens
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.task import Task
from smallfirst.training.batches import encode_label_rows, encode_text_rows
from smallfirst.training.config import TrainConfig

if TYPE_CHECKING:  # these load PyTorch
    from smallfirst.training.loop import Backend
    from smallfirst.training.validation import ValidationResult


T = TypeVar("T", bound=Task)


class PreparedData(NamedTuple):
    """The rows of a recipe in the tokens of one base model."""

    rows: list[Any]
    """Training rows, of the type that the recipe's Backend takes."""
    manifest: Manifest
    """Manifest of the model to be; validation may add a calibration."""


def are_json_objects(rows: Dataset) -> bool:
    """Return True if most answers are JSON objects."""
    return 2 * sum(map(_is_json_object, (example.answer for example in rows.examples))) > len(rows)


class Recipe(Protocol):
    """What a run learns from."""

    @property
    def name(self) -> str: ...

    @property
    def train_rows(self) -> Dataset: ...

    @property
    def backend(self) -> Backend: ...

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        """Return the rows in tokens. Raise DataError naming every row that cannot be trained on."""

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult | None:
        """Return the score of the model as it is now; None if there is nothing to validate on."""


class RowsOfTask(Generic[T]):
    """A task, its rows, and the selection rows that choose the best epoch."""

    def __init__(self, task: T, train_rows: Dataset, selection: Dataset) -> None:
        self.task, self.train_rows, self.selection, self.name = task, train_rows, selection, task.name


class TaskRecipe(RowsOfTask[Task]):
    """A task that a causal model learns."""

    @property
    def backend(self) -> Backend:
        from smallfirst.training.causal_lm import CausalBackend

        return CausalBackend()

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        max_tokens, labels = config.max_seq_tokens, self.task.closed
        if labels:
            codes = choose_label_tokens(labels, tokenizer)
            rows = encode_label_rows(
                self.train_rows, self.task, codes=codes, tokenizer=tokenizer, max_tokens=max_tokens
            )
            manifest = Manifest(
                kind="label_tokens", task=self.task, base=base, label_tokens=codes, max_tokens=max_tokens
            )
        else:
            rows = encode_text_rows(self.train_rows, self.task, tokenizer=tokenizer, max_tokens=max_tokens)
            writes_json = self.task.answer_schema() is not None or are_json_objects(self.train_rows)
            manifest = Manifest(
                kind="generative", task=self.task, base=base, writes_json=writes_json, max_tokens=max_tokens
            )
        return PreparedData(rows, manifest)

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult:
        from smallfirst.training.validation import validate_generation, validate_labels

        validate = validate_labels if self.task.closed else validate_generation
        return validate(model, tokenizer, manifest, self.selection)


def _is_json_object(text: str) -> bool:
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except ValueError:
        return False
