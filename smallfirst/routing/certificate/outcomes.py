"""The cascade on calibration rows: the answers of every stage, and which stage answers each row at given thresholds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from smallfirst.errors import DataError
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.records import Record
from smallfirst.stats.intervals import upper_bound

NEVER_ACCEPT = 1.01
"""A threshold that no confidence reaches."""

LabelSource = Literal["gold", "large"]
"""Who decides what is right: gold labels, or the large model."""


class ForeignRows(NamedTuple):
    """Confidences of foreign calibration rows, which nothing was fitted on."""

    confidence: np.ndarray
    """By stage and row, in [0, 1]."""
    max_share: float
    """Share of foreign requests up to which the guarantee is to hold, in [0, 1)."""


@dataclass(frozen=True)
class CascadeData:
    """The answers of every stage to n calibration rows."""

    names: tuple[str, ...]
    confidence: np.ndarray
    """By stage and row, in [0, 1]; 0 where a model gives none."""
    right: np.ndarray
    """By stage and row, by `labels`."""
    answer: np.ndarray
    cost_usd: np.ndarray
    """By stage and row, the large model last; the mean of the others on a row that it was not asked."""
    asked: np.ndarray
    large_right: np.ndarray
    """By row: the large model was right; false where it was not asked."""
    labels: LabelSource = "gold"
    group: np.ndarray | None = None
    """By row: the group of near-copies that it belongs to, empty for none; None where no row has one."""
    tags: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By tag and row: its value, empty where the row has none."""
    foreign: ForeignRows | None = None
    """Foreign rows; None if none are known, and the guarantee is about the task's own requests alone."""

    @property
    def n(self) -> int:
        return int(self.confidence.shape[1])

    @property
    def n_stages(self) -> int:
        return int(self.confidence.shape[0])

    @property
    def foreign_share(self) -> float:
        """Share of foreign requests up to which the guarantee is to hold, in [0, 1)."""
        return self.foreign.max_share if self.foreign else 0.0

    @property
    def paired(self) -> np.ndarray:
        """By row: the large model was asked, and the right answer is known from another source."""
        return self.asked & (self.labels == "gold")

    @property
    def large_known(self) -> bool:
        return bool(self.asked.any())

    @cached_property
    def cumulative_cost_usd(self) -> np.ndarray:
        """By stage and row: cost in USD of the stage's answer and every draft before it."""
        return np.asarray(self.cost_usd.cumsum(axis=0))

    def outcome(self, thresholds: Sequence[float]) -> CascadeOutcome:
        confident = self.confidence >= np.asarray(thresholds, dtype=float)[:, None]
        stage = np.where(confident.any(axis=0), confident.argmax(axis=0), self.n_stages)
        found = CascadeOutcome(self, stage)
        if self.foreign is None:
            return found
        confident = self.foreign.confidence >= np.asarray(thresholds, dtype=float)[:, None]
        return replace(found, n_foreign_accepted=int(confident.any(axis=0).sum()))

    def take(self, rows: np.ndarray) -> CascadeData:
        cut = {name: getattr(self, name)[..., rows] for name in ("confidence", "right", "answer", "cost_usd")}
        cut |= {name: getattr(self, name)[rows] for name in ("asked", "large_right")}
        cut |= {} if self.group is None else {"group": self.group[rows]}
        return replace(self, tags={name: values[rows] for name, values in self.tags.items()}, **cut)


@dataclass(frozen=True)
class CascadeOutcome:
    """Which stage answers each row at given thresholds."""

    data: CascadeData
    stage: np.ndarray
    """By row: number of the stage that answers; the number of stages for the large model."""
    n_foreign_accepted: int = 0
    """Foreign rows that a stage answers."""

    @cached_property
    def accepted(self) -> np.ndarray:
        return np.asarray(self.stage < self.data.n_stages)

    @cached_property
    def n_accepted(self) -> int:
        return int(self.accepted.sum())

    def select(self, table: np.ndarray) -> np.ndarray:
        return np.asarray(table[self.stage, np.arange(self.data.n)])

    @cached_property
    def right(self) -> np.ndarray:
        """By row: the answer is right, the large model's where it answers."""
        return self.select(np.vstack([self.data.right, self.data.large_right]))

    @cached_property
    def mean_cost_usd(self) -> float:
        return float(self.select(self.data.cumulative_cost_usd).mean()) if self.data.n else 0.0


