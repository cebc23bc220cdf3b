"""Encoders fine-tuned to mark words: fields of a JSON answer in its text, or the answer to a question in its context.

A value that stands in the text several times is learned at the place that the model finds likeliest at that step, and
nothing is learned at the others: rows where it stands once show which place is meant. The loss of a window of a context
is the negative log-probability of all the places that hold a right answer together, since rows say what the answer is
and not where (Clark and Gardner 2018).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from smallfirst.base.errors import ConfigError
from smallfirst.data.dataset import Dataset, Example
from smallfirst.data.pages import Span
from smallfirst.measuring.calibration import THRESHOLDS
from smallfirst.measuring.out_of_fold import RawAnswer, calibrate_spans, read_spans
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import Manifest
from smallfirst.models.spans.passages import learn_reading
from smallfirst.models.spans.plan import AnswerPlan, FieldPlan, align, parse_row
from smallfirst.models.spans.reader import ContextWindow, PointerNetwork, Reader, windows_of
from smallfirst.models.spans.tagger import Tagger, TaggerNetwork, TokenizedText, chosen_labels
from smallfirst.models.spans.values import answer_places
from smallfirst.tasks.answer import Answer, split_context
from smallfirst.tasks.extract import Extract
from smallfirst.training.config import Precision, TrainConfig, ValidationResult
from smallfirst.training.encoders import EncoderBackend, as_served
from smallfirst.training.precision import ChosenPrecision
from smallfirst.training.recipe import PreparedData, RowsOfTask, T

HEAD_SCALE = 0.02
"""Standard deviation of the head's first weights, as BERT's own."""
IGNORED = -100
"""The target of a token of which nothing is learned."""


class TaggedRow(NamedTuple):
    """One tokenised row."""

    ids: tuple[int, ...]
    values: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    """Of each value that stands in the text, the number of its field and the token ranges where it may stand."""
    closed: tuple[int | tuple[float, ...], ...]
    """Of each field judged from the whole text, the place of its value among the plan's, IGNORED if it has none there;
    where there may be several, 0 or 1 for each of the plan's values."""


class TaggingBackend(EncoderBackend):
    """The Backend of a tagger."""

    def __init__(self, plan: AnswerPlan, passages: np.ndarray | None = None) -> None:
        self.plan, self.passages = plan, passages

    def load(self, base: Path, config: TrainConfig) -> tuple[TaggerNetwork, TaggerNetwork]:
        encoder = SentenceEncoder(base)
        encoder.model.config.attention_probs_dropout_prob = 0.0  # a quarter of the time at 200 tokens
        network = TaggerNetwork(encoder, self.plan, config.max_seq_tokens, self.passages).eval()
        return network, network

    def loss(self, model: TaggerNetwork, rows: Sequence[TaggedRow]) -> torch.Tensor:
        labels, closed, _ = model([row.ids for row in rows])
        loss = F.cross_entropy(labels.flatten(0, 1), targets(rows, labels).flatten(), ignore_index=IGNORED)
        for i, (field, logits) in enumerate(zip(self.plan.closed, closed, strict=True)):
            gold = torch.tensor([row.closed[i] for row in rows])
            if field.how == "several":
                loss = loss + F.binary_cross_entropy_with_logits(logits, gold, reduction="sum") / len(rows)
            elif (gold != IGNORED).any():
                loss = loss + F.cross_entropy(logits, gold, ignore_index=IGNORED)
        return loss


class MarkingRecipe(RowsOfTask[T]):
    """A task whose answers are marked."""

    graded = True
    """False: an answer counts as right or wrong."""

    def read(self, model: Any, manifest: Manifest) -> list[RawAnswer]:
        """Return the answers to the selection rows, computed in fp32, as the model will be served."""
        raise NotImplementedError

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult:
        answers = self.read(model, manifest)
        found = calibrate_spans(manifest, self.selection.examples, answers, graded=self.graded)
        return ValidationResult(*found, len(self.selection))


class TaggingRecipe(MarkingRecipe[Extract]):
    """An extraction task; its plan is learned from the training rows."""

    graded = False

    def __init__(self, task: Extract, train_rows: Dataset, selection: Dataset) -> None:
        super().__init__(task, train_rows, selection)
        self.plan, self.ranker, self.excerpts = learn_reading(task, train_rows.examples)

    @property
    def backend(self) -> TaggingBackend:
        return TaggingBackend(self.plan, self.ranker.weights if self.ranker else None)

    def prepare(self, tokenizer: TaggerNetwork, config: TrainConfig, base: str) -> PreparedData:
        rows = [self._tagged(example, tokenizer) for example in self.excerpts]
        return PreparedData(rows, Manifest(kind="tagger", task=self.task, base=base, max_tokens=config.max_seq_tokens))

    def read(self, model: TaggerNetwork, manifest: Manifest) -> list[RawAnswer]:
        """Return the answers, labels being those above the threshold with which most of their lists are right."""
        examples = self.selection.examples
        with as_served(model):
            tagger = Tagger(model, manifest)
            read = tagger.read([example.text for example in examples])
        threshold = self._label_threshold([one.odds for one in read])
        tagger.manifest = manifest.model_copy(update={"label_threshold": threshold})
        found = [tagger.written(one) for one in read]
        spans = [(one.text, tagger.log_probabilities(one), one.field_confidence) for one in found]
        return read_spans(spans, label_threshold=threshold)

    def _label_threshold(self, odds: Sequence[Mapping[str, np.ndarray]]) -> float:
        """Return the probability of a label above which most lists of labels, by path, are those of the rows."""
        values = [parse_row(example).values for example in self.selection.examples]

        def n_right(threshold: float) -> int:
            least = math.log(threshold / (1 - threshold))
            return sum(
                tuple(chosen_labels(field, one[field.path], least)) == _closed(field, gold.get(field.path, ()))
                for one, gold in zip(odds, values, strict=True)
                for field in self.plan.closed
                if field.path in one
            )

        return max(THRESHOLDS, key=n_right)

    def _tagged(self, example: Example, reader: TaggerNetwork) -> TaggedRow:
        row, tokenized = parse_row(example), reader.tokenize(example.text)
        values = []
        for value in align(self.task, self.plan, row):
            ranges = tuple(found for place in value.places if (found := token_range(tokenized, place)))
            values += [(value.field, ranges)] * bool(ranges)
        closed = (_closed(field, row.values.get(field.path, ())) for field in self.plan.closed)
        return TaggedRow(tokenized.ids, tuple(values), tuple(closed))


