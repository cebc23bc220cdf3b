"""Which share of a task's requests can move to a small model, foretold from recorded answers before one is trained.

A cheap model is cross-validated on the recorded answers: it learns as large a share of them as a run would. Resamples
of its right and wrong answers then go through the search for a threshold that the certificate will use, with as many
calibration rows as a run would have and at the level of its look. A run's model makes some of the cheap one's errors;
which share, development sets have shown (`benchmarks/results/discovery.md`). What is wrong among the cheap model's
surest answers is laid to the recorded answers, and stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from smallfirst.base.errors import WeightsNotFound
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.base.stats.sequential import spent_level
from smallfirst.data.dataset import Example, Message
from smallfirst.models.linear.tfidf import HeldOutAnswers, hold_out, judge, left_out
from smallfirst.models.spans.plan import AnsweredRow, FieldPlan, learn_plan, parse_row
from smallfirst.models.spans.values import occurrences
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.looks import LARGE, SMALL
from smallfirst.routing.certificate.threshold_search import choose_starts, search_rows, start_rows
from smallfirst.tasks.extract import Extract
from smallfirst.traffic.discovery.tasks import as_text
from smallfirst.traffic.task_source import SECOND_LOOK_AFTER

MIN_ROWS = 100
"""Fewest different cases from which anything is foretold."""
FIRST_LOOK = spent_level(SMALL, 1)
"""Share of the error probability that `learn` certifies at; the look after shadow has LARGE."""
ErrorsLeft = tuple[float, ...]
"""Shares of the cheap model's errors that the model of a run makes, equally likely; above 1 it makes more of them."""
LABEL_ERRORS: ErrorsLeft = (0.45, 0.6, 0.75, 0.9, 1.05)
"""For labels, chosen on the development sets together with `_MARGIN`."""
FIELD_ERRORS: ErrorsLeft = (0.05, 0.2, 0.5, 1.0, 2.0)
"""For fields, of which the cheap model sees less: assumed."""
_ENDS, _MARGIN = (0.05, 0.95), 0.05
"""Quantiles at the ends of an interval, and what they are wider by: how sure a model is varies besides."""
_RESAMPLES, _SEED = 20, 0
_SUREST, _MOST_LEARNT = 1 / 4, 0.8
"""Share of the cases that tells how much is wrong in the log, and most that the cheap model learns."""
MOST_CASES, MOST_CHARACTERS = 2500, 600_000
"""Most cases that the cheap model looks at, and most characters of all together."""
_INVERSE_PENALTY, _BATCH = 10.0, 256
_PLANNED = 1000
"""Cases from which is learned how fields are found."""


class Outlook(Record):
    """What can be expected of a small model."""

    agreement: Estimate | None = None
    """Share of held-out cases in which a cheap model gives the large model's answer; None if none was tried."""
    moves: Estimate | None = None
    """Share of requests that can move once it is learnt, with a 90 % interval: over models better than the cheap one by
    more or less, and over the luck of the rows. None if nothing is foretold."""
    later: Estimate | None = None
    """As `moves`, after the second look: with SECOND_LOOK_AFTER texts more, that were compared in shadow."""
    n_certifying: int = 0
    """Rows that would certify in a run."""
    why: str = ""
    """Why nothing can be said or nothing can move; empty otherwise."""

    def can_show(self, max_error: float) -> bool:
        """Return True if `learn` has enough rows to show a limit, were all of them right."""
        return (1 - max_error) ** self.n_certifying <= FIRST_LOOK * (1 - Guarantee(max_error=max_error).confidence)


def drawn_cases(texts: Sequence[str]) -> list[int]:
    """Return which cases are looked at: all, or so many drawn at random that they are not too many or too long."""
    order: list[int] = np.random.default_rng(_SEED).permutation(len(texts))[:MOST_CASES].tolist()
    mean = sum(len(texts[i]) for i in order) / max(1, len(order))
    return order[: max(1, int(MOST_CHARACTERS / max(1.0, mean)))]