class ForeignAccepted(Record):
    """Foreign calibration rows, which nothing was fitted on, at the certificate's thresholds."""

    n: int
    n_accepted: int
    """Those that a stage would answer, certified."""
    bound: float
    """Exact one-sided upper bound on their share, in [0, 1], at the certificate's confidence."""
    max_outside: float | None = None
    """Share of requests, in [0, 1], that the domain check by itself may call foreign before more are foreign than the
    guarantee counts on; None if it counts on none."""


def max_outside(share: float, own: tuple[int, int], foreign: tuple[int, int], *, confidence: float = 0.95) -> float:
    """Return the most of all requests that a check can call foreign while at most `share` are, in [0, 1].

    `own` and `foreign`: rows of the kind that it calls so, and their number; two exact bounds divide the level.
    """
    level = (1 + confidence) / 2
    of_own, of_foreign = (upper_bound(*counts, confidence=level) for counts in (own, foreign))
    return max(of_own, (1 - share) * of_own + share * of_foreign)


def with_foreign(data: CascadeData, confidence: Sequence[Sequence[float]], max_share: float) -> CascadeData:
    """Return the rows with foreign ones, their confidences by stage; unchanged if none are known or asked for."""
    if not confidence and not max_share:
        return data
    table = np.array(confidence or [()] * data.n_stages, dtype=float)
    return replace(data, foreign=ForeignRows(table, max_share))


def foreign_accepted(outcome: CascadeOutcome, confidence: float) -> ForeignAccepted | None:
    """Return what becomes of the foreign rows, with a bound at level `confidence`; None without any."""
    foreign, n_accepted = outcome.data.foreign, outcome.n_foreign_accepted
    if foreign is None or not foreign.confidence.shape[1]:
        return None
    n = foreign.confidence.shape[1]
    return ForeignAccepted(n=n, n_accepted=n_accepted, bound=upper_bound(n_accepted, n, confidence=confidence))


def cascade_data(drafts: Sequence[Evaluation], large: Evaluation | None, labels: LabelSource = "gold") -> CascadeData:
    """Return the cascade of `drafts`, cheapest first, on the last one's rows. Raise DataError if a draft lacks some."""
    rows = drafts[-1].rows
    stages = [_rows_in_order(draft, rows, drafts[-1].candidate) for draft in drafts]
    of_large = [large.by_key.get(row.key) if large else None for row in rows]
    asked = np.array([row is not None for row in of_large], dtype=bool)
    large_cost = np.array([row.cost_usd if row else 0.0 for row in of_large])
    if asked.any():
        large_cost[~asked] = large_cost[asked].mean()
    return CascadeData(
        names=tuple(draft.candidate for draft in drafts),
        confidence=_table(stages, lambda row: row.confidence or 0.0, float),
        right=_table(stages, lambda row: row.correct, bool),
        answer=_table(stages, lambda row: row.answer, object),
        cost_usd=np.vstack([_table(stages, lambda row: row.cost_usd, float), large_cost]),
        asked=asked,
        large_right=np.array([row is not None and (row.correct or labels != "gold") for row in of_large], dtype=bool),
        labels=labels,
        group=np.array([row.group for row in rows], dtype=object) if any(row.group for row in rows) else None,
        tags={
            name: np.array([row.tags.get(name, "") for row in rows], dtype=object)
            for name in sorted({name for row in rows for name in row.tags})
        },
    )


def _table(
    stages: Sequence[Sequence[EvaluatedRow]], of: Callable[[EvaluatedRow], object], kind: type[object]
) -> np.ndarray:
    return np.array([[of(row) for row in rows] for rows in stages], dtype=kind).reshape(len(stages), -1)


def _rows_in_order(draft: Evaluation, rows: Sequence[EvaluatedRow], last: str) -> list[EvaluatedRow]:
    missing = sum(row.key not in draft.by_key for row in rows)
    if missing:
        raise DataError(
            f"{draft.candidate} was not measured on {missing} of the {len(rows)} calibration rows of {last}",
            hint="smallfirst evaluate task.yaml",
        )
    return [draft.by_key[row.key] for row in rows]
