"""The Evaluation record: one model, one set of rows, every row's outcome, and the figures drawn from them."""

from __future__ import annotations

from functools import cached_property

from smallfirst.records import Record
from smallfirst.stats import Estimate


class EvaluatedRow(Record):
    """What a model made of one row."""

    key: str
    """The row's content key, so that two evaluations can be paired."""
    text: str
    """What was asked."""
    gold: str
    """The right answer."""
    answer: str | None
    """The parsed answer; None if the model gave none."""
    correct: bool
    """No answer is wrong."""
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


class Evaluation(Record):
    """One candidate measured on one split."""

    candidate: str
    """Short name of the path: `words`, `encoder`, `base`, `small`, `large`, `routed`."""
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
    macro_f1: Estimate
    """Mean F1 over labels, percentile bootstrap at 95 %."""
    cost_usd_per_1k: float
    """Mean cost of 1,000 answers in USD."""
    p50_ms: float
    """Median latency of one request at a time."""
    p95_ms: float
    """95th percentile of the same."""
    requests_per_s: float | None
    """Rows per second with all rows in flight at once; None for recorded answers."""
    note: str = ""
    """What a reader must know: recorded when and by what, sampled how."""

    @cached_property
    def by_key(self) -> dict[str, EvaluatedRow]:
        """Rows by content key."""
        return {row.key: row for row in self.rows}

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
