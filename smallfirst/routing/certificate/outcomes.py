"""A cascade on calibration rows: what every stage answered, and who answers which row at given thresholds.

A request walks from the cheapest drafting stage to the dearest; the first one sure enough answers, and what none keeps
goes to the large model. A walk pays for every draft on its way. All of it is arrays, stages by rows, because a search
takes the same rows through hundreds of thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from smallfirst.errors import DataError
from smallfirst.evaluation.results import EvaluatedRow, Evaluation

NEVER_ACCEPT = 1.01
"""A threshold no confidence reaches."""

LabelSource = Literal["gold", "large", "large+gold"]
"""Who said what is right: gold answers, the large model, or the large model corrected by some gold answers."""


@dataclass(frozen=True)
class CascadeData:
    """What every stage made of n calibration rows."""

    names: tuple[str, ...]
    """Drafting stages, cheapest first."""
    confidence: np.ndarray
    """By stage and row, in [0, 1]; no confidence is 0."""
    right: np.ndarray
    """By stage and row, as `labels` says; with `large+gold` by gold, and only where `gold` is true."""
    answer: np.ndarray
    """By stage and row: the answer, or None."""
    cost_usd: np.ndarray
    """By stage and row, the large model last; a row that it was not asked costs the mean of those it was."""
    latency_ms: np.ndarray
    """The same in ms; a draft lasts as long as the slowest request it was asked alone, if it was. 0 where large was
    not asked."""
    asked: np.ndarray
    """By row: the large model was asked."""
    large_right: np.ndarray
    """By row: the large model was right; false where it was not asked or gold is not known."""
    gold: np.ndarray
    """By row: the right answer is known from somebody else than the large model."""
    agrees: np.ndarray
    """By stage and row: right by the large model's answer; equals `right` unless labels are `large+gold`."""
    labels: LabelSource = "gold"
    """Where the labels come from."""

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.confidence.shape[1])

    @property
    def n_stages(self) -> int:
        """Number of drafting stages."""
        return int(self.confidence.shape[0])

    @property
    def paired(self) -> np.ndarray:
        """By row: both the drafts and the large model can be judged by gold."""
        both: np.ndarray = self.asked & self.gold
        return both

    @property
    def large_known(self) -> bool:
        """True if the large model was measured at all."""
        return bool(self.asked.any())

    @cached_property
    def cumulative_cost_usd(self) -> np.ndarray:
        """By stage and row: USD for the stage's answer and every draft before it."""
        return np.asarray(self.cost_usd.cumsum(axis=0))

    @cached_property
    def cumulative_latency_ms(self) -> np.ndarray:
        """By stage and row: the same in ms."""
        return np.asarray(self.latency_ms.cumsum(axis=0))

    def walk(self, thresholds: Sequence[float]) -> CascadeOutcome:
        """Who answers each row at these thresholds, one a stage."""
        sure = self.confidence >= np.asarray(thresholds, dtype=float)[:, None]
        taken = np.where(sure.any(axis=0), sure.argmax(axis=0), self.n_stages)
        return CascadeOutcome(self, taken, all_kept=min(thresholds) <= 0)

    def take(self, rows: np.ndarray) -> CascadeData:
        """The same on some rows, by number."""
        cut = {
            name: getattr(self, name)[..., rows]
            for name in ("confidence", "right", "answer", "cost_usd", "latency_ms", "agrees")
        }
        cut |= {name: getattr(self, name)[rows] for name in ("asked", "large_right", "gold")}
        return CascadeData(names=self.names, labels=self.labels, **cut)


@dataclass(frozen=True)
class CascadeOutcome:
    """Every row's way through the cascade."""

    answers: CascadeData
    """The rows."""
    taken: np.ndarray
    """By row: number of the stage that answers; the number of stages for the large model."""
    all_kept: bool = False
    """No request whatever can reach the large model."""

    @cached_property
    def kept(self) -> np.ndarray:
        """By row: a drafting stage answers."""
        return np.asarray(self.taken < self.answers.n_stages)

    @cached_property
    def n_kept(self) -> int:
        """How many rows stay small."""
        return int(self.kept.sum())

    def select_taken(self, table: np.ndarray) -> np.ndarray:
        """By row: the entry of the stage that answers, from a table by stage and row."""
        return np.asarray(table[self.taken, np.arange(self.answers.n)])

    @cached_property
    def right(self) -> np.ndarray:
        """By row: the answer is right, the large model's where it answers."""
        return self.select_taken(np.vstack([self.answers.right, self.answers.large_right]))

    @property
    def max_cost_usd(self) -> float:
        """What one request is taken to cost at most: twice the dearest full walk that was seen."""
        return 2 * float(self.answers.cumulative_cost_usd[-2 if self.all_kept else -1].max(initial=0.0))

    @cached_property
    def mean_cost_usd(self) -> float:
        """Of a request, drafts that were thrown away included."""
        return float(self.select_taken(self.answers.cumulative_cost_usd).mean()) if self.answers.n else 0.0

    @cached_property
    def large_helps_below(self) -> bool:
        """True if the large model was right more often on what is not kept, or was not measured there."""
        both = ~self.kept & self.answers.paired
        ours, theirs = self.answers.right[-1][both].sum(), self.answers.large_right[both].sum()
        return bool(theirs > ours or not both.any())