def sentence_vectors(texts: Sequence[str]) -> np.ndarray | None:
    """Return vectors of unit length (texts, dimensions) by the default encoder, if its weights are here already."""
    from smallfirst.models.catalog import find_weights
    from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, open_encoder

    try:
        embed = open_encoder(find_weights(DEFAULT_ENCODER, download=False)).embed
    except (WeightsNotFound, ModuleNotFoundError):
        return None
    return np.concatenate([embed(texts[at : at + _BATCH]) for at in range(0, len(texts), _BATCH)])


def cheap_answers(
    texts: Sequence[str], learnt: Sequence[Sequence[str]], said: Sequence[Sequence[str]], share: float
) -> HeldOutAnswers:
    """Return what `hold_out` does, or of a single column the answers of a logistic regression on vectors, if better.

    With 77 labels and 1,000 rows to learn from that is 0.86 right, the ridge regression 0.78; with few rows it is less.
    """
    vectors = sentence_vectors(texts)
    found = hold_out(texts, learnt, said, vectors, share=share)
    if vectors is None or len(learnt) > 1:
        return found
    from smallfirst.models.linear.classifier import fit_linear

    gold = np.unique([*learnt[0], *said[0]], return_inverse=True)[1]
    scores = np.zeros((len(texts), int(gold.max()) + 1))
    for out, read in left_out(len(texts), share):
        weights, bias = fit_linear(vectors[~out], gold[: len(texts)][~out], scores.shape[1], _INVERSE_PENALTY)
        scores[read] = special.softmax(vectors[read] @ weights.T + bias, axis=1)
    return max(found, judge(scores, [gold]), key=lambda one: int(one.right.sum()))


class PlannedRun(Record):
    """How a run on the draft divides the cases, and what limits every model."""

    n_training: int
    n_certifying: int
    """Rows that show the promise; a quarter as many choose where the search begins."""
    in_format: float = 1.0
    """Share of answers that have the task's format: the others cannot be right."""
    repeatable: float = 1.0
    """Share of repeated cases that got the same answer again, the sum of squares of the answers' shares: the most
    frequent answer has at most its root, so no model can agree more often than that."""

    def share_of(self, n: int) -> float:
        """Return which share of `n` drawn cases the cheap model learns to know as many as the run, if it can."""
        return min(_MOST_LEARNT, self.n_training / n)


Case = tuple[str, Any, Any, int]
"""A text, its usual answer, the answer of the asking that was drawn, and how often it was asked."""


def foretell_labels(cases: Sequence[Case], max_error: float, run: PlannedRun) -> Outlook:
    """Return the outlook of a task whose answers are labels, or lists of labels of which each is told by itself."""
    texts, usual, said, n = _columns(cases)
    names = sorted({label for value in (*usual, *said) if isinstance(value, list) for label in value})
    learnt, wanted = ([[str(name in value) for value in own] for name in names] or [list(own)] for own in (usual, said))
    held_out = cheap_answers(texts, learnt, wanted, run.share_of(len(texts)))
    outlook = foretell(held_out._replace(n=np.array(n)), max_error, run, LABEL_ERRORS)
    return outlook.model_copy(update={"agreement": wilson(int(held_out.right.sum()), len(texts))})


def foretell_fields(cases: Sequence[Case], max_error: float, run: PlannedRun, schema: Mapping[str, Any]) -> Outlook:
    """Return the outlook of a task whose answers are JSON objects.

    The cheap model tells the values that are judged from the whole text, and how many values each other field has. No
    model marks a value that does not come back from its text.
    """
    texts, usual, said, n = _columns(cases)
    asked = [(Message(role="user", content=text),) for text in texts]
    both = [
        [Example(messages=q, answer=as_text(a), shape="target") for q, a in zip(asked, answers, strict=True)]
        for answers in (usual, said)
    ]
    plan = learn_plan(Extract(name="task", json_schema=dict(schema)), both[0][:_PLANNED])
    if plan.why:
        nothing = Estimate(value=0.0, low=0.0, high=0.0, n=len(texts))
        why = f"{plan.why}: a language model has to write that"
        return Outlook(moves=nothing, later=nothing, n_certifying=run.n_certifying, why=why)
    rows = [[parse_row(example) for example in own] for own in both]
    learnt, wanted = ([[_seen(field, row) for row in own] for field in plan.fields] for own in rows)
    held_out = cheap_answers(texts, learnt, wanted, run.share_of(len(texts)))
    found = np.array([all(_comes_back(field, row) for field in plan.fields) for row in rows[1]])
    held_out = held_out._replace(right=held_out.right & found)
    return foretell(held_out._replace(n=np.array(n)), max_error, run, FIELD_ERRORS, found)


