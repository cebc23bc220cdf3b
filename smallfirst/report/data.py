"""What a report is drawn from: one frozen record, so a page can be made again at any time.

Nothing is measured here and nothing is looked up; the price is that whoever makes the record
must hand over every figure, with the rows behind it.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal, NamedTuple

import pydantic

from smallfirst.evaluation.results import Comparison, Evaluation
from smallfirst.evaluation.retention import Retention
from smallfirst.gate.verdict import Verdict
from smallfirst.pricing import MachinePrice
from smallfirst.records import Record
from smallfirst.report.findings import Ceiling, LeakEffect, LearningPoint, Suspect
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.stats.intervals import Estimate, upper_bound, wilson


class TrainingSummary(Record):
    """How the small model was fine-tuned."""

    base: str
    """Name of the base model."""
    method: str
    """`full` or `lora`, as the training run calls it."""
    epochs: float
    """Passes over the training rows."""
    seconds: float
    """Wall-clock time of the whole run in s."""
    tokens_per_s: float
    """Tokens trained on per second."""
    train_rows: int
    """Rows trained on."""
    cost_usd: float
    """What the run cost in USD, at the machine's price."""
    loss_curve: tuple[tuple[int, float], ...] = ()
    """(step, training loss)."""
    validation_curve: tuple[tuple[float, float], ...] = ()
    """(epoch, mean score on selection rows; accuracy where answers are just right or wrong)."""


class ListPrice(NamedTuple):
    """Published price of a hosted model; a plain tuple of the same three is accepted as well."""

    model: str
    input_usd_per_mtok: float
    output_usd_per_mtok: float


class PromiseHeld(Record):
    """How the certificate's promise did on test rows, which were used for nothing else."""

    errors_kept: int
    """Wrong answers among the kept ones."""
    n_kept: int
    """Test rows whose answer was kept small under the certificate."""
    error: Estimate
    """Error of kept answers with the exact two-sided 95 % interval (Clopper and Pearson 1934)."""

    @classmethod
    def count(cls, errors_kept: int, n_kept: int) -> PromiseHeld:
        """The record for these counts, interval included."""
        low = 1.0 - upper_bound(n_kept - errors_kept, n_kept, confidence=0.975)
        high = upper_bound(errors_kept, n_kept, confidence=0.975)
        value = errors_kept / n_kept if n_kept else 0.0
        error = Estimate(value=value, low=low, high=high, n=n_kept)
        return cls(errors_kept=errors_kept, n_kept=n_kept, error=error)

    @classmethod
    def on(cls, routed: Evaluation) -> PromiseHeld:
        """The record drawn from the certified rows of a Router's evaluation."""
        kept = [row for row in routed.rows if row.certified]
        return cls.count(sum(not row.correct for row in kept), len(kept))


class OutOfScopeRequests(Record):
    """What the Router did with requests that are none of the task's business."""

    n_requests: int
    """Open-ended requests asked."""
    n_to_large: int
    """Of these, sent to the large model."""

    @property
    def share(self) -> Estimate:
        """Share sent to the large model, Wilson interval."""
        return wilson(self.n_to_large, self.n_requests)


class ReportData(Record):
    """Everything a report shows."""

    title: str
    """Heading of the page."""
    task: str
    """Task name."""
    part: Literal["label", "field", ""] = "label"
    """What the counts of an evaluation are of; empty if the task has no parts."""
    request_noun: str = "requests"
    """What the rows are called, in the plural."""
    pass_score: float = 1.0
    """Score in (0, 1] from which an answer counts as right."""
    evaluations: tuple[Evaluation, ...]
    """Test evaluations in ladder order: any of words, encoder, tuned, base, small, large, routed."""
    validation_evaluations: tuple[Evaluation, ...] = ()
    """Validation evaluations, listed under how it was measured."""
    verdicts: tuple[Verdict, ...] = ()
    """The gate's answer for each candidate it was asked about."""
    smallest_passing: str | None = None
    """The smallest candidate that passes the gate; None if none does."""
    certificate: Certificate | None = None
    """The Router's promise; None if no calibration was made."""
    comparisons: tuple[Comparison, ...] = ()
    """Paired comparisons: small - large, routed - large, small - words, small - encoder, small - tuned."""
    training: TrainingSummary | None = None
    """The fine-tune; None if nothing was trained."""
    machine: MachinePrice = MachinePrice()
    """Price of the machine that runs the small model."""
    requests_per_month: int = 1_000_000
    """Assumed volume."""
    list_prices: tuple[ListPrice, ...] = ()
    """Hosted models to price the large path's tokens at: (name, input, output USD per Mtok)."""
    large_prompt_tokens: float = 0.0
    """Mean prompt tokens of one request on the large path."""
    large_completion_tokens: float = 0.0
    """Mean completion tokens of one request on the large path."""
    promise_held: PromiseHeld | None = None
    """The promise on test rows; None if there is no certificate."""
    open_ended: OutOfScopeRequests | None = None
    """The Router on requests outside the task; None if not tried."""
    probes_ms: dict[str, tuple[float, ...]] = pydantic.Field(default_factory=dict)
    """By candidate: latency in ms of each request that was asked one at a time."""
    learning_curve: tuple[LearningPoint, ...] = ()
    """Accuracy by number of training rows: (rows, candidate, accuracy)."""
    suspects: tuple[Suspect, ...] = ()
    """Rows whose given answer is probably wrong, the surest first."""
    suspects_export: str = ""
    """Command that writes the suspects to a file for relabelling."""
    ceiling: Ceiling | None = None
    """How well the large model agrees with itself and with the data; None if not measured."""
    leaks: LeakEffect | None = None
    """Test rows found among the training rows; None if not looked for."""
    retention: Retention | None = None
    """General ability before and after the fine-tune; None if not measured."""
    notes: tuple[str, ...] = ()
    """What a reader must know, one sentence each."""
    made_at: datetime
    """When the figures were put together."""
    versions: dict[str, str] = pydantic.Field(default_factory=dict)
    """Versions of the packages, machine and models behind the figures."""

    @pydantic.model_validator(mode="after")
    def _each_candidate_once(self) -> ReportData:
        names = [evaluation.candidate for evaluation in self.evaluations]
        if not names:
            raise ValueError("a report needs at least one evaluation")
        # Names become CSS classes in the charts.
        charted = [*names, *(point.candidate for point in self.learning_curve)]
        odd = [name for name in charted if not re.fullmatch(r"[A-Za-z][\w-]*", name)]
        if odd:
            raise ValueError(f"candidate names are plain words, not {odd[0]!r}")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"evaluated more than once: {', '.join(repeated)}")
        return self

    @pydantic.model_validator(mode="after")
    def _smallest_passing_passed(self) -> ReportData:
        verdict = self.verdict(self.smallest_passing or "")
        if verdict is not None and not verdict.passed:
            raise ValueError(f"smallest_passing is {verdict.candidate}, which failed the gate")
        return self

    def evaluation(self, candidate: str) -> Evaluation | None:
        """The test evaluation of a candidate, or None."""
        return next((e for e in self.evaluations if e.candidate == candidate), None)

    def verdict(self, candidate: str) -> Verdict | None:
        """The gate's answer for a candidate, or None."""
        return next((v for v in self.verdicts if v.candidate == candidate), None)

    def comparison(self, first: str, second: str) -> Comparison | None:
        """The paired comparison of two candidates, or None."""
        return next((c for c in self.comparisons if (c.first, c.second) == (first, second)), None)
