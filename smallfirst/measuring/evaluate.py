"""evaluate(): one way to measure everything that answers, accuracy with all rows in flight, latency one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from smallfirst.base.progress import ProgressCallback, no_progress
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, mean_interval, paired_difference, wilson
from smallfirst.data.dataset import Dataset, Example, sample_rows
from smallfirst.data.pages import is_document
from smallfirst.models.encoder.sentence_encoder import forget_texts
from smallfirst.models.protocol import Completion, Model, Request, ValuePlace
from smallfirst.models.stages import Answerer, answerer
from smallfirst.tasks.task import PartCounts, ScoredAnswer, Task

WARM_UP_ROWS = 3


class EvaluationSetup(NamedTuple):
    """The task, rows and split that several candidates are evaluated on."""

    task: Task
    data: Dataset
    split: str
    progress: ProgressCallback = no_progress


async def evaluate(
    model: Model, setup: EvaluationSetup, *, candidate: str, probe_rows: int = 0, note: str = ""
) -> Evaluation:
    """Evaluate `model` on all rows; latencies come from `probe_rows` asked singly, or from its reports with 0."""
    examples, done = setup.data.examples, 0

    async def ask(example: Example) -> EvaluatedRow:
        nonlocal done
        completion = await model.complete(Request(messages=example.messages))
        done += 1
        setup.progress(done, len(examples))
        return score_row(example, completion, setup.task, candidate)

    setup.progress(0, len(examples))
    if probe_rows:
        forget_texts()  # other candidates, or the same one on its way through the Router, have read them
    began = time.perf_counter()
    rows = await asyncio.gather(*(ask(example) for example in examples))
    elapsed_s = time.perf_counter() - began
    latencies = [row.latency_ms for row in rows]
    if probe_rows:
        latencies = await _probe(model, sample_rows(setup.data, probe_rows).examples)
    result = summarize(
        rows,
        setup,
        candidate=candidate,
        model=model.name,
        latencies_ms=latencies,
        requests_per_s=len(rows) / elapsed_s if probe_rows else None,
        note=note,
    )
    return result.model_copy(update={"probes_ms": tuple(latencies) if probe_rows else ()})


async def _probe(model: Model, examples: Sequence[Example]) -> list[float]:
    for example in examples[:WARM_UP_ROWS]:
        await model.complete(Request(messages=example.messages))
    forget_texts()
    return [(await model.complete(Request(messages=e.messages))).latency_ms for e in examples]


def summarize(
    rows: Sequence[EvaluatedRow],
    setup: EvaluationSetup,
    *,
    candidate: str,
    model: str,
    latencies_ms: Sequence[float],
    requests_per_s: float | None,
    note: str = "",
) -> Evaluation:
    """Return the evaluation with all metrics computed from its rows."""
    answers = [row.answered for row in rows]
    return Evaluation(
        candidate=candidate,
        model=model,
        task=setup.task.name,
        split=setup.split,
        dataset_fingerprint=setup.data.content_fingerprint,
        rows=tuple(rows),
        accuracy=wilson(sum(row.correct for row in rows), len(rows)),
        measures=setup.task.measures(answers),
        parts=setup.task.parts(answers),
        cost_usd_per_1k=1000 * sum(row.cost_usd for row in rows) / max(1, len(rows)),
        p50_ms=float(np.median(latencies_ms)) if len(latencies_ms) else 0.0,
        p95_ms=float(np.quantile(latencies_ms, 0.95)) if len(latencies_ms) else 0.0,
        requests_per_s=requests_per_s,
        note=note,
    )


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Compare the accuracy of `first` with that of `second` on the rows both have."""
    pairs = [(row.correct, second.by_key[row.key].correct) for row in first.rows if row.key in second.by_key]
    return Comparison(
        first=first.candidate,
        second=second.candidate,
        difference=paired_difference([a for a, _ in pairs], [b for _, b in pairs]),
    )


def share_of_bill(candidate: Evaluation, large: Evaluation, *, confidence: float = 0.95) -> Estimate | None:
    """Return the cost over the large model's on the same rows; None without rows or a price.

    Interval: of the ratio of two means, linearized (Cochran 1977).
    """
    pairs = [(row.cost_usd, large.by_key[row.key].cost_usd) for row in candidate.rows if row.key in large.by_key]
    ours, theirs = np.array(pairs, dtype=float).reshape(-1, 2).T
    if not pairs or theirs.mean() <= 0:
        return None
    share = ours.mean() / theirs.mean()
    # A share that is just the allowed one must not be a little more in floating point.
    by_row = np.round(share + (ours - share * theirs) / theirs.mean(), 12)
    found = mean_interval(by_row, confidence=confidence)
    return found.model_copy(update={"low": max(0.0, found.low)})


