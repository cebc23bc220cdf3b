"""Out-of-fold answers: each row is answered by a model that was fitted without it, its near-copies and its group.

What a candidate is chosen by, and what its confidence is calibrated on, may then be all rows that are not kept for
calibration and test (Stone 1974). The model that goes live is fitted on all of these rows afterwards.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from scipy import special

from smallfirst.base.records import Record, fingerprint
from smallfirst.data.copies import clusters
from smallfirst.data.dataset import Dataset, Example
from smallfirst.measuring.calibration import calibrate_answers, calibrate_labels
from smallfirst.models.confidence import MIN_LOG_PROBABILITY
from smallfirst.models.label_model import LabelLogProbs, likeliest
from smallfirst.models.linear.classifier import (
    LinearClassifier,
    ScopedClassifier,
    ScopeParameters,
    answer_labels,
    choose_parameters,
    decision_nats,
    mix,
    own_labels,
)
from smallfirst.models.manifest import Int8Check, Manifest
from smallfirst.models.protocol import Completion

IMPOSSIBLE = -500.0
"""Log-probability in nats below which a label is one that the fold's model never saw."""
Z_ONE_SIDED = 1.645
"""Quantile of the normal distribution for 5 %, one-sided."""
DIGITS = 5
"""Decimals of a stored log-probability."""


class RawAnswer(Record):
    """An answer before anything is calibrated."""

    nats: tuple[float, ...]
    """Log-probability of each label, log-odds where there may be several; else what the confidence is computed from."""
    text: str = ""
    """The answer, where it is no label."""
    signals: tuple[float, ...] = ()
    """What tells a text that is out of scope (`models.linear.scope`); empty without a label for such texts."""
    field_confidence: dict[str, float] = {}
    label_threshold: float = 0.5
    """Least probability of the labels in `text`."""


class FoldAnswers(Record):
    """One candidate's out-of-fold answers to training and selection rows, and what was fitted on them."""

    dataset_fingerprint: str
    """Of the rows that were answered."""
    manifest: Manifest
    """Of the model to be, with the temperature, the threshold or the calibration of these answers."""
    scope: ScopeParameters | None = None
    answers: tuple[RawAnswer, ...]
    """In the order of the rows."""
    n_folds: int
    curve: tuple[float, ...] = ()
    """Mean score of the folds' models after each epoch, in [0, 1]; empty without epochs."""
    int8: Int8Check | None = None
    """How int8 arithmetic changed a fold's model; None if that was not measured."""

    @classmethod
    def fit(
        cls,
        answers: Sequence[RawAnswer],
        rows: Dataset,
        manifest: Manifest,
        n_folds: int,
        *,
        curve: Sequence[float] = (),
        int8: Int8Check | None = None,
    ) -> Self:
        """Calibrate on the answers, but for those to rows whose label the fold's model never saw."""
        found = cls(
            dataset_fingerprint=rows.content_fingerprint,
            manifest=manifest,
            scope=_fit_scope(answers, rows, manifest),
            answers=tuple(answers),
            n_folds=n_folds,
            curve=tuple(curve),
            int8=int8,
        )
        return found.model_copy(update={"manifest": found.calibrated(rows.examples)[1]})

    @property
    def best_epoch(self) -> int:
        return best_epoch(self.curve, len(self.answers))

    @property
    def of_labels(self) -> bool:
        return self.manifest.kind not in ("tagger", "reader")

    def log_probabilities(self) -> np.ndarray:
        """Return log-probabilities of labels (rows, labels), or log-odds, in nats, before the temperature."""
        nats = np.array([answer.nats for answer in self.answers], dtype=np.float64)
        if self.scope is None:
            return nats
        signals = np.array([answer.signals for answer in self.answers])
        odds = signals @ np.asarray(self.scope.weights) + self.scope.offset
        return mix(own_labels(nats, self.scope.other), odds, self.scope.other)

    def calibrated(self, examples: Sequence[Example]) -> tuple[float, Manifest]:
        """Return the mean score and the manifest with what is fitted on the answers."""
        if not self.of_labels:
            return calibrate_spans(self.manifest, examples, self.answers)
        logs = self.log_probabilities()
        labels = self.manifest.task.closed
        known = [i for i, e in enumerate(examples) if not labels or logs[i, labels.index(e.answer)] > IMPOSSIBLE]
        data = Dataset(name="known", examples=tuple(examples[i] for i in known))
        return calibrate_labels([LabelLogProbs(logs[i].tolist(), 0, 0.0) for i in known], data, self.manifest)

    def completions(self, name: str) -> list[Completion]:
        """Return the answers as `name` would give them, with calibrated confidences, at no cost."""
        logs = self.log_probabilities() if self.of_labels else [answer.nats for answer in self.answers]
        return [self._completion(name, one, nats) for one, nats in zip(self.answers, logs, strict=True)]

    def _completion(self, name: str, answer: RawAnswer, nats: Sequence[float] | np.ndarray) -> Completion:
        task, own = self.manifest.task, self.manifest
        usual: dict[str, Any] = {"answered_by": name, "latency_ms": 0.0, "cost_usd": 0.0}
        if not self.of_labels:
            confidence = own.calibration.confidence(answer.nats) if task.parse(answer.text) is not None else 0.0
            fields = answer.field_confidence
            return Completion(text=answer.text, confidence=confidence, field_confidence=fields, **usual)
        if task.closed:
            likely = likeliest(task.closed, special.softmax(np.asarray(nats) / own.temperature))
            return Completion(**likely, completion_tokens=1, **usual)
        odds = np.asarray(nats)
        return Completion(
            text=answer_labels(odds, task, own.label_threshold),
            confidence=own.calibration.confidence(decision_nats(odds, own.label_threshold).tolist()),
            completion_tokens=1,
            **usual,
        )


