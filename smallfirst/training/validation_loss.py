"""The exam of a lesson whose answers nothing scores: mean loss on rows kept apart, and answers for a person to read.

Loss says how surprised the model is by the right answers; it is comparable between epochs of one run, not between
tokenizers. It costs a forward pass over the rows, about a third of a training step each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from smallfirst.data.dataset import Message
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.sequence import GenerationRequest
from smallfirst.models.local.chat_template import encode_chat, end_of_turn_token
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.manifest import Manifest
from smallfirst.training.batches import TokenizedRow, micro_batches
from smallfirst.training.loss import target_loss
from smallfirst.training.validation import ValidationResult

VALIDATION_BATCH_TOKENS = 2048
"""Tokens of the rows judged in one forward pass, padding included."""
MAX_SAMPLE_TOKENS = 256
"""Most tokens of an answer that is written for a person to read."""


class Sample(NamedTuple):
    """What the model wrote, for a person to read."""

    prompt: str
    answer: str


class ValidationCallback(Protocol):
    """Called after each epoch."""

    def __call__(self, figures: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """`figures` by name, empty without evaluation rows; `samples` in the order of the prompts."""


def no_callback(figures: Mapping[str, float], samples: Sequence[Sample]) -> None:
    """Nothing back, and nothing done: nobody listens."""


def validate_loss(
    model: Any, rows: Sequence[TokenizedRow], manifest: Manifest
) -> tuple[ValidationResult, dict[str, float]]:
    """The exam, its value being the mean loss in nats with its sign turned, and the figures to report."""
    loss = mean_loss(model, rows)
    figures = {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 50))}
    return ValidationResult(-loss, manifest, "minus_eval_loss"), figures


@torch.inference_mode()
def mean_loss(model: Any, rows: Sequence[TokenizedRow]) -> float:
    """Mean cross-entropy over all target tokens of the rows, in nats."""
    parts = micro_batches(sorted(rows, key=lambda row: len(row.ids)), VALIDATION_BATCH_TOKENS)
    total = math.fsum(float(target_loss(model, part)) for part in parts)
    return total / sum(len(row.ids) - row.n_prompt for row in rows)


def generate_samples(model: Any, tokenizer: Any, prompts: Sequence[str], *, max_tokens: int) -> list[Sample]:
    """The likeliest answer to each prompt, asked as the model will be: through its chat template if it has one."""
    if not prompts:
        return []
    requests = [GenerationRequest(_prompt_ids(tokenizer, prompt, max_tokens), MAX_SAMPLE_TOKENS) for prompt in prompts]
    written = Generator(model, tokenizer, end=end_of_turn_token(tokenizer)).generate(requests)
    return [Sample(prompt, answer.text.strip()) for prompt, answer in zip(prompts, written, strict=True)]


def _prompt_ids(tokenizer: Any, prompt: str, max_tokens: int) -> list[int]:
    if tokenizer.chat_template:
        return encode_chat(tokenizer, [Message(role="user", content=prompt)], max_tokens=max_tokens)
    return encode_prompt(tokenizer, prompt, max_tokens)
