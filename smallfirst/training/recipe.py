"""What a run learns from: rows as tokens, in batches up to a token budget; the model's manifest; a score an epoch.

Recipes are found by name in RECIPES: `task`, `encoder` and `tagging` train on a task of task.yaml, `chat` on
conversations, `text` on plain text. A package adds one under the entry-point group `smallfirst.recipes`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from smallfirst.base.errors import DataError, Problem
from smallfirst.base.extensions import Registry
from smallfirst.data.dataset import Dataset, Example
from smallfirst.models.local.tokenizer import choose_label_tokens, encode_prompt
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.task import Task
from smallfirst.training.config import TrainConfig

if TYPE_CHECKING:  # these load PyTorch
    from smallfirst.training.loop import Backend
    from smallfirst.training.validation import ValidationResult

RECIPES: Registry[Any] = Registry(
    "smallfirst.recipes",
    {
        "task": "smallfirst.training.recipe:TaskRecipe",
        "encoder": "smallfirst.training.encoders:EncoderRecipe",
        "tagging": "smallfirst.training.marking:TaggingRecipe",
        "chat": "smallfirst.training.chat:ChatRecipe",
        "text": "smallfirst.training.chat:PretrainingRecipe",
    },
    noun="recipe",
)
"""Classes that make a Recipe, by name."""
NO_LIMIT = 1 << 30
"""More tokens than a row has."""


class HasTokens(Protocol):
    """A row in tokens, of any kind of model."""

    @property
    def ids(self) -> tuple[int, ...]: ...


R = TypeVar("R", bound=HasTokens)
T = TypeVar("T", bound=Task)


class TokenizedRow(NamedTuple):
    """A row in tokens: the first `n_prompt` are the prompt, the rest are targets."""

    ids: tuple[int, ...]
    n_prompt: int


class PreparedData(NamedTuple):
    """The rows of a recipe in the tokens of one base model."""

    rows: list[Any]
    """Training rows, of the type that the recipe's Backend takes."""
    manifest: Manifest
    """Manifest of the model to be; validation may add a calibration."""


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
        task, labels, max_tokens = self.task, self.task.closed, config.max_seq_tokens
        codes = choose_label_tokens(labels, tokenizer) if labels else ()
        manifest = Manifest(
            kind="label_tokens" if labels else "generative",
            task=task,
            base=base,
            label_tokens=codes,
            writes_json=bool(labels) or task.answer_schema() is not None or are_json_objects(self.train_rows),
            max_tokens=max_tokens,
        )
        return PreparedData(encode_task_rows(self.train_rows, task, tokenizer, max_tokens, codes), manifest)

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult:
        from smallfirst.training.validation import validate_generation, validate_labels

        validate = validate_labels if self.task.closed else validate_generation
        return validate(model, tokenizer, manifest, self.selection)


def encode_task_rows(
    data: Dataset, task: Task, tokenizer: Any, max_tokens: int, codes: Sequence[int] = ()
) -> list[TokenizedRow]:
    """Return prompt and targets of each example, as `encode_rows` does.

    The target is the token of the label, given by `codes` in the order of the labels; of other answers the text and the
    end token.
    """
    code_of = dict(zip(task.closed, codes, strict=True))

    def encode(example: Example) -> TokenizedRow | str:
        prompt = encode_prompt(tokenizer, task.prompt(example.text), NO_LIMIT)
        if not code_of:
            answer = tokenizer.encode(task.target(example.answer), add_special_tokens=False)
            return TokenizedRow((*prompt, *answer, tokenizer.eos_token_id), len(prompt))
        if example.answer not in code_of:
            return f'unknown label "{example.answer}"'
        return TokenizedRow((*prompt, code_of[example.answer]), len(prompt))

    return encode_rows([data], encode, max_tokens=max_tokens)[0]


def encode_rows(parts: Sequence[Dataset], encode: Callable[[Example], R | str], *, max_tokens: int) -> list[list[R]]:
    """Return the rows that `encode` makes of each part's examples.

    Raise DataError naming every example for which it returns a broken rule, or more than `max_tokens` tokens.
    """
    rows: list[list[R]] = []
    problems: list[Problem] = []
    for data in parts:
        rows.append([])
        for example in data.examples:
            row = encode(example)
            if not isinstance(row, str) and len(row.ids) > max_tokens:
                row = f"{len(row.ids)} tokens; the limit is {max_tokens} (max_seq_tokens)"
            if isinstance(row, str):
                problems.append(Problem(example.path, example.line, row))
            else:
                rows[-1].append(row)
    if problems:
        raise DataError(
            f"{len(problems)} of {sum(map(len, parts))} rows cannot be trained on:",
            problems,
            hint="fix or remove these lines; for long ones raise max_seq_tokens (context_length)",
        )
    return rows


def are_json_objects(rows: Dataset) -> bool:
    """Return True if most answers are JSON objects."""
    return 2 * sum(_is_json_object(example.answer) for example in rows.examples) > len(rows)


def _is_json_object(text: str) -> bool:
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except ValueError:
        return False


def epoch_batches(rows: Sequence[R], *, batch_tokens: int, seed: int) -> list[list[R]]:
    """Return all rows in batches of at most `batch_tokens` tokens, padding included, in an order drawn from `seed`."""
    draw = random.Random(seed)
    noisy = sorted(rows, key=lambda row: len(row.ids) * draw.uniform(0.9, 1.1))
    batches = micro_batches(noisy, batch_tokens)
    draw.shuffle(batches)
    return batches


def micro_batches(rows: Sequence[R], max_tokens: int) -> list[list[R]]:
    """Return the rows, in order, in parts of at most `max_tokens` tokens, padding included; a longer row is alone."""
    parts: list[list[R]] = []
    width = 0
    for row in rows:
        wider = max(width, len(row.ids) - 1)
        if parts and wider * (len(parts[-1]) + 1) <= max_tokens:
            parts[-1].append(row)
            width = wider
        else:
            parts.append([row])
            width = len(row.ids) - 1
    return parts
