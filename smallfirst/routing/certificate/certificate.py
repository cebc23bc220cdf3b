"""The certificate: the confidence from which the small model may answer, and the guarantee about those answers.

It holds for requests drawn like the calibration rows; drift ends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pydantic

from smallfirst.errors import ConfigError
from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record, fingerprint
from smallfirst.routing.certificate.below_threshold import Band, BelowAction, decide_below_threshold
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import (
    CascadeData,
    CascadeOutcome,
    LabelSource,
    cascade_data,
)
from smallfirst.routing.certificate.per_class import (
    ClassCertificate,
    certify_per_class,
    guaranteed_rows,
    min_threshold,
)
from smallfirst.routing.certificate.risks import GROWS_WITH_COVERAGE, RiskResult, audit_limit, evidence
from smallfirst.routing.certificate.summary import (
    describe_issued,
    describe_per_class,
    describe_refused,
    limits_of_validity,
)
from smallfirst.routing.certificate.threshold_curve import ThresholdPoint, threshold_curve
from smallfirst.routing.certificate.threshold_search import CascadeThresholds, estimate_rows_needed, search_cascade
from smallfirst.stats.intervals import Estimate, upper_bound, wilson

# Field names in certificates of version 0.1.0's first months.
_COUNTS = {"n_kept": "n_accepted", "errors_kept": "n_errors", "errors": "n_errors"}
_CERTIFICATE = {**_COUNTS, "promised_error": "max_error", "promise": "guarantee"}
_GUARANTEE = {
    "at_most_wrong": "max_error",
    "at_most_below_large": "max_accuracy_loss",
    "at_most_usd_per_1k": "max_usd_per_1k",
    "p95_under_ms": "max_p95_ms",
    "at_most_escalated": "max_escalation_rate",
}
_PARTS = {"stages": _COUNTS, "curve": _COUNTS, "classes": _COUNTS, "bands": {"then": "action"}}
_RISKS = {"wrong": "error", "regret": "accuracy_loss", "late": "latency", "escalated": "escalation"}


class StageThreshold(Record):
    """The confidence from which one drafting stage answers."""

    name: str
    """The stage: the candidate's name."""
    threshold: float
    """Least confidence at which its answer is accepted; above 1 when none is."""
    n_accepted: int
    """Calibration rows it answers."""
    n_errors: int
    """Wrong among them, by whatever the labels are."""


