"""What a run learns from: rows as tokens, in batches up to a token budget; the model's manifest; a score an epoch.

Recipes are found by name in RECIPES: `task`, `encoder` and `tagging` train on a task of task.yaml, `chat` on
conversations in the model's own chat template, `text` on plain text to continue. A package adds one under the
entry-point group `smallfirst.recipes`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from smallfirst.base.errors import DataError, Problem, TrainingError
from smallfirst.base.extensions import Registry
from smallfirst.data.dataset import Dataset, Example, Message, RowFormat
from smallfirst.models.local.tokenizer import choose_label_tokens, encode_prompt, end_of_turn_token
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.chat import Chat
from smallfirst.tasks.task import Task
from smallfirst.training.config import R, TokenizedRow, TrainConfig, ValidationResult

if TYPE_CHECKING:  # these load PyTorch
    from smallfirst.training.causal_lm import CausalBackend, ValidationCallback
    from smallfirst.training.loop import Backend


RECIPES: Registry[Any] = Registry(
    "smallfirst.recipes",
    {
        "task": "smallfirst.training.recipe:TaskRecipe",
        "encoder": "smallfirst.training.encoders:EncoderRecipe",
        "tagging": "smallfirst.training.marking:TaggingRecipe",
        "chat": "smallfirst.training.recipe:ChatRecipe",
        "text": "smallfirst.training.recipe:PretrainingRecipe",
    },
    noun="recipe",
)
"""Classes that make a Recipe, by name."""
NO_LIMIT = 1 << 30
"""More tokens than a row has."""


T = TypeVar("T", bound=Task)


class PreparedData(NamedTuple):
    """The rows of a recipe in the tokens of one base model."""

    rows: list[Any]
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
        from smallfirst.training.causal_lm import validate_generation, validate_labels

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
    n_objects = 0
    for example in rows.examples:
        with suppress(ValueError):
            n_objects += isinstance(json.loads(example.answer), dict)
    return 2 * n_objects > len(rows)


IM_END = "<|im_end|>"
_CHATML = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + END + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class _RowsWithEvaluation:
    """Rows without a task."""

    name: str
    train_rows: Dataset
    evaluation: Dataset | None = None
    """Rows whose mean loss chooses the best epoch; None: the last epoch is kept."""
    eval_prompts: tuple[str, ...] = ()
    """Answered or continued after each epoch, for a person to read."""
    on_validation: ValidationCallback | None = None
    """Called with the figures and answers of each epoch."""
    kind: ClassVar[Literal["chat", "text"]]

    @property
    def backend(self) -> CausalBackend:
        from smallfirst.training.causal_lm import CausalBackend

        return CausalBackend()

    def encode(self, parts: Sequence[Dataset], tokenizer: Any, max_tokens: int) -> list[list[TokenizedRow]]:
        """Return the rows of each part. Raise DataError naming every row that cannot be used."""
        raise NotImplementedError

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        """Raise DataError naming every row that cannot be used, TrainingError without an end token."""
        if tokenizer.eos_token_id is None:
            raise TrainingError(
                f"the tokenizer of {base} has no end token, so the model could never learn to stop",
                hint="set eos_token in its tokenizer_config.json",
            )
        parts = [data for data in (self.train_rows, self.evaluation) if data is not None]
        rows = self.encode(parts, tokenizer, config.max_seq_tokens)[0]
        manifest = Manifest(
            kind=self.kind,
            task=Chat(name=self.name),
            base=base,
            system=self.train_rows.system_message,
            writes_json=are_json_objects(self.train_rows),
            max_tokens=config.max_seq_tokens,
        )
        return PreparedData(rows, manifest)

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult | None:
        from smallfirst.training.causal_lm import generate_samples, mean_loss

        result, figures = None, dict[str, float]()
        if self.evaluation:
            rows = self.encode([self.evaluation], tokenizer, manifest.max_tokens)[0]
            loss = mean_loss(model, rows)
            result = ValidationResult(-loss, manifest, measure="minus_eval_loss")
            figures = {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 50))}
        samples = generate_samples(model, tokenizer, self.eval_prompts, manifest)
        if self.on_validation is not None:
            self.on_validation(figures, samples)
        return result


class ChatRecipe(_RowsWithEvaluation):
    """Conversations whose last answer is learned; a prompt with its response is a conversation of two turns."""

    kind: ClassVar[Literal["chat", "text"]] = "chat"
    row_formats: ClassVar[tuple[RowFormat, ...]] = ("chat", "prompt", "question")
    rows_in_words: ClassVar[str] = "chat messages or prompt + response"

    def encode(self, parts: Sequence[Dataset], tokenizer: Any, max_tokens: int) -> list[list[TokenizedRow]]:
        ensure_chat_template(tokenizer)
        end = end_of_turn_token(tokenizer)

        def encode(example: Example) -> TokenizedRow | str:
            if not example.messages:
                return "text alone: there is no answer to learn"
            return encode_conversation(example, tokenizer, end)

        return encode_rows(parts, encode, max_tokens=max_tokens)


class PretrainingRecipe(_RowsWithEvaluation):
    """Text to continue (continued pre-training): every token is learned."""

    kind: ClassVar[Literal["chat", "text"]] = "text"
    row_formats: ClassVar[tuple[RowFormat, ...]] = ("text",)
    rows_in_words: ClassVar[str] = "text alone"

    def encode(self, parts: Sequence[Dataset], tokenizer: Any, max_tokens: int) -> list[list[TokenizedRow]]:
        """Return the texts of each part in windows. Raise DataError for rows that have an answer."""
        rule = "has an answer: use chat or instruction fine-tuning for it"
        problems = [Problem(e.path, e.line, rule) for data in parts for e in data.examples if e.messages]
        if problems:
            raise DataError("continued pre-training takes rows of text alone:", problems)
        return [text_windows(data, tokenizer, max_tokens=max_tokens) for data in parts]


def ensure_chat_template(tokenizer: Any) -> None:
    """Give a tokenizer without a chat template that of ChatML, each turn ended by a token it knows."""
    if not tokenizer.chat_template:
        end = IM_END if IM_END in tokenizer.get_vocab() else tokenizer.eos_token
        tokenizer.chat_template = _CHATML.replace("END", repr(end))


def encode_conversation(example: Example, tokenizer: Any, end: int) -> TokenizedRow | str:
    """Return the conversation in tokens, its last answer and `end` as targets, or the rule it breaks."""
    from jinja2.exceptions import TemplateError

    asked = [message.model_dump() for message in example.messages]
    answered = [*asked, Message(role="assistant", content=example.answer).model_dump()]
    try:
        prompt: str = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        whole: str = tokenizer.apply_chat_template(answered, tokenize=False)
    except TemplateError as error:
        return f"the model's chat template refuses this conversation: {error}"
    ids = _joined(tokenizer, prompt, whole)
    if ids is None:
        return (
            "the chat template writes the conversation differently once the answer follows, so the model would be "
            "trained on a prompt that it is never asked"
        )
    prompt_ids, targets = ids
    # What a template writes after the end of the turn is never asked for.
    targets = targets[: len(targets) - targets[::-1].index(end)] if end in targets else [*targets, end]
    if len(targets) < 2:
        return "the chat template leaves nothing of the answer, so there is nothing to learn"
    return TokenizedRow((*prompt_ids, *targets), len(prompt_ids))


def text_windows(data: Dataset, tokenizer: Any, *, max_tokens: int) -> list[TokenizedRow]:
    """Return the texts, joined by the end token, in windows of at most `max_tokens` tokens that overlap by one."""
    end = int(tokenizer.eos_token_id)
    stream = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end]
    for example in data.examples:
        stream += [*tokenizer.encode(example.answer, add_special_tokens=False), end]
    starts = range(0, len(stream) - 1, max_tokens - 1)
    return [TokenizedRow(tuple(stream[at : at + max_tokens]), 1) for at in starts]


def _joined(tokenizer: Any, prompt: str, whole: str) -> tuple[list[int], list[int]] | None:
    """Return the tokens of the prompt and of what follows it; None if the prompt is not a prefix of the whole.

    The prompt's own tokens come first, as they do when the model is asked. Where its last token would merge with the
    answer's first (a line break with another), what follows is encoded by itself, if that gives the same text.
    """
    head: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    everything: list[int] = tokenizer.encode(whole, add_special_tokens=False)
    if everything[: len(head)] == head:
        return head, everything[len(head) :]
    if not whole.startswith(prompt):
        return None
    rest: list[int] = tokenizer.encode(whole[len(prompt) :], add_special_tokens=False)
    same = tokenizer.decode([*head, *rest]) == tokenizer.decode(everything)
    return (head, rest) if same else None
