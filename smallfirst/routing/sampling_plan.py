"""A sampling plan: which unlabelled requests a person labels, in which order, and what the labels show at any row.

Only requests at or above a cut are labelled, since no other would stay small. Cuts are fixed before a label is seen, so
the promise about what is above one needs no correction. They are tested from strict to loose, each passing the whole
level on, with evidence that is valid at every row: labelling may stop whenever it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from smallfirst.records import Record
from smallfirst.routing.certificate.certificate import Certificate, StageThreshold
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT
from smallfirst.routing.certificate.risks import RiskResult
from smallfirst.stats.intervals import Estimate, wilson
from smallfirst.stats.low_rate import evidence_upper_bound, low_rate_evidence, more_right_rows


class Cut(Record):
    """A confidence above which requests may stay small once the promise is shown there."""

    threshold: float
    """Least confidence."""
    n_above: int
    """Requests of the traffic at or above it."""


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
    n_reached: int
    """Those that reach the small model; the domain check or a policy sends the others elsewhere."""
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
    shown: bool
    """The promise holds above it, and above every stricter cut of the plan."""
    n_more_right: int
    """Rows above it that would show it if all of them were right; 0 if they did."""
    bound: float
    """Upper bound on the error above it, valid at every row."""


def judge_cuts(plan: SamplingPlan, right: Sequence[bool]) -> tuple[CutEvidence, ...]:
    """Return what the first rows `above` of the plan show about each cut, in order; `right` has one value a row."""
    confidence = np.array([row.confidence for row in plan.rows if row.stratum == "above"])[: len(right)]
    wrong = ~np.asarray(right, dtype=bool)
    found: list[CutEvidence] = []
    for cut in plan.cuts:
        counts = np.concatenate([[0], np.cumsum(wrong[confidence >= cut.threshold])])
        n, n_wrong = len(counts) - 1, int(counts[-1])
        passed = bool((low_rate_evidence(counts, np.arange(n + 1), plan.limit) * plan.level >= 1).any())
        more = 0 if passed else more_right_rows(n_wrong, n, plan.limit, level=plan.level)
        shown = passed and all(stricter.shown for stricter in found)
        bound = evidence_upper_bound(counts, level=plan.level)
        found.append(CutEvidence(cut, n, n_wrong, shown, more, bound))
    return tuple(found)


def with_sampled_labels(certificate: Certificate, plan: SamplingPlan, right: Sequence[bool]) -> Certificate:
    """Return the certificate with the promise that a plan's first rows show, in place of that of calibration rows.

    What happens below the threshold stays as the calibration rows decided it.
    """
    judged = judge_cuts(plan, right)
    shown = [one for one in judged if one.shown]
    last = shown[-1] if shown else judged[0]
    found = f"{last.n_wrong} of {last.n} labelled answers above {last.cut.threshold:.3f} were wrong"
    why = f"not shown: {plan.guarantee.in_words}: {found}; {last.n_more_right:,} more, all right, would show it"
    if shown:
        why = f"{plan.guarantee.in_words}: {found}, so at most {last.bound:.3f}, however many labels were looked at"
    risk = RiskResult(risk="error", limit=plan.limit, value=last.n_wrong / max(1, last.n), bound=last.bound, n=last.n)
    kept: dict[str, Any] = {
        "threshold": last.cut.threshold if shown else NEVER_ACCEPT,
        "n_accepted": last.n if shown else 0,
        "n_errors": last.n_wrong if shown else 0,
    }
    validity = (
        f"it holds for requests drawn like the {plan.n_traffic:,} of {plan.traffic}; drift ends it",
        "rows above a cut that was fixed beforehand were labelled one after the other in a random order, and tested by "
        "betting, which is valid at every row",
        "right is what the labels say; a wrong label counts as it stands",
    )
    none = {"labels_missing": None, "labels_missing_chance": None, "look": None, "curve": (), "classes": ()}
    proof = {
        "issued": bool(shown),
        "why": why,
        "max_error": plan.limit,
        "confidence": plan.guarantee.confidence,
        "guarantee": plan.guarantee,
        "n_labels": len(right),
        "error_bound": last.bound if shown else 1.0,
        "coverage": plan.share(last.cut) if shown else wilson(0, plan.n_traffic),
        "stages": tuple(StageThreshold(name=stage.name, **kept) for stage in certificate.stages[-1:]),
        "risks": (risk,) if shown else (),
        "labels": "gold",
        "dataset_fingerprint": plan.traffic_fingerprint,
        "limits_of_validity": (*validity, *certificate.limits_of_validity[-1:]),
    }
    return certificate.model_copy(update=none | kept | proof)
