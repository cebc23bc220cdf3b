"""Recipes without a task: conversations in the model's own chat template, and plain text to continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from smallfirst.base.errors import DataError, Problem, TrainingError
from smallfirst.data.dataset import Dataset, Example, Message, RowFormat
from smallfirst.models.local.tokenizer import end_of_turn_token
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.chat import Chat
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipe import PreparedData, TokenizedRow, are_json_objects, encode_rows

if TYPE_CHECKING:  # these load PyTorch
    from smallfirst.training.causal_lm import CausalBackend
    from smallfirst.training.validation import ValidationCallback, ValidationResult

IM_END = "<|im_end|>"
_CHATML = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + END + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class _RowsWithEvaluation(NamedTuple):
    name: str
    train_rows: Dataset
    evaluation: Dataset | None = None
    """Rows whose mean loss chooses the best epoch; None: the last epoch is kept."""
    eval_prompts: tuple[str, ...] = ()
    """Answered or continued after each epoch, for a person to read."""
    on_validation: ValidationCallback | None = None
    """Called with the figures and answers of each epoch."""

    @property
    def backend(self) -> CausalBackend:
        from smallfirst.training.causal_lm import CausalBackend

        return CausalBackend()

    def _manifest(self, config: TrainConfig, base: str, kind: Literal["chat", "text"]) -> Manifest:
        return Manifest(
            kind=kind,
            task=Chat(name=self.name),
            base=base,
            system=self.train_rows.system_message,
            writes_json=are_json_objects(self.train_rows),
            max_tokens=config.max_seq_tokens,
        )

    def _validate(
        self, rows: Sequence[TokenizedRow], model: Any, tokenizer: Any, manifest: Manifest
    ) -> ValidationResult | None:
        from smallfirst.training.validation import generate_samples, validate_loss

        result, figures = validate_loss(model, rows, manifest) if rows else (None, {})
        samples = generate_samples(model, tokenizer, self.eval_prompts, manifest)
        if self.on_validation is not None:
            self.on_validation(figures, samples)
        return result


class ChatRecipe(_RowsWithEvaluation):
    """Conversations whose last answer is learned; a prompt with its response is a conversation of two turns."""

    row_formats: ClassVar[tuple[RowFormat, ...]] = ("chat", "prompt", "question")
    rows_in_words: ClassVar[str] = "chat messages or prompt + response"

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        """Raise DataError naming every row that cannot be used, TrainingError without an end token."""
        ensure_chat_template(tokenizer)
        parts = [data for data in (self.train_rows, self.evaluation) if data is not None]
        rows = encode_conversations(parts, tokenizer, max_tokens=config.max_seq_tokens)[0]
        return PreparedData(rows, self._manifest(config, base, "chat"))

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult | None:
        parts = [self.evaluation] if self.evaluation else []
        rows = [r for part in encode_conversations(parts, tokenizer, max_tokens=manifest.max_tokens) for r in part]
        return self._validate(rows, model, tokenizer, manifest)


class PretrainingRecipe(_RowsWithEvaluation):
    """Text to continue (continued pre-training): every token is learned."""

    row_formats: ClassVar[tuple[RowFormat, ...]] = ("text",)
    rows_in_words: ClassVar[str] = "text alone"

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        """Return the texts in windows of `max_seq_tokens`. Raise DataError for rows that have an answer."""
        _check_end_token(tokenizer, base)
        examples = [e for data in (self.train_rows, self.evaluation) if data for e in data.examples if e.messages]
        if examples:
            rule = "has an answer: use chat or instruction fine-tuning for it"
            problems = [Problem(e.path, e.line, rule) for e in examples]
            raise DataError("continued pre-training takes rows of text alone:", problems)
        rows = text_windows(self.train_rows, tokenizer, max_tokens=config.max_seq_tokens)
        return PreparedData(rows, self._manifest(config, base, "text"))

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult | None:
        rows = text_windows(self.evaluation, tokenizer, max_tokens=manifest.max_tokens) if self.evaluation else []
        return self._validate(rows, model, tokenizer, manifest)


def ensure_chat_template(tokenizer: Any) -> None:
    """Give a tokenizer without a chat template that of ChatML, each turn ended by a token it knows."""
    _check_end_token(tokenizer, "the base model")
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


def encode_conversations(parts: Sequence[Dataset], tokenizer: Any, *, max_tokens: int) -> list[list[TokenizedRow]]:
    """Return the rows of each part. Raise DataError naming every row that cannot be trained on."""
    end = end_of_turn_token(tokenizer)

    def encode(example: Example) -> TokenizedRow | str:
        if not example.messages:
            return "text alone: there is no answer to learn"
        return encode_conversation(example, tokenizer, end)

    return encode_rows(parts, encode, max_tokens=max_tokens)


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


def _check_end_token(tokenizer: Any, base: str) -> None:
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            f"the tokenizer of {base} has no end token, so the model could never learn to stop",
            hint="set eos_token in its tokenizer_config.json",
        )
