"""What a half-trained model is worth: its mean score on selection rows, and the calibration that suits it.

One exam for answers read from label probabilities, one for answers that are written. The second takes about as long as
some training steps a row, so it asks a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.errors import DataError, Problem
from smallfirst.evaluation.calibration import fit_calibration, fit_temperature
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.sequence import GenerationRequest
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.task import Task

MAX_GENERATED_ROWS = 400
"""Selection rows whose answers are written after each epoch; the first ones, which a content hash has put in order."""


class ValidationResult(NamedTuple):
    """How a model did."""

    value: float
    """Higher is better; for a task the mean score on the selection rows, in [0, 1]."""
    learnt: Manifest
    """The manifest with the temperature or calibration fitted on them."""
    measure: str = "validation_score"
    """What `value` is called in MLflow and in events."""


def validate_labels(model: Any, tokenizer: Any, manifest: Manifest, selection: Dataset) -> ValidationResult:
    """The exam of a model that is read at one position."""
    scored = LabelScorer(model, tokenizer, manifest).score([example.text for example in selection.examples])
    accuracy, temperature = accuracy_and_temperature(scored, selection, manifest.task)
    return ValidationResult(accuracy, manifest.model_copy(update={"temperature": temperature}))


def validate_generation(model: Any, tokenizer: Any, manifest: Manifest, selection: Dataset) -> ValidationResult:
    """The exam of a model that writes, under the task's grammar where it has one."""
    task, examples = manifest.task, selection.examples[:MAX_GENERATED_ROWS]
    if not examples:
        return ValidationResult(0.0, manifest)
    schema = task.answer_schema()
    grammar = Grammar.compile(schema, tokenizer) if schema is not None else None
    prompts = [encode_prompt(tokenizer, task.prompt(e.text), manifest.max_tokens) for e in examples]
    requests = [GenerationRequest(ids, task.max_answer_tokens, grammar=grammar) for ids in prompts]
    written = Generator(model, tokenizer).generate(requests)
    scores = [task.score(e.golds, task.parse(w.text)) for e, w in zip(examples, written, strict=True)]
    calibration = fit_calibration(
        [w.log_probabilities for w in written], [score >= task.pass_score for score in scores]
    )
    return ValidationResult(float(np.mean(scores)), manifest.model_copy(update={"calibration": calibration}))


def accuracy_and_temperature(scored: Sequence[LabelLogProbs], data: Dataset, task: Task) -> tuple[float, float]:
    """Accuracy of the likeliest labels on the rows, and the temperature that suits them.

    Raises DataError naming rows whose label the task does not know.
    """
    if not len(data):
        return 0.0, 1.0
    index = {label: i for i, label in enumerate(task.closed)}
    unknown = [Problem(e.path, e.line, f'unknown label "{e.answer}"') for e in data.examples if e.answer not in index]
    if unknown:
        raise DataError(f"{len(unknown)} of {len(data)} selection rows cannot be judged:", unknown)
    gold = np.array([index[example.answer] for example in data.examples])
    log_probabilities = np.array([row.log_probabilities for row in scored])
    accuracy = float((log_probabilities.argmax(axis=1) == gold).mean())
    return accuracy, fit_temperature(log_probabilities, gold)