class Fold(NamedTuple):
    """The rows of one fold and the others."""

    at: tuple[int, ...]
    """Places of the fold's rows."""
    held: Dataset
    rest: Dataset
    """Rows to fit on."""


def folds_of(rows: Dataset, n: int) -> list[Fold]:
    """Return at most `n` folds of about equal size and mix of labels; near-copies and groups are in one of them."""
    examples = rows.examples
    units: dict[int, list[int]] = defaultdict(list)
    for i, cluster in enumerate(clusters([e.asked for e in examples], [e.group for e in examples])):
        units[cluster].append(i)

    def label_of(members: Sequence[int]) -> str:
        example = examples[members[0]]
        return example.answer if example.shape in ("label", "labels") else ""

    draw = {unit: fingerprint(["fold", examples[unit].key]) for unit in units}
    order = sorted(units, key=lambda unit: (label_of(units[unit]), -len(units[unit]), draw[unit]))
    of_label: Counter[tuple[str, int]] = Counter()
    sizes: Counter[int] = Counter()
    fold_of: dict[int, int] = {}
    for unit in order:
        label = label_of(units[unit])
        fold = min(range(n), key=lambda fold: (of_label[label, fold], sizes[fold], fold))
        fold_of |= dict.fromkeys(units[unit], fold)
        of_label[label, fold] += len(units[unit])
        sizes[fold] += len(units[unit])
    found = []
    for fold in sorted(sizes):
        at = tuple(i for i in range(len(examples)) if fold_of[i] == fold)
        rest = tuple(example for i, example in enumerate(examples) if fold_of[i] != fold)
        held = rows.subset("fold", tuple(examples[i] for i in at))
        found.append(Fold(at, held, rows.subset("other folds", rest)))
    return found


def read_labels(
    classifier: LinearClassifier, train: Dataset, texts: Sequence[str], manifest: Manifest
) -> list[RawAnswer]:
    """Return a classifier's answers; with the signals of scope where an encoder's task has a label for other texts."""
    scoped = ScopedClassifier.unweighted(classifier, train, manifest)
    if scoped is None:
        scored = [list(map(float, one.log_probabilities)) for one in classifier.score(texts)]
        return [RawAnswer(nats=_rounded(nats)) for nats in scored]
    found = scoped.measure(texts)
    logs = mix(found.labels, found.signals[:, -1], scoped.parameters.other)
    return [
        RawAnswer(nats=_rounded(nats), signals=_rounded(signals))
        for nats, signals in zip(logs.tolist(), found.signals.tolist(), strict=True)
    ]


def read_spans(
    answers: Sequence[tuple[str, Sequence[float], dict[str, float]]], *, label_threshold: float = 0.5
) -> list[RawAnswer]:
    """Return answers that are no labels: text, log-probabilities in nats, and confidence by field."""
    return [
        RawAnswer(
            text=text,
            nats=_rounded([max(x, MIN_LOG_PROBABILITY) for x in nats]),
            field_confidence=fields,
            label_threshold=label_threshold,
        )
        for text, nats, fields in answers
    ]


def calibrate_spans(
    manifest: Manifest, examples: Sequence[Example], answers: Sequence[RawAnswer], *, graded: bool = True
) -> tuple[float, Manifest]:
    """As `calibrate_answers`; the label threshold is the median of those that the folds chose."""
    if answers:
        threshold = float(np.median([one.label_threshold for one in answers]))
        manifest = manifest.model_copy(update={"label_threshold": threshold})
    return calibrate_answers(manifest, examples, [(one.text, one.nats) for one in answers], graded=graded)


def best_epoch(curve: Sequence[float], n_rows: int = 0) -> int:
    """Return the last epoch, from 1, whose score is not significantly below the highest; 0 without epochs.

    Scores are means over `n_rows` rows in [0, 1], compared by the test for two proportions (5 %, one-sided); with no
    rows only equals count. Later epochs learnt at a lower rate, and what separates epochs on some hundred rows is
    mostly chance: see benchmarks/results/encoder_candidates.md.
    """
    highest = max(curve, default=0.0)

    def near(score: float) -> bool:
        variance = sum(max(0.0, p * (1 - p)) for p in (highest, score)) / n_rows if n_rows else 0.0
        return highest - score <= Z_ONE_SIDED * math.sqrt(variance) + 1e-9

    return max((epoch for epoch, score in enumerate(curve, 1) if near(score)), default=0)


def _fit_scope(answers: Sequence[RawAnswer], rows: Dataset, manifest: Manifest) -> ScopeParameters | None:
    if not all(answer.signals for answer in answers):
        return None
    signals = np.array([answer.signals for answer in answers])
    nats = np.array([answer.nats for answer in answers], dtype=np.float64)
    return choose_parameters(nats, signals, [example.answer for example in rows.examples], manifest)


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), DIGITS) for value in values)
