"""The Evaluation record: one model, one set of rows, every row's outcome, and the figures drawn from them."""

from __future__ import annotations

from functools import cached_property

from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate
from smallfirst.tasks.task import PartCounts, ScoredAnswer


class EvaluatedRow(Record):
    """What a model made of one row."""

    key: str
    """The row's content key, so that two evaluations can be paired."""
    text: str
    """What was asked."""
    gold: str
    """The right answer."""
    also: tuple[str, ...] = ()
    """Other answers that are as right."""
    answer: str | None
    """The parsed answer; None if the model gave none."""
    score: float = 0.0
    """How right it is, in [0, 1]."""
    correct: bool
    """True if the score reaches the task's `pass_score`. No answer is wrong."""
    confidence: float | None
    """In [0, 1], as the model sees it."""
    stage: str
    """Which stage of a Router answered (`small`, `large`), or the candidate itself."""
    certified: bool
    """True if a Router's certificate covers the answer."""
    latency_ms: float
    """As reported by the model for this row; under load it includes waiting."""
    cost_usd: float
    """Cost of this answer in USD."""
    field_confidence: dict[str, float] = {}
    """Confidence by field of a JSON answer."""

    @property
    def answered(self) -> ScoredAnswer:
        """The row as tasks draw figures from it."""
        return ScoredAnswer((self.gold, *self.also), self.answer, self.score, self.text)


class Evaluation(Record):
    """One candidate measured on one split."""

    candidate: str
    """Short name of the path: `words`, `encoder`, `tuned`, `base`, `small`, `large`, `routed`."""
    model: str
    """The model's own name."""
    task: str
    """Task name."""
    split: str
    """`validation` or `test`."""
    dataset_fingerprint: str
    """Content fingerprint of the rows."""
    rows: tuple[EvaluatedRow, ...]
    """Every row, in dataset order."""
    accuracy: Estimate
    """Share of right answers, Wilson interval at 95 %."""
    measures: dict[str, Estimate] = {}
    """The task's own figures by name (`macro_f1`, `field_f1`, `token_f1`), most telling first."""
    parts: tuple[PartCounts, ...] = ()
    """Counts by label or by field."""
    cost_usd_per_1k: float
    """Mean cost of 1,000 answers in USD."""
    p50_ms: float
    """Median latency of one request at a time."""
    p95_ms: float
    """95th percentile of the same."""
    requests_per_s: float | None
    """Rows per second with all rows in flight at once; None for recorded answers."""
    probes_ms: tuple[float, ...] = ()
    """Latency in ms of each request that was asked one at a time; empty where none was."""
    note: str = ""
    """What a reader must know: recorded when and by what, sampled how."""

    @cached_property
    def by_key(self) -> dict[str, EvaluatedRow]:
        """Rows by content key."""
        return {row.key: row for row in self.rows}

    @property
    def in_words(self) -> str:
        """Accuracy and the most telling other figure, for one line."""
        first = next(iter(self.measures.items()), None)
        more = f", {first[0]} {first[1]}" if first else ""
        return f"accuracy {self.accuracy} n={self.accuracy.n}{more}"

    def share(self, stage: str) -> float:
        """Share of rows answered by `stage`, in [0, 1]."""
        return sum(row.stage == stage for row in self.rows) / max(1, len(self.rows))


class Comparison(Record):
    """Two evaluations on the same rows."""

    first: str
    """Candidate whose accuracy is the minuend."""
    second: str
    """Candidate whose accuracy is subtracted."""
    difference: Estimate
    """Accuracy of first minus second, in [-1, 1]."""
    only_first: int
    """Rows that only the first gets right."""
    only_second: int
    """Rows that only the second gets right."""
    p_value: float
    """Exact two-sided McNemar."""
