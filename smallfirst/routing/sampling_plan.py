"""A sampling plan: which unlabelled requests a person labels, in which order, and what the labels show at any row.

Only requests at or above a cut are labelled, since no other would stay small. Cuts are fixed before a label is seen, so
the promise about what is above one needs no correction. They are tested from strict to loose, each passing the whole
level on, with evidence that is valid at every row: labelling may stop whenever it likes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from smallfirst.records import Record
from smallfirst.routing.certificate.certificate import Certificate, StageThreshold
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.risks import RiskResult
from smallfirst.stats.intervals import Estimate, wilson
from smallfirst.stats.low_rate import RatePrior, evidence_upper_bound, low_rate_evidence, more_right_rows


class Cut(Record):
    """A confidence above which requests may stay small once the promise is shown there."""

    threshold: float
    """Least confidence."""
    n_above: int
    """Requests of the traffic at or above it."""
    prior: tuple[float, float] = (0.5, 0.5)
    """Beta prior of the error rate above it, from rows that were labelled before."""


class PlannedRow(Record):
    """A request to label, with the small model's answer, which whoever labels it does not see."""

    text: str
    """What is asked."""
    answer: str | None
    """The small model's answer in the task's canonical form; None if it gave none."""
    confidence: float
    """Its confidence, as it is served."""
    stratum: str
    """`above` the loosest cut, or `below` it."""
    propensity: float
    """Probability that a request of its stratum was drawn, in (0, 1]."""


class SamplingPlan(Record):
    """The cuts and rows of one labelling, made before any of them was labelled."""

    run: str
    """The run whose model drafts."""
    candidate: str
    """The candidate."""
    model_fingerprint: str
    """Its weights."""
    heads_fingerprint: str = ""
    """Its confidence head."""
    guarantee: Guarantee
    """The promise."""
    traffic: str
    """The unlabelled requests, as they were named."""
    traffic_fingerprint: str
    n_traffic: int
    """Requests that may be labelled."""
    n_labels: int
    """Rows above the cut that are probably needed; the plan has more."""
    cuts: tuple[Cut, ...]
    """In the order in which they are tested, strict to loose."""
    rows: tuple[PlannedRow, ...]
    """In the order in which they are labelled."""

    @property
    def level(self) -> float:
        """Probability with which the promise may be broken."""
        return 1 - self.guarantee.confidence

    @property
    def limit(self) -> float:
        """The promised error."""
        assert self.guarantee.max_error is not None
        return self.guarantee.max_error

    def share(self, cut: Cut) -> Estimate:
        """Return the share of traffic at or above a cut."""
        return wilson(cut.n_above, self.n_traffic)


class CutEvidence(NamedTuple):
    """What the labels so far show about one cut."""

    cut: Cut
    n: int
    """Labelled rows at or above it."""
    n_wrong: int
    evidence: float
    """Highest e-value so far."""
    shown: bool
    """The promise holds above it, and above every stricter cut of the plan."""
    n_more_right: int
    """Rows that would show it if all of them were right; 0 if it is shown."""


def judge_cuts(plan: SamplingPlan, right: Sequence[bool]) -> tuple[CutEvidence, ...]:
    """Return what the first rows `above` of the plan show about each cut, in order; `right` has one value a row."""
    labelled = [row for row in plan.rows if row.stratum == "above"][: len(right)]
    confidence, wrong = np.array([row.confidence for row in labelled]), ~np.asarray(right, dtype=bool)
    found: list[CutEvidence] = []
    open_gate = True
    for cut in plan.cuts:
        errors = wrong[confidence >= cut.threshold] if len(labelled) else wrong
        n, prior = np.arange(len(errors) + 1), RatePrior(*cut.prior)
        counts = np.concatenate([[0], np.cumsum(errors)])
        evidence = float(low_rate_evidence(counts, n, plan.limit, prior).max())
        passed = evidence * plan.level >= 1
        more = 0 if passed else more_right_rows(int(counts[-1]), len(errors), plan.limit, prior, level=plan.level)
        open_gate = open_gate and passed
        found.append(CutEvidence(cut, len(errors), int(counts[-1]), evidence, open_gate, more))
    return tuple(found)


def with_sampled_labels(certificate: Certificate, plan: SamplingPlan, right: Sequence[bool]) -> Certificate:
    """Return the certificate with the promise that a plan's first rows show, in place of that of calibration rows."""
    judged = judge_cuts(plan, right)
    shown = [one for one in judged if one.shown]
    last = shown[-1] if shown else judged[0]
    labelled = [row for row in plan.rows if row.stratum == "above"][: len(right)]
    wrong = [not ok for row, ok in zip(labelled, right, strict=True) if row.confidence >= last.cut.threshold]
    bound = evidence_upper_bound(wrong, RatePrior(*last.cut.prior), level=plan.level)
    threshold = last.cut.threshold if shown else 1.01
    share = plan.share(last.cut) if shown else wilson(0, plan.n_traffic)
    return certificate.model_copy(
        update={
            "issued": bool(shown),
            "why": _why(plan, last),
            "max_error": plan.limit,
            "confidence": plan.guarantee.confidence,
            "guarantee": plan.guarantee,
            "threshold": threshold,
            "n_labels": len(labelled),
            "n_accepted": last.n if shown else 0,
            "n_errors": last.n_wrong if shown else 0,
            "error_bound": min(bound, plan.limit) if shown else 1.0,
            "coverage": share,
            "curve": (),
            "stages": (
                StageThreshold(
                    name=plan.candidate,
                    threshold=threshold,
                    n_accepted=last.n if shown else 0,
                    n_errors=last.n_wrong if shown else 0,
                ),
            ),
            "risks": (
                RiskResult(
                    risk="error", limit=plan.limit, value=last.n_wrong / max(1, last.n), bound=plan.limit, n=last.n
                ),
            )
            if shown
            else (),
            "labels": "gold",
            "labels_missing": None,
            "labels_missing_chance": None,
            "look": None,
            "classes": (),
            "dataset_fingerprint": plan.traffic_fingerprint,
            "limits_of_validity": (_validity(plan), *certificate.limits_of_validity[-1:]),
        }
    )


def _why(plan: SamplingPlan, last: CutEvidence) -> str:
    found = f"{last.n_wrong} of {last.n} labelled answers above {last.cut.threshold:.3f} were wrong"
    if last.shown:
        return f"{plan.guarantee.in_words}: {found}, rows labelled in a random order until that was shown"
    return f"not shown: {plan.guarantee.in_words}: {found}; {last.n_more_right:,} more, all right, would show it"


def _validity(plan: SamplingPlan) -> str:
    return (
        f"it holds for requests drawn like the {plan.n_traffic:,} of {plan.traffic}; rows above a cut that was fixed "
        "before they were labelled, in a random order, with evidence that is valid at every row (a betting test); "
        "drift ends it"
    )


def expected_rows(rate: float, limit: float, level: float) -> float:
    """Return about how many labels show an error `rate` to be below `limit`: log(1 / level) by KL divergence (Wald)."""
    if rate >= limit:
        return math.inf
    gain = (1 - rate) * math.log((1 - rate) / (1 - limit)) + (rate * math.log(rate / limit) if rate else 0.0)
    return math.log(1 / level) / gain
