"""The data of a report: one frozen record, so a page can be made again at any time."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal

import pydantic

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.data.copies import LeakReport
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.label_errors import Suspect
from smallfirst.measuring.learning_curve import LearningPoint
from smallfirst.measuring.outcome import Outcome
from smallfirst.measuring.self_agreement import SelfAgreement
from smallfirst.measuring.verdict import Verdict, nearest_to_passing
from smallfirst.models.pricing.prices import MachinePrice
from smallfirst.path.project.candidate_registry import FINE_TUNED
from smallfirst.routing.certificate.certificate import Certificate


class TrainingSummary(Record):
    """How the small model was fine-tuned."""

    base: str
    method: str
    """`full` or `lora`."""
    epochs: float
    seconds: float
    tokens_per_s: float
    train_rows: int
    cost_usd: float


class OpenEndedRouting(Record):
    """Where the Router sent open-ended requests that it was not fitted on."""

    n_requests: int
    n_to_large: int
    """Requests that went to the large model."""

    @property
    def share(self) -> Estimate:
        return wilson(self.n_to_large, self.n_requests)


class LeakEffect(Record):
    """Test rows that are also training rows, and what they do to the accuracy."""

    n_leaked: int
    n_test: int
    candidate: str = "small"
    accuracy_with: Estimate | None = None
    accuracy_without: Estimate | None = None
    note: str = ""
    """Counts by kind of match."""

    @classmethod
    def measure(cls, evaluation: Evaluation, leaks: LeakReport) -> LeakEffect:
        rest = [row.correct for row in evaluation.rows if row.key not in leaks.keys]
        return cls(
            n_leaked=leaks.n_leaked,
            n_test=leaks.n_test,
            candidate=evaluation.candidate,
            accuracy_with=evaluation.accuracy,
            accuracy_without=wilson(sum(rest), len(rest)),
            note=(
                f"Identical text: {len(leaks.exact):,}; identical but for case, punctuation and spacing: "
                f"{len(leaks.folded):,}; nine of ten words in common: {len(leaks.near):,}."
            ),
        )


class ReportData(Record):
    """Everything a report shows."""

    title: str
    task: str
    part: Literal["label", "field", ""] = "label"
    """Kind of part that an evaluation counts; empty if the task has none."""
    request_noun: str = "requests"
    """What the rows are called, in the plural."""
    pass_score: float = 1.0
    """Score in (0, 1] from which an answer counts as right."""
    evaluations: tuple[Evaluation, ...] = pydantic.Field(min_length=1)
    """Test evaluations, smallest first: any of words, encoder, tuned, base, small, large, routed."""
    calibration_evaluations: tuple[Evaluation, ...] = ()
    """Evaluations on calibration rows, listed under how it was measured."""
    verdicts: tuple[Verdict, ...] = ()
    trials: tuple[Verdict, ...] = ()
    """Verdicts on the plans that were tried."""
    smallest_passing: str | None = None
    """The candidate that was chosen of those that pass the gate; None if none does."""
    outcome: Outcome | None = None
    """What the run decided; None before it did."""
    certificate: Certificate | None = None
    training: TrainingSummary | None = None
    machine: MachinePrice = MachinePrice()
    requests_per_month: int = 1_000_000
    open_ended: OpenEndedRouting | None = None
    learning_curve: tuple[LearningPoint, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    """Rows whose given answer is probably wrong, strongest evidence first."""
    suspects_export: str = ""
    """Command that writes the suspects to a file for relabelling."""
    self_agreement: SelfAgreement | None = None
    leaks: LeakEffect | None = None
    notes: tuple[str, ...] = ()
    made_at: datetime
    versions: dict[str, str] = pydantic.Field(default_factory=dict)
    """Versions of the packages, machine and models behind the figures."""

    @pydantic.model_validator(mode="after")
    def _each_candidate_once(self) -> ReportData:
        names = [evaluation.candidate for evaluation in self.evaluations]
        # Names become CSS classes in the charts.
        charted = [*names, *(point.candidate for point in self.learning_curve)]
        if invalid := [name for name in charted if not re.fullmatch(r"[A-Za-z][\w-]*", name)]:
            raise ValueError(f"candidate names must be plain words, not {invalid[0]!r}")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"evaluated more than once: {', '.join(repeated)}")
        verdict = self.verdict(self.smallest_passing or "")
        if verdict is not None and not verdict.passed:
            raise ValueError(f"smallest_passing is {verdict.candidate}, which failed the gate")
        return self

    @property
    def recommended(self) -> str | None:
        """The candidate that goes live; before anything is decided, the one that was chosen of those that pass."""
        return self.outcome.candidate if self.outcome else self.smallest_passing

    @property
    def served(self) -> str | None:
        """The path that answers: `routed` where a part of the requests does not stay small, else the candidate."""
        outcome = self.outcome
        partly = outcome is not None and (outcome.kind == "small first" or outcome.rest == "refused")
        return "routed" if partly and self.evaluation("routed") is not None else self.recommended

    @property
    def promised(self) -> bool:
        """True if answers are given under the certificate's promise; before anything is decided, if it was issued."""
        issued = self.certificate is not None and self.certificate.issued
        return issued and (self.outcome is None or bool(self.outcome.promise))

    @property
    def focus(self) -> Evaluation:
        """The small candidate that the page looks into: the recommended one, else the nearest to passing the gate."""
        gated = [v for v in self.verdicts if v.candidate not in ("large", "routed") and self.evaluation(v.candidate)]
        nearest = nearest_to_passing(gated).candidate if gated else FINE_TUNED
        names = (self.recommended, self.smallest_passing, nearest, FINE_TUNED)
        return next((e for name in names if (e := self.evaluation(name))), self.evaluations[0])

    def evaluation(self, candidate: str | None) -> Evaluation | None:
        return next((e for e in self.evaluations if e.candidate == candidate), None)

    def verdict(self, candidate: str) -> Verdict | None:
        return next((v for v in self.verdicts if v.candidate == candidate), None)