def _closed(field: FieldPlan, values: Sequence[Any]) -> int | tuple[float, ...]:
    said = [json.dumps(value, ensure_ascii=False) for value in values]
    if field.how == "several":
        return tuple(float(value in said) for value in field.values)
    return next((field.values.index(value) for value in said or [""] if value in field.values), IGNORED)


def token_range(tokenized: TokenizedText, place: tuple[int, int]) -> tuple[int, int] | None:
    """Return first and last (excluded) of the tokens that touch the characters of `place`; None without any."""
    start, end = place
    touched = [i for i, (left, right) in enumerate(tokenized.places) if left < end and right > start]
    return (touched[0], touched[-1] + 1) if touched else None


@torch.no_grad()
def targets(rows: Sequence[TaggedRow], logits: torch.Tensor) -> torch.Tensor:
    """Return the labels to learn (rows, tokens), IGNORED for padding and for the unlikelier places of a value."""
    log_probs = logits.log_softmax(-1)  # (rows, tokens, labels)
    wanted = torch.full(logits.shape[:2], IGNORED)
    for n, row in enumerate(rows):
        wanted[n, : len(row.ids)] = 0
        for field, ranges in row.values:
            free = [r for r in ranges if not (wanted[n, slice(*r)] > 0).any()]
            if not free:  # within the words of another field
                continue
            begin, inside = log_probs[n, :, 1 + 2 * field], log_probs[n, :, 2 + 2 * field]
            chosen = free[0]
            if len(free) > 1:
                chosen = max(free, key=lambda r: float(begin[r[0]] + inside[r[0] + 1 : r[1]].sum()))
            for start, end in free:
                if (start, end) == chosen:
                    wanted[n, start] = 1 + 2 * field
                    wanted[n, start + 1 : end] = 2 + 2 * field
                elif not (wanted[n, start:end] > 0).any():
                    wanted[n, start:end] = IGNORED
    return wanted


class WindowRow(NamedTuple):
    """A window of a training row and where the answer stands in it."""

    window: ContextWindow
    spans: tuple[tuple[int, int], ...]
    """First and last position of each place that holds a right answer; empty: not in this window."""

    @property
    def ids(self) -> tuple[int, ...]:
        return self.window.ids


class ReadingBackend(EncoderBackend):
    """The Backend of an encoder with a pointer head."""

    def __init__(self, max_span_tokens: int) -> None:
        self.max_span_tokens = max_span_tokens

    def load(self, base: Path, config: TrainConfig) -> tuple[PointerNetwork, Any]:
        encoder = SentenceEncoder(base)
        return PointerNetwork(encoder, self.max_span_tokens).eval(), encoder.tokenizer

    def begin(
        self, model: PointerNetwork, rows: Sequence[WindowRow], config: TrainConfig, began_in: Precision | None = None
    ) -> ChosenPrecision:
        torch.nn.init.normal_(model.heads, std=HEAD_SCALE)
        return super().begin(model, rows, config, began_in)

    def loss(self, model: PointerNetwork, rows: Sequence[WindowRow]) -> torch.Tensor:
        """Return the mean over windows of minus the log-probability of the right places, or of the null."""
        odds = model([row.window for row in rows])
        everything = F.softplus(odds.flatten(1).logsumexp(1))  # the null has log-odds 0
        right = []
        for row, scores in zip(rows, odds, strict=True):
            at = torch.tensor(row.spans)
            right.append(scores[at[:, 0], at[:, 1]].logsumexp(0) if row.spans else scores.new_zeros(()))
        return (everything - torch.stack(right)).mean()


class ReadingRecipe(MarkingRecipe[Answer]):
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

    def read(self, model: PointerNetwork, manifest: Manifest) -> list[RawAnswer]:
        with as_served(model):
            found = Reader(model, manifest).read([example.text for example in self.selection.examples])
        return read_spans([(one.text, [one.nats], {}) for one in found])


def _window_rows(example: Example, task: Answer, tokenizer: Any, max_tokens: int) -> list[WindowRow]:
    context, question = split_context(example.text)
    places = [place for gold in example.golds if not task.abstains(gold) for place in answer_places(gold, context)]
    if not places and not any(task.abstains(gold) for gold in example.golds):
        return []
    windows = windows_of(question, context, tokenizer, max_tokens)
    return [WindowRow(window, _positions(window, places, task.max_answer_tokens)) for window in windows]


def _positions(window: ContextWindow, places: Sequence[Span], max_span_tokens: int) -> tuple[tuple[int, int], ...]:
    """Return the first and last position of each place that a window holds whole and that is short enough."""
    found = set()
    for place in places:
        at = [i for i, token in enumerate(window.places) if token.start < place.end and place.start < token.end]
        whole = at and window.places[at[0]].start <= place.start and window.places[at[-1]].end >= place.end
        if whole and len(at) <= max_span_tokens:
            found.add((window.first + at[0], window.first + at[-1]))
    return tuple(sorted(found))
