"""evaluate(): one way to measure everything that answers — a fine-tuned model, an endpoint, recordings, a Router.

All rows are in flight at once (a Model limits itself), which gives accuracy and throughput; latency is measured
afterwards, one request at a time, on a few of the same rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np

from smallfirst.data.dataset import Dataset, Example
from smallfirst.evaluation.results import Comparison, EvaluatedRow, Evaluation
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.stats.intervals import mcnemar, paired_difference, wilson
from smallfirst.tasks.task import Task

ProgressCallback = Callable[[int, int], None]


class EvaluationSetup:
    """How to run an evaluation: what stays the same from candidate to candidate."""

    def __init__(self, task: Task, data: Dataset, *, split: str, progress: ProgressCallback | None = None) -> None:
        self.task, self.data, self.split = task, data, split
        self.progress = progress or (lambda done, total: None)


async def evaluate(
    model: Model, measuring: EvaluationSetup, *, candidate: str, probe_rows: int = 0, note: str = ""
) -> Evaluation:
    """The Evaluation of `model` on all rows of the split.

    With `probe_rows` the latency figures come from that many rows asked one at a time after a warm-up; with 0 from the
    latencies the model reports for every row (endpoints, recordings). Raises what the model raises.
    """
    examples, done = measuring.data.examples, 0

    async def ask(example: Example) -> EvaluatedRow:
        nonlocal done
        completion = await model.complete(Request(messages=example.messages))
        done += 1
        measuring.progress(done, len(examples))
        return _row(example, completion, measuring.task, candidate)

    began = time.perf_counter()
    rows = await asyncio.gather(*(ask(example) for example in examples))
    elapsed_s = time.perf_counter() - began
    latencies = [row.latency_ms for row in rows]
    if probe_rows:
        latencies = await _probe(model, examples[:probe_rows])
    found = summarize(
        rows,
        measuring,
        candidate=candidate,
        model=model.name,
        latencies_ms=latencies,
        requests_per_s=len(rows) / elapsed_s if probe_rows else None,
        note=note,
    )
    return found.model_copy(update={"probes_ms": tuple(latencies) if probe_rows else ()})


async def _probe(model: Model, examples: Sequence[Example]) -> list[float]:
    """Latency in ms of each request, asked one at a time, after three for warm-up."""
    for example in examples[:3]:
        await model.complete(Request(messages=example.messages))
    return [(await model.complete(Request(messages=e.messages))).latency_ms for e in examples]


def summarize(
    rows: Sequence[EvaluatedRow],
    measuring: EvaluationSetup,
    *,
    candidate: str,
    model: str,
    latencies_ms: Sequence[float],
    requests_per_s: float | None,
    note: str = "",
) -> Evaluation:
    """The figures of an evaluation from its rows."""
    right = sum(row.correct for row in rows)
    return Evaluation(
        candidate=candidate,
        model=model,
        task=measuring.task.name,
        split=measuring.split,
        dataset_fingerprint=measuring.data.content_fingerprint,
        rows=tuple(rows),
        accuracy=wilson(right, len(rows)),
        measures=measuring.task.measures([row.answered for row in rows]),
        parts=measuring.task.parts([row.answered for row in rows]),
        cost_usd_per_1k=1000 * sum(row.cost_usd for row in rows) / max(1, len(rows)),
        p50_ms=float(np.median(latencies_ms)) if len(latencies_ms) else 0.0,
        p95_ms=float(np.quantile(latencies_ms, 0.95)) if len(latencies_ms) else 0.0,
        requests_per_s=requests_per_s,
        note=note,
    )


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Accuracy of `first` minus `second` on the rows both have seen."""
    keys = [row.key for row in first.rows if row.key in second.by_key]
    a = [first.by_key[key].correct for key in keys]
    b = [second.by_key[key].correct for key in keys]
    only_first = sum(x and not y for x, y in zip(a, b, strict=True))
    only_second = sum(y and not x for x, y in zip(a, b, strict=True))
    return Comparison(
        first=first.candidate,
        second=second.candidate,
        difference=paired_difference(a, b),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def restrict_to_rows(evaluation: Evaluation, measuring: EvaluationSetup) -> Evaluation:
    """The same evaluation on the rows of a smaller split, nothing asked again."""
    rows = [evaluation.by_key[e.key] for e in measuring.data.examples if e.key in evaluation.by_key]
    part = summarize(
        rows,
        measuring,
        candidate=evaluation.candidate,
        model=evaluation.model,
        latencies_ms=[row.latency_ms for row in rows],
        requests_per_s=evaluation.requests_per_s,
        note=evaluation.note,
    )
    kept = {name: getattr(evaluation, name) for name in ("p50_ms", "p95_ms", "probes_ms")}
    return part.model_copy(update=kept)


def _row(example: Example, completion: Completion, task: Task, candidate: str) -> EvaluatedRow:
    answer = task.parse(completion.text)
    score = task.score(example.golds, answer)
    route = completion.route
    return EvaluatedRow(
        key=example.key,
        text=example.text,
        gold=example.answer,
        also=example.also,
        answer=answer,
        score=score,
        correct=score >= task.pass_score,
        confidence=_confidence(completion),
        stage=route.stage if route else candidate,
        certified=route.certified if route else False,
        latency_ms=completion.latency_ms,
        cost_usd=completion.cost_usd,
        field_confidence=completion.field_confidence,
    )


def _confidence(completion: Completion) -> float | None:
    """How sure whoever answered is: as its Router reads it, if one does; None for one that has no view of its own."""
    read = completion.route.confidence if completion.route else None
    return completion.confidence if completion.confidence is None or read is None else read
