"""An encoder fine-tuned to mark the answer to a question in its context, or to say that it is not there.

The loss of a window is the negative log-probability of all the places that hold a right answer together, since rows say
what the answer is and not where (Clark and Gardner 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smallfirst.data.dataset import Example
from smallfirst.errors import ConfigError
from smallfirst.evaluation.calibration import calibrate_answers
from smallfirst.evaluation.out_of_fold import RawAnswer, read_spans
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.local.weights import weights_fingerprint
from smallfirst.models.manifest import Manifest
from smallfirst.models.spans.occurrences import CharSpan, occurrences
from smallfirst.models.spans.reader import Reader, Window, save_weights, span_log_odds, windows_of
from smallfirst.tasks.answer import Answer, split_context
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.encoder_backend import EncoderBackend, as_served
from smallfirst.training.recipes.recipe import PreparedData, RowsOfTask
from smallfirst.training.validation import ValidationResult

HEAD_SCALE = 0.02
"""Standard deviation of the head's first weights, as BERT's own."""


class WindowRow(NamedTuple):
    """A window of a training row and where the answer stands in it."""

    window: Window
    spans: tuple[tuple[int, int], ...]
    """First and last position of each place that holds a right answer; empty: not in this window."""

    @property
    def ids(self) -> tuple[int, ...]:
        return self.window.ids


class PointerModel(torch.nn.Module):
    """An encoder and the pointer head; `heads` (2, width + 1), the bias last."""

    def __init__(self, encoder: SentenceEncoder, max_span_tokens: int) -> None:
        super().__init__()
        self.encoder, self.max_span_tokens = encoder, max_span_tokens
        self.body = encoder.model
        self.heads = torch.nn.Parameter(torch.zeros(2, encoder.model.config.hidden_size + 1))

    def loss(self, rows: Sequence[WindowRow]) -> torch.Tensor:
        """Return the mean over windows of minus the log-probability of the right places, or of the null."""
        odds = span_log_odds(self.encoder, self.heads, [row.window for row in rows], self.max_span_tokens)
        everything = torch.nn.functional.softplus(odds.flatten(1).logsumexp(1))  # the null has log-odds 0
        right = []
        for row, scores in zip(rows, odds, strict=True):
            at = torch.tensor(row.spans)
            right.append(scores[at[:, 0], at[:, 1]].logsumexp(0) if row.spans else scores.new_zeros(()))
        return (everything - torch.stack(right)).mean()


class ReadingBackend(EncoderBackend):
    """The Backend of an encoder with a pointer head."""

    def __init__(self, max_span_tokens: int) -> None:
        self.max_span_tokens = max_span_tokens

    def load(self, base: Path, config: TrainConfig) -> tuple[PointerModel, Any]:
        encoder = SentenceEncoder(base)
        return PointerModel(encoder, self.max_span_tokens).eval(), encoder.tokenizer

    def begin(self, model: PointerModel, rows: Sequence[WindowRow], config: TrainConfig) -> None:
        torch.nn.init.normal_(model.heads, std=HEAD_SCALE)
        super().begin(model, rows, config)

    def loss(self, model: PointerModel, rows: Sequence[WindowRow]) -> torch.Tensor:
        return model.loss(rows)

    def save(self, model: PointerModel, tokenizer: Any, folder: Path) -> str:
        save_weights(model.encoder, model.heads.detach().numpy(), folder)
        return weights_fingerprint(model)


class ReadingRecipe(RowsOfTask[Answer]):
    """A task of questions with contexts."""

    @property
    def backend(self) -> ReadingBackend:
        return ReadingBackend(self.task.max_answer_tokens)

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        """Return the windows of all rows whose answer stands in the context, or that have none; others are left out."""
        rows = [
            row
            for example in self.train_rows.examples
            for row in _window_rows(example, self.task, tokenizer, config.max_seq_tokens)
        ]
        if not any(row.spans for row in rows):
            raise ConfigError(
                "no training row has its answer in its context, so there is nothing to mark",
                hint="leave reader out of ladder; small writes answers in its own words",
            )
        return PreparedData(rows, Manifest(kind="reader", task=self.task, base=base, max_tokens=config.max_seq_tokens))

    def validate(self, model: PointerModel, tokenizer: Any, manifest: Manifest) -> ValidationResult:
        """Return the mean score on the selection rows, computed in fp32, as the model will be served."""
        answers = [(one.text, one.nats) for one in self.read(model, manifest)]
        return ValidationResult(*calibrate_answers(manifest, self.selection.examples, answers))

    def read(self, model: PointerModel, manifest: Manifest) -> list[RawAnswer]:
        with as_served(model):
            reader = Reader(model.encoder, model.heads.detach().numpy(), manifest)
            readings = reader.read([example.text for example in self.selection.examples])
        return read_spans([(one.text, [one.log_probability], {}) for one in readings])


def _window_rows(example: Example, task: Answer, tokenizer: Any, max_tokens: int) -> list[WindowRow]:
    context, question = split_context(example.text)
    places = [place for gold in example.golds if not task.abstains(gold) for place in occurrences(gold, context)]
    if not places and not any(task.abstains(gold) for gold in example.golds):
        return []
    windows = windows_of(question, context, tokenizer, max_tokens)
    return [WindowRow(window, _positions(window, places, task.max_answer_tokens)) for window in windows]


def _positions(window: Window, places: Sequence[CharSpan], max_span_tokens: int) -> tuple[tuple[int, int], ...]:
    """Return the first and last position of each place that a window holds whole and that is short enough."""
    found = set()
    for place in places:
        at = [i for i, token in enumerate(window.places) if token.start < place.end and place.start < token.end]
        whole = at and window.places[at[0]].start <= place.start and window.places[at[-1]].end >= place.end
        if whole and len(at) <= max_span_tokens:
            found.add((window.first + at[0], window.first + at[-1]))
    return tuple(sorted(found))