class Certificate(Record):
    """A guarantee about the answers that a Router keeps small, for one model version."""

    issued: bool
    """False if the labels cannot show the guarantee at any threshold."""
    why: str
    """The guarantee, or why it is refused and how many labels are missing, in one sentence."""
    max_error: float
    """Accepted answers are wrong at most this often, in [0, 1]; 1 if errors are not limited."""
    confidence: float
    """Confidence level of the guarantee, in [0, 1]."""
    threshold: float
    """Answers of the last drafting stage with at least this confidence are accepted; above 1 when none is."""
    n_labels: int
    """Calibration rows, none of which was used for any other choice."""
    n_accepted: int
    """Calibration rows at or above the threshold."""
    n_errors: int
    """Wrong among them."""
    error_bound: float
    """Exact one-sided upper bound on their error."""
    coverage: Estimate
    """Share of calibration rows accepted."""
    below: BelowAction
    """What happens to the rest: to the large model, answered small without a guarantee, or to a person."""
    below_why: str
    """The paired evidence behind `below`."""
    below_difference: Estimate | None
    """Accuracy of large minus small on the rows below the threshold; None if the large one was not measured."""
    temperature: float
    """Divides the log-probabilities before they become confidences; fitted on selection rows."""
    curve: tuple[ThresholdPoint, ...]
    """What each threshold would have given, strict to loose."""
    model_fingerprint: str
    """The weights it was made for."""
    dataset_fingerprint: str
    """The calibration rows."""
    guarantee: Guarantee | None = None
    """The guarantee as it was asked for; None in certificates made before it was stored."""
    stages: tuple[StageThreshold, ...] = ()
    """Drafting stages, cheapest first; empty in certificates of one stage made before they were stored."""
    risks: tuple[RiskResult, ...] = ()
    """What was shown about each limit of the guarantee."""
    labels: LabelSource = "gold"
    """Who decides what is right: gold labels, or the large model."""
    labels_missing: int | None = None
    """If refused: about how many more rows like these would show it; None if none would, or if issued."""
    classes: tuple[ClassCertificate, ...] = ()
    """By predicted label; part of the guarantee only with `guarantee.per_class`."""
    bands: tuple[Band, ...] = ()
    """What happens below the threshold by ascending confidence; empty: `below` throughout."""
    audit_limit: float | None = None
    """Where the large model audits: share of audited answers that may differ from its own before the guarantee counts
    as broken. None if it was not measured on accepted rows, or errors are not limited."""
    limits_of_validity: tuple[str, ...] = ()
    """What the guarantee rests on and when it ends."""
    earlier_fingerprint: str = ""
    """Fingerprint of the certificate as it was first written, if that was under earlier field names."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_earlier_names(cls, values: Any) -> Any:
        return _upgrade(values) if isinstance(values, Mapping) and "promised_error" in values else values

    def fingerprint(self) -> str:
        """Return 16 hex digits of the content's SHA-256, or the earlier fingerprint: ledgers refer to it."""
        return self.earlier_fingerprint or super().fingerprint()

    def covers(self, label: str | None, confidence: float | None, *, stage: str = "") -> bool:
        """Return True if the guarantee covers an answer `label`; `stage` is the last one unless named."""
        value = confidence or 0.0
        thresholds = {one.name: one.threshold for one in self.stages}
        if not self.issued or value < thresholds.get(stage, self.threshold):
            return False
        if self.guarantee is None or not self.guarantee.per_class:
            return True
        return any(one.certified and value >= one.threshold for one in self.classes if one.label == label)

    def decide(
        self, confidence: float | None, label: str | None = None
    ) -> Literal["keep_certified", "escalate", "keep", "abstain"]:
        if self.covers(label, confidence):
            return "keep_certified"
        action: BelowAction = self.below
        for band in self.bands:
            if band.low <= (confidence or 0.0):
                action = band.action
        return action


class CertificateSubject(NamedTuple):
    """What a certificate is made for."""

    model_fingerprint: str
    dataset_fingerprint: str
    temperature: float
    person: bool
    """A person's queue takes requests that no model is good at."""


def certify(
    drafts: Evaluation | Sequence[Evaluation],
    large: Evaluation | None,
    guarantee: Guarantee,
    *,
    model_fingerprint: str,
    temperature: float = 1.0,
    person: bool = False,
    labels: Literal["gold", "large"] = "gold",
) -> Certificate:
    """Certify the drafting stages, cheapest first, from their answers on calibration rows used for no choice.

    `large` on these rows, or a random part, decides what is worth escalating; without it everything is. With `person`,
    what it is no better at goes to a person. `labels="large"`: rows were scored against its answers. Raise DataError if
    a draft lacks rows, ConfigError for a guarantee by label about several stages.
    """
    stages = [drafts] if isinstance(drafts, Evaluation) else list(drafts)
    if guarantee.per_class and len(stages) > 1:
        raise ConfigError(
            f"a guarantee by label covers one drafting stage, and there are {len(stages)}",
            hint="leave out guarantee.per_class, or let one stage draft",
        )
    subject = CertificateSubject(model_fingerprint, stages[-1].dataset_fingerprint, temperature, person)
    return certify_cascade(cascade_data(stages, large, labels), guarantee, subject)