def cascade_data(drafts: Sequence[Evaluation], large: Evaluation | None, labels: LabelSource = "gold") -> CascadeData:
    """The cascade of `drafts`, cheapest first, on the rows of the last one.

    Raises DataError if a draft was not measured on all of them.
    """
    rows = drafts[-1].rows
    stages = [_same_rows(draft, rows, drafts[-1].candidate) for draft in drafts]
    right = _table(stages, lambda row: row.correct, bool)
    theirs = [large.by_key.get(row.key) if large else None for row in rows]
    measured = _measured(stages, theirs)
    for stage, draft in enumerate(drafts):
        if draft.probes_ms:  # a row's own latency includes waiting for the others
            measured["latency_ms"][stage] = max(draft.probes_ms)
    gold = np.full(len(rows), labels == "gold")
    return CascadeData(
        names=tuple(draft.candidate for draft in drafts),
        right=right,
        large_right=np.array([row is not None and (row.correct or labels != "gold") for row in theirs], dtype=bool),
        gold=gold,
        agrees=right,
        labels=labels,
        **measured,
    )


def cascade_data_without_gold(
    small: Evaluation, large: Evaluation, gold: Mapping[str, str], score: Callable[[str | None, str], bool]
) -> CascadeData:
    """The rows that both models answered, judged by the large one's answers, and by `gold` where it has the row's key.

    `score` says whether an answer is right, given the right one. Rows to which the large model gave no answer are left
    out: nobody has said what is right there.
    """
    pairs = [(row, large.by_key[row.key]) for row in small.rows if row.key in large.by_key]
    pairs = [(ours, theirs) for ours, theirs in pairs if theirs.answer is not None]
    stages, theirs = [[ours for ours, _ in pairs]], [row for _, row in pairs]
    known = np.array([row.key in gold for row in theirs], dtype=bool)
    agrees = np.array([[score(ours.answer, row.answer or "") for ours, row in pairs]], dtype=bool)
    ours, large_right = (
        np.array([row.key in gold and score(row.answer, gold[row.key]) for row in rows], dtype=bool)
        for rows in (stages[0], theirs)
    )
    some = bool(known.any())
    return CascadeData(
        names=(small.candidate,),
        right=ours[None, :] if some else agrees,
        large_right=large_right if some else np.ones(len(theirs), dtype=bool),
        gold=known,
        agrees=agrees,
        labels="large+gold" if some else "large",
        **_measured(stages, theirs),
    )


def with_routing_cost(evaluation: Evaluation, *, cost_usd: float, latency_ms: float) -> Evaluation:
    """The evaluation with the router's own price added to each row: give the first draft so, and walks pay for it."""
    rows = tuple(
        row.model_copy(update={"cost_usd": row.cost_usd + cost_usd, "latency_ms": row.latency_ms + latency_ms})
        for row in evaluation.rows
    )
    fields = {name: getattr(evaluation, name) for name in Evaluation.model_fields}
    for name, more in {"cost_usd_per_1k": 1000 * cost_usd, "p50_ms": latency_ms, "p95_ms": latency_ms}.items():
        fields[name] += more
    probes = tuple(one + latency_ms for one in evaluation.probes_ms)
    return Evaluation(**{**fields, "rows": rows, "probes_ms": probes})


def _measured(stages: Sequence[Sequence[EvaluatedRow]], theirs: Sequence[EvaluatedRow | None]) -> dict[str, np.ndarray]:
    asked = np.array([row is not None for row in theirs], dtype=bool)
    large_cost = np.array([row.cost_usd if row else 0.0 for row in theirs])
    if asked.any():
        large_cost[~asked] = large_cost[asked].mean()
    large_latency = np.array([row.latency_ms if row else 0.0 for row in theirs])
    return {
        "confidence": _table(stages, lambda row: row.confidence or 0.0, float),
        "answer": _table(stages, lambda row: row.answer, object),
        "cost_usd": np.vstack([_table(stages, lambda row: row.cost_usd, float), large_cost]),
        "latency_ms": np.vstack([_table(stages, lambda row: row.latency_ms, float), large_latency]),
        "asked": asked,
    }


def _table(
    stages: Sequence[Sequence[EvaluatedRow]], of: Callable[[EvaluatedRow], object], kind: type[object]
) -> np.ndarray:
    return np.array([[of(row) for row in rows] for rows in stages], dtype=kind).reshape(len(stages), -1)


def _same_rows(draft: Evaluation, rows: Sequence[EvaluatedRow], last: str) -> list[EvaluatedRow]:
    missing = sum(row.key not in draft.by_key for row in rows)
    if missing:
        raise DataError(
            f"{draft.candidate} was not measured on {missing} of the {len(rows)} calibration rows of {last}",
            hint="smallfirst evaluate task.yaml",
        )
    return [draft.by_key[row.key] for row in rows]
