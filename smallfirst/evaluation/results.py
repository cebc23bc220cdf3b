"""Results of an evaluation: every row's outcome, the metrics over all rows, and paired comparisons."""

from __future__ import annotations

from functools import cached_property

from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate
from smallfirst.tasks.task import PartCounts, ScoredAnswer


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


class Evaluation(Record):
    """One candidate measured on one split."""

    candidate: str
    """Short name of the candidate: `words`, `encoder`, `tuned`, `base`, `small`, `large`, `routed`."""
    model: str
    task: str
    split: str
    """`calibration` or `test`."""
    dataset_fingerprint: str
    rows: tuple[EvaluatedRow, ...]
    """Every row, in dataset order."""
    accuracy: Estimate
    """Share of right answers, Wilson interval at 95 %."""
    measures: dict[str, Estimate] = {}
    """The task's own metrics by name (`macro_f1`, `field_f1`, `token_f1`), most important first."""
    parts: tuple[PartCounts, ...] = ()
    cost_usd_per_1k: float
    """Mean cost of 1,000 answers in USD."""
    p50_ms: float
    p95_ms: float
    requests_per_s: float | None
    """Rows per second with all rows in flight at once; None for recorded answers."""
    probes_ms: tuple[float, ...] = ()
    """Latency in ms of each request that was asked one at a time; empty if none was."""
    note: str = ""
    """Note for the reader, such as when and by what it was recorded."""

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
        return [row.stage not in ("large", "general", "person", "out_of_scope") for row in self.rows]

    def share(self, stage: str) -> float:
        """Return the share of rows answered by `stage`, in [0, 1]."""
        return sum(row.stage == stage for row in self.rows) / max(1, len(self.rows))


class Comparison(Record):
    """Two candidates compared on the same rows."""

    first: str
    second: str
    difference: Estimate
    """Accuracy of first minus second, in [-1, 1]."""
    only_first: int
    """Rows that only the first gets right."""
    only_second: int
    """Rows that only the second gets right."""
    p_value: float
    """Exact two-sided McNemar test."""