def certify_cascade(data: CascadeData, guarantee: Guarantee, subject: CertificateSubject) -> Certificate:
    """Return the certificate from the answers of all stages to the calibration rows."""
    found = search_cascade(data, guarantee)
    classes = certify_per_class(data, guarantee, found)
    if guarantee.per_class:
        found = found._replace(thresholds=(min_threshold(classes),), shares={})
    outcome = data.outcome(found.thresholds)
    accepted = guaranteed_rows(data, classes) if guarantee.per_class else outcome.accepted
    n_accepted, errors = int(accepted.sum()), int((accepted & ~outcome.right).sum())
    risks = _risk_results(outcome, guarantee, found) if found.issued and not guarantee.per_class else ()
    why, missing = _explain(data, guarantee, found, classes, (risks, errors))
    floor = found.floor if "accuracy_loss" in guarantee.limits and found.issued else None
    top = 1.0 if guarantee.per_class and found.issued else found.thresholds[-1]
    below = decide_below_threshold(
        data, accepted, top=top, floor=floor, person=subject.person, never_escalates=found.never_escalates
    )
    limit = audit_limit(outcome, accepted, guarantee) if found.issued else None
    bounds = [one.bound for one in risks if one.risk == "error"]
    return Certificate(
        issued=found.issued,
        why=why,
        max_error=1.0 if guarantee.max_error is None else guarantee.max_error,
        confidence=guarantee.confidence,
        threshold=found.thresholds[-1],
        n_labels=data.n,
        n_accepted=n_accepted,
        n_errors=errors,
        error_bound=bounds[0] if bounds else upper_bound(errors, n_accepted, confidence=guarantee.confidence),
        coverage=wilson(n_accepted, data.n),
        below=below.action,
        below_why=below.why,
        below_difference=below.difference,
        temperature=subject.temperature,
        curve=threshold_curve(data, found.thresholds, guarantee.confidence),
        model_fingerprint=subject.model_fingerprint,
        dataset_fingerprint=subject.dataset_fingerprint,
        guarantee=guarantee,
        stages=_stage_thresholds(outcome, found),
        risks=risks,
        labels=data.labels,
        labels_missing=missing,
        classes=classes,
        bands=below.bands,
        audit_limit=limit,
        limits_of_validity=limits_of_validity(data, guarantee, limit, subject.person),
    )


def _risk_results(outcome: CascadeOutcome, guarantee: Guarantee, found: CascadeThresholds) -> tuple[RiskResult, ...]:
    kept = outcome.data.outcome((*found.thresholds[:-1], 0.0)) if found.never_escalates else outcome
    outcomes = {risk: outcome if risk in GROWS_WITH_COVERAGE else kept for risk in guarantee.limits}
    shown = {risk: (limit, evidence(risk, outcomes[risk], limit)) for risk, limit in guarantee.limits.items()}
    return tuple(
        RiskResult(risk=risk, limit=limit, value=one.value, bound=one.bound(found.level), n=one.n)
        for risk, (limit, one) in shown.items()
    )


def _explain(
    data: CascadeData,
    guarantee: Guarantee,
    found: CascadeThresholds,
    classes: Sequence[ClassCertificate],
    shown: tuple[Sequence[RiskResult], int],
) -> tuple[str, int | None]:
    if found.issued and guarantee.per_class:
        return describe_per_class(data, guarantee, classes), None
    if found.issued:
        return describe_issued(data, guarantee, *shown), None
    missing = estimate_rows_needed(data, guarantee, found.level)
    if guarantee.per_class:
        rows = [one.labels_missing * data.n / max(1, one.n_accepted) for one in classes if one.labels_missing]
        missing = round(min(rows)) + data.n if rows else None
    missing = None if missing is None else missing - data.n
    return describe_refused(data, guarantee, found, missing), missing


def _stage_thresholds(outcome: CascadeOutcome, found: CascadeThresholds) -> tuple[StageThreshold, ...]:
    own = [outcome.stage == stage for stage in range(outcome.data.n_stages)]
    return tuple(
        StageThreshold(
            name=name, threshold=threshold, n_accepted=int(rows.sum()), n_errors=int((rows & ~outcome.right).sum())
        )
        for name, threshold, rows in zip(outcome.data.names, found.thresholds, own, strict=True)
    )


def _upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values under today's names, with the fingerprint by which ledgers know the old certificate."""
    found = _renamed(values, _CERTIFICATE)
    if found.get("guarantee") is not None:
        found["guarantee"] = _renamed(found["guarantee"], _GUARANTEE)
    for name, names in _PARTS.items():
        found[name] = [_renamed(part, names) for part in found.get(name, ())]
    found["risks"] = [{**part, "risk": _RISKS.get(part["risk"], part["risk"])} for part in found.get("risks", ())]
    return {**found, "earlier_fingerprint": fingerprint(values)}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}