def restrict_to_rows(evaluation: Evaluation, setup: EvaluationSetup) -> Evaluation:
    """Return the evaluation on the rows of a smaller split, without asking again; measured latencies stay."""
    rows = [evaluation.by_key[e.key] for e in setup.data.examples if e.key in evaluation.by_key]
    part = summarize(
        rows,
        setup,
        candidate=evaluation.candidate,
        model=evaluation.model,
        latencies_ms=[],
        requests_per_s=evaluation.requests_per_s,
        note=evaluation.note,
    )
    kept = {name: getattr(evaluation, name) for name in ("p50_ms", "p95_ms", "probes_ms")}
    return part.model_copy(update=kept)


def score_row(example: Example, completion: Completion, task: Task, candidate: str) -> EvaluatedRow:
    """Return the outcome of one row: the answer parsed and scored by the task; `candidate` answered unless routed."""
    answer = task.parse(completion.text)
    score = task.score(example.golds, answer)
    route, long = completion.route, is_document(example.text)
    # A Router may read a confidence of its own from a draft, but has none for an answer without one.
    routed = route.confidence if route and completion.confidence is not None else None
    return EvaluatedRow(
        key=example.key,
        text=example.text,
        gold=example.answer,
        also=example.also,
        answer=answer,
        score=score,
        correct=score >= task.pass_score,
        confidence=completion.confidence if routed is None else routed,
        stage=route.stage if route else candidate,
        certified=route.certified if route else False,
        latency_ms=completion.latency_ms,
        cost_usd=completion.cost_usd,
        field_confidence=completion.field_confidence,
        read={path: place for path, place in completion.read.items() if place and place.page and long},
        wrong_fields=task.wrong_fields(example.golds, answer),
        group=example.group,
        tags=example.tags,
    )


class EvaluatedRow(Record):
    """Outcome of one row."""

    key: str
    """Content key of the row, by which two evaluations are paired."""
    text: str
    gold: str
    also: tuple[str, ...] = ()
    answer: str | None
    score: float = 0.0
    """Score of the answer, in [0, 1]."""
    correct: bool
    """True if the score reaches the task's `pass_score`. No answer is wrong."""
    confidence: float | None
    """The model's confidence, in [0, 1]; None if it gives none."""
    stage: str
    """Stage of the Router that answered (`small`, `large`), or the candidate itself."""
    certified: bool
    """True if a Router's certificate covers the answer."""
    latency_ms: float
    cost_usd: float
    field_confidence: dict[str, float] = {}
    read: dict[str, ValuePlace] = {}
    """By numbered field path, where a value was read in a text of more than a passage."""
    wrong_fields: tuple[str, ...] | None = None
    """Top-level fields of a JSON answer that are wrong or missing; None where answers have no fields, or no record of
    them was kept."""
    group: str = ""
    """What the row shares with others, as its Example says; rows of a group are near-copies, not independent draws."""
    tags: dict[str, str] = {}
    """Its values of `data.columns.tags`, by column."""

    @property
    def answered(self) -> ScoredAnswer:
        return ScoredAnswer((self.gold, *self.also), self.answer, self.score, self.text)


class MeasuredFigures(Record):
    """What is measured of a candidate."""

    model: str
    accuracy: Estimate
    """Share of right answers, Wilson interval at 95 %."""
    measures: dict[str, Estimate] = {}
    """The task's own metrics by name (`macro_f1`, `field_f1`, `token_f1`), most important first."""
    cost_usd_per_1k: float
    """Mean cost of 1,000 answers in USD."""
    p50_ms: float
    """Median latency of one request."""
    p95_ms: float
    requests_per_s: float | None
    """Rows per second with all rows in flight at once; None for recorded answers."""
    note: str = ""
    """Note for the reader, such as when and by what it was recorded."""


class Evaluation(MeasuredFigures):
    """One candidate measured on one split."""

    candidate: str
    """Short name of the candidate: `words`, `encoder`, `tuned`, `base`, `small`, `large`, `routed`."""
    task: str
    split: str
    """`calibration` or `test`."""
    dataset_fingerprint: str
    rows: tuple[EvaluatedRow, ...]
    """Every row, in dataset order."""
    parts: tuple[PartCounts, ...] = ()
    probes_ms: tuple[float, ...] = ()
    """Latency in ms of each request that was asked one at a time; empty if none was."""

    @cached_property
    def by_key(self) -> dict[str, EvaluatedRow]:
        return {row.key: row for row in self.rows}

    @property
    def in_words(self) -> str:
        first = next(iter(self.measures.items()), None)
        more = f", {first[0]} {first[1]}" if first else ""
        return f"accuracy {self.accuracy} n={self.accuracy.n}{more}"

    @property
    def stays_small(self) -> list[bool]:
        """By row whether a small model's answer was given: not the large model's, a person's or a refusal."""
        return [answerer(row.stage) is Answerer.SMALL for row in self.rows]

    def share(self, who: str) -> float:
        """Return the share of rows that `who` (`small`, `large`, `general`, `person`, `nobody`) answered, in [0, 1]."""
        return sum(answerer(row.stage) == who for row in self.rows) / max(1, len(self.rows))


class Comparison(Record):
    """Two candidates compared on the same rows."""

    first: str
    second: str
    difference: Estimate
    """Accuracy of first minus second, in [-1, 1]."""