def _columns(cases: Sequence[Case]) -> tuple[Sequence[str], Sequence[Any], Sequence[Any], Sequence[int]]:
    texts, usual, said, n = zip(*(cases[i] for i in drawn_cases([case[0] for case in cases])), strict=True)
    return texts, usual, said, n


def _seen(field: FieldPlan, row: AnsweredRow) -> str:
    """Return what the cheap model tells of a field: how many values it has in the text, or which it has."""
    values = row.values.get(field.path, [])
    return str(len(values)) if field.how == "span" else as_text(values)


def _comes_back(field: FieldPlan, row: AnsweredRow) -> bool:
    values = row.values.get(field.path, [])
    if field.how != "span":
        return all(json.dumps(value, ensure_ascii=False) in field.values for value in values)
    return all(any(occurrences(row.text, value, form) for form in field.forms) for value in values)


def foretell(
    held_out: HeldOutAnswers,
    max_error: float,
    run: PlannedRun,
    errors_left: ErrorsLeft,
    possible: np.ndarray | None = None,
) -> Outlook:
    """Return the outlook of a task from a cheap model's answers, and shares of its errors that a run's model makes.

    `possible` tells of cases whether a model can be right; None: as it is right on those that it is surest of.
    """
    surest = np.argsort(-held_out.confidence, kind="stable")[: math.ceil(_SUREST * len(held_out.right))]
    possible = held_out.right[surest] if possible is None else possible
    moves, later = (
        _share(held_out, possible, Guarantee(max_error=max_error), run, errors_left, n_more=n_more, portion=portion)
        for n_more, portion in ((0, FIRST_LOOK), (SECOND_LOOK_AFTER, LARGE))
    )
    return Outlook(moves=moves, later=later, n_certifying=run.n_certifying)


def _share(
    held_out: HeldOutAnswers,
    possible: np.ndarray,
    guarantee: Guarantee,
    run: PlannedRun,
    errors_left: ErrorsLeft,
    *,
    n_more: int,
    portion: float,
) -> Estimate:
    """Return the share of requests that is kept with `n_more` rows more, at a portion of the error probability."""
    rng, level, limit = np.random.default_rng(_SEED), portion * (1 - guarantee.confidence), guarantee.max_error or 0.0
    sure, n, n_rows = held_out.confidence, len(held_out.right), run.n_certifying + n_more
    asked = np.ones(n) if held_out.n is None else held_out.n
    kept = np.zeros((len(errors_left), _RESAMPLES))
    for left, row in zip(errors_left, kept, strict=True):
        for resample in range(_RESAMPLES):
            noise = max(rng.beta(0.5 + (~possible).sum(), 0.5 + possible.sum()), 1 - math.sqrt(run.repeatable))
            right = (held_out.right | (rng.random(n) >= left)) & (rng.random(n) >= noise * (1 - left))
            right &= rng.random(n) >= (left - 1) * (1 - sure)
            if not resample:  # what selection rows say, once for each share
                choosing = rng.integers(0, n, max(1, run.n_certifying // 4))
                starts = choose_starts(sure[choosing], right[choosing], n_rows, limit, level)
                tried = start_rows(n_rows, limit, level, starts)
            certifying = rng.integers(0, n, n_rows)
            found = search_rows(sure[certifying], right[certifying], limit, level, tried)
            row[resample] = run.in_format * np.average(sure >= found.threshold, weights=asked)
    low, middle, high = np.quantile(kept, (_ENDS[0], 0.5, _ENDS[1])).tolist()
    low, high = max(0.0, low - _MARGIN), min(run.in_format, high + _MARGIN) if high else 0.0
    return Estimate(value=round(middle, 4), low=round(low, 4), high=round(high, 4), n=n)
