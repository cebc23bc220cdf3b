"""Validate a model after each epoch: its score on selection rows, and the calibration fitted on them.

A model that writes its answers is validated on a sample. Where nothing scores the answers, the mean loss on evaluation
rows stands in; it compares between epochs of one run, not between tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from smallfirst.data.dataset import Dataset
from smallfirst.measuring.calibration import accuracy_and_temperature, calibrate_answers
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.model import chat_prompt, text_prompt
from smallfirst.models.generation.sequence import GenerationRequest
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.tokenizer import encode_prompt, end_of_turn_token
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Request
from smallfirst.training.causal_lm import target_loss
from smallfirst.training.recipe import TokenizedRow, micro_batches

MAX_GENERATED_ROWS = 400
"""Selection rows whose answers are written after each epoch: the first ones, which a content hash has ordered."""
VALIDATION_BATCH_TOKENS = 2048
"""Tokens of evaluation rows in one forward pass, padding included."""
MAX_SAMPLE_TOKENS = 256
"""Most tokens of an answer that is written for a person to read."""


class ValidationResult(NamedTuple):
    """The score of a model after an epoch."""

    value: float
    """Higher is better; for a task the mean score on the selection rows, in [0, 1]."""
    manifest: Manifest
    """The manifest with the temperature or calibration fitted on these rows."""
    measure: str = "validation_score"
    """Name of `value` in MLflow and in events."""


class Sample(NamedTuple):
    """A prompt and what the model wrote, for a person to read."""

    prompt: str
    answer: str


ValidationCallback = Callable[[Mapping[str, float], Sequence[Sample]], None]
"""Called after each epoch with figures by name, empty without evaluation rows, and samples in the prompts' order."""


def validate_labels(model: Any, tokenizer: Any, manifest: Manifest, selection: Dataset) -> ValidationResult:
    """Return the accuracy of a model that answers from label probabilities, and its temperature."""
    scored = LabelScorer(model, tokenizer, manifest).score([example.text for example in selection.examples])
    accuracy, temperature = accuracy_and_temperature(scored, selection, manifest.task)
    return ValidationResult(accuracy, manifest.model_copy(update={"temperature": temperature}))


def validate_generation(model: Any, tokenizer: Any, manifest: Manifest, selection: Dataset) -> ValidationResult:
    """Return the mean score of a model that writes its answers, and its calibration; under the task's grammar."""
    task, examples = manifest.task, selection.examples[:MAX_GENERATED_ROWS]
    schema = task.answer_schema()
    grammar = Grammar.compile(schema, tokenizer) if schema is not None else None
    prompts = [encode_prompt(tokenizer, task.prompt(e.text), manifest.max_tokens) for e in examples]
    requests = [GenerationRequest(ids, task.max_answer_tokens, grammar=grammar) for ids in prompts]
    written = Generator(model, tokenizer).generate(requests)
    answers = [(one.text, one.log_probabilities) for one in written]
    return ValidationResult(*calibrate_answers(manifest, examples, answers))


def validate_loss(
    model: Any, rows: Sequence[TokenizedRow], manifest: Manifest
) -> tuple[ValidationResult, dict[str, float]]:
    """Return minus the mean loss in nats as the value to maximize, and the loss and perplexity to report."""
    loss = mean_loss(model, rows)
    figures = {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 50))}
    return ValidationResult(-loss, manifest, "minus_eval_loss"), figures


@torch.inference_mode()
def mean_loss(model: Any, rows: Sequence[TokenizedRow]) -> float:
    """Return the mean cross-entropy over all target tokens of the rows, in nats."""
    parts = micro_batches(sorted(rows, key=lambda row: len(row.ids)), VALIDATION_BATCH_TOKENS)
    total = math.fsum(float(target_loss(model, part)) for part in parts)
    return total / sum(len(row.ids) - row.n_prompt for row in rows)


def generate_samples(model: Any, tokenizer: Any, prompts: Sequence[str], manifest: Manifest) -> list[Sample]:
    """Return the most probable answer to each prompt, or its continuation, as the model will be asked."""
    if not prompts:
        return []
    if manifest.kind == "chat":
        end, form = (
            end_of_turn_token(tokenizer),
            chat_prompt(tokenizer, manifest.system, max_tokens=manifest.max_tokens),
        )
    else:
        end, form = None, text_prompt(tokenizer, manifest.max_tokens)
    end = end_of_turn_token(tokenizer) if manifest.kind == "chat" else None
    requests = [GenerationRequest(form.encode(Request.ask(prompt)), MAX_SAMPLE_TOKENS) for prompt in prompts]
    written = Generator(model, tokenizer, end=end).generate(requests)
    return [Sample(prompt, answer.text.strip()) for prompt, answer in zip(prompts, written, strict=True)]
