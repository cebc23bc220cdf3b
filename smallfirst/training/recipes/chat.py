"""Lessons without a task: conversations in the model's own chat template, and plain text to go on from.

A conversation is written by the template that will ask the model later, so training and serving cannot differ. Only the
last answer and the token that ends it are learnt. The price: a row that the template writes differently once its answer
follows, or that is too long, is refused by line; nothing is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.errors import DataError, Problem, TrainingError
from smallfirst.models.local.chat_template import end_of_turn_token
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.chat import Chat
from smallfirst.training.backend import CausalBackend
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.recipe import PreparedData
from smallfirst.training.validation import ValidationResult
from smallfirst.training.validation_loss import ValidationCallback, generate_samples, no_callback, validate_loss

IM_END = "<|im_end|>"
_CHATML = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + END + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ChatRecipe(NamedTuple):
    """Conversations to learn the last answer of; a prompt with its response is one of two turns."""

    name: str
    train_rows: Dataset
    evaluation: Dataset | None = None
    """Rows whose mean loss chooses the best epoch; None: the last epoch is kept."""
    eval_prompts: tuple[str, ...] = ()
    """Answered after each epoch, for a person to read."""
    on_validation: ValidationCallback = no_callback
    """Hears the figures and answers of each epoch."""

    @property
    def study(self) -> CausalBackend:
        """As a causal model."""
        return CausalBackend()

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        """The rows in tokens; a tokenizer without a chat template is given one.

        Raises DataError naming every row that cannot be trained on or judged by, TrainingError without an end token.
        """
        ensure_chat_template(tokenizer)
        return _prepared(self, tokenizer, config, base)

    def exam(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult | None:
        """Minus the mean loss on the evaluation rows."""
        rows, _ = (
            encode_conversations(self.evaluation, tokenizer, max_tokens=manifest.max_tokens)
            if self.evaluation
            else ([], [])
        )
        return _judge(self, rows, model, tokenizer, manifest)


class PretrainingRecipe(NamedTuple):
    """Text to go on from (continued pre-training): every token is learnt."""

    name: str
    train_rows: Dataset
    evaluation: Dataset | None = None
    """Texts whose mean loss chooses the best epoch; None: the last epoch is kept."""
    eval_prompts: tuple[str, ...] = ()
    """Gone on from after each epoch, for a person to read."""
    on_validation: ValidationCallback = no_callback
    """Hears the figures and continuations of each epoch."""

    @property
    def study(self) -> CausalBackend:
        """As a causal model."""
        return CausalBackend()

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        """The texts in windows of `max_seq_tokens`. Raises DataError for rows that are no texts."""
        _check_end(tokenizer, base)
        problems = [p for data in (self.train_rows, self.evaluation) for p in _not_texts(data)]
        if problems:
            raise DataError("continued pre-training takes rows of text alone:", problems)
        rows = text_windows(self.train_rows, tokenizer, max_tokens=config.max_seq_tokens)
        return PreparedData(rows, _manifest(self.name, config, base))

    def exam(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult | None:
        """Minus the mean loss on the evaluation texts."""
        rows = text_windows(self.evaluation, tokenizer, max_tokens=manifest.max_tokens) if self.evaluation else []
        return _judge(self, rows, model, tokenizer, manifest)


def ensure_chat_template(tokenizer: Any) -> None:
    """Nothing back; a tokenizer that has no chat template now writes ChatML, each turn ended by a token it knows."""
    _check_end(tokenizer, "the base model")
    if not tokenizer.chat_template:
        end = IM_END if IM_END in tokenizer.get_vocab() else tokenizer.eos_token
        tokenizer.chat_template = _CHATML.replace("END", repr(end))


def encode_conversation(example: Example, tokenizer: Any, end: int) -> TokenizedRow | str:
    """The conversation in tokens, its last answer and `end` being the targets, or the rule it breaks."""
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


def encode_conversations(data: Dataset, tokenizer: Any, *, max_tokens: int) -> tuple[list[TokenizedRow], list[Problem]]:
    """The rows that can be learnt, and what is wrong with the others."""
    end, rows, problems = end_of_turn_token(tokenizer), [], []
    for example in data.examples:
        found = (
            encode_conversation(example, tokenizer, end)
            if example.messages
            else "text alone: there is no answer to learn"
        )
        if not isinstance(found, str) and len(found.ids) > max_tokens:
            found = f"{len(found.ids)} tokens; the limit is {max_tokens} (max_seq_tokens, context_length)"
        if isinstance(found, str):
            problems.append(Problem(example.path, example.line, found))
        else:
            rows.append(found)
    return rows, problems


def text_windows(data: Dataset, tokenizer: Any, *, max_tokens: int) -> list[TokenizedRow]:
    """The texts, joined by the end token, in windows of at most `max_tokens` tokens.

    A window begins with the last token of the one before, so each token of each text is a target exactly once. What
    stands before a text in its window is read with it, though it is another text.
    """
    end = int(tokenizer.eos_token_id)
    stream = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end]
    for example in data.examples:
        stream += [*tokenizer.encode(example.answer, add_special_tokens=False), end]
    starts = range(0, len(stream) - 1, max_tokens - 1)
    return [TokenizedRow(tuple(stream[at : at + max_tokens]), 1) for at in starts]


def _joined(tokenizer: Any, prompt: str, whole: str) -> tuple[list[int], list[int]] | None:
    """Tokens of the prompt and of what follows it; None if the prompt is no prefix of the whole.

    The prompt's own tokens always come first, as they do when the model is asked. Where its last one would merge with
    the answer's first (a line break with another), what follows is encoded by itself, if that gives the same text.
    """
    head: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    all_of_it: list[int] = tokenizer.encode(whole, add_special_tokens=False)
    if all_of_it[: len(head)] == head:
        return head, all_of_it[len(head) :]
    if not whole.startswith(prompt):
        return None
    rest: list[int] = tokenizer.encode(whole[len(prompt) :], add_special_tokens=False)
    same = tokenizer.decode([*head, *rest]) == tokenizer.decode(all_of_it)
    return (head, rest) if same else None


def _prepared(lesson: ChatRecipe, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
    parts = [data for data in (lesson.train_rows, lesson.evaluation) if data is not None]
    read = [encode_conversations(data, tokenizer, max_tokens=config.max_seq_tokens) for data in parts]
    if problems := [problem for _, found in read for problem in found]:
        raise DataError(
            f"{len(problems)} of {sum(map(len, parts))} rows cannot be used:",
            problems,
            hint="mend or remove these lines; for long ones raise max_seq_tokens (context_length)",
        )
    return PreparedData(read[0][0], _manifest(lesson.name, config, base))


def _manifest(name: str, config: TrainConfig, base: str) -> Manifest:
    return Manifest(kind="chats", task=Chat(name=name), base=base, max_tokens=config.max_seq_tokens)


def _judge(
    lesson: ChatRecipe | PretrainingRecipe, rows: Sequence[TokenizedRow], model: Any, tokenizer: Any, manifest: Manifest
) -> ValidationResult | None:
    exam, figures = validate_loss(model, rows, manifest) if rows else (None, {})
    samples = generate_samples(model, tokenizer, lesson.eval_prompts, max_tokens=manifest.max_tokens)
    lesson.on_validation(figures, samples)
    return exam


def _check_end(tokenizer: Any, base: str) -> None:
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            f"the tokenizer of {base} has no end token, so the model could never learn to stop",
            hint="set eos_token in its tokenizer_config.json",
        )


def _not_texts(data: Dataset | None) -> list[Problem]:
    rule = "has an answer: use chat or instruction fine-tuning for it"
    return [Problem(e.path, e.line, rule) for e in (data.examples if data else ()) if e.messages]
