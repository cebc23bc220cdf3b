"""The certificate: from which confidence on may the small model answer, and what is promised about those answers.

The first promise is selective risk: of the answers that stay small, at most a share alpha is wrong, at 95 % confidence.
Others limit the loss of accuracy against the large model, cost, latency and how much is sent on; a cascade of several
drafting stages is certified as a whole. `search_cascade` finds the thresholds, `risks` has the tests. The guarantee
holds for requests drawn like the calibration rows; drift ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from smallfirst.errors import ConfigError
from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.routing.certificate.below_threshold import Band, BelowAction, decide_below_threshold
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import (
    NEVER_ACCEPT,
    CascadeData,
    CascadeOutcome,
    LabelSource,
    cascade_data,
    cascade_data_without_gold,
    with_routing_cost,
)
from smallfirst.routing.certificate.per_class import ClassCertificate, certify_per_class, guaranteed_rows, min_threshold
from smallfirst.routing.certificate.risks import GROWS_WITH_COVERAGE, RiskResult, audit_limit, evidence
from smallfirst.routing.certificate.summary import (
    describe_issued,
    describe_per_class,
    describe_refused,
    limits_of_validity,
)
from smallfirst.routing.certificate.threshold_curve import ThresholdPoint, threshold_curve
from smallfirst.routing.certificate.threshold_search import (
    CascadeThresholds,
    ThresholdSearchResult,
    estimate_rows_needed,
    search_cascade,
    search_threshold,
)
from smallfirst.stats.intervals import Estimate, upper_bound, wilson


class StageThreshold(Record):
    """From which confidence on one drafting stage answers."""

    name: str
    """The stage: the candidate's name."""
    threshold: float
    """Least confidence at which its answer is kept; above 1 when none is."""
    n_kept: int
    """Calibration rows it answers."""
    errors_kept: int
    """Wrong among them, by whatever the labels are."""


class Certificate(Record):
    """A promise about the answers a Router keeps small, for one model version."""

    issued: bool
    """False if the labels cannot show the promise at any threshold."""
    why: str
    """The promise, or why it is refused and how many labels are missing, in one sentence."""
    promised_error: float
    """Kept answers are wrong at most this often, in [0, 1]; 1 if nothing is promised about it."""
    confidence: float
    """Confidence level of the promise, in [0, 1]."""
    threshold: float
    """Answers of the last drafting stage with at least this confidence are kept; above 1 when none is."""
    n_labels: int
    """Calibration rows used, none of which was used for any other choice."""
    n_kept: int
    """Calibration rows at or above the threshold."""
    errors_kept: int
    """Wrong among them."""
    error_bound: float
    """One-sided upper bound on their error: exact, or prediction-powered where labels are `large+gold`."""
    coverage: Estimate
    """Share of calibration rows kept."""
    below: BelowAction
    """What happens to the rest: to the large model, answered small without the promise, or to a person."""
    below_why: str
    """The paired evidence behind `below`."""
    below_difference: Estimate | None
    """Accuracy of large minus small on the rows below the threshold; None if the large one was not measured."""
    temperature: float
    """Divides the log-probabilities before they are shown as confidence; fitted on selection rows."""
    curve: tuple[ThresholdPoint, ...]
    """What each threshold would have given, strict to loose."""
    model_fingerprint: str
    """The weights it was made for."""
    dataset_fingerprint: str
    """The calibration rows."""
    promise: Guarantee | None = None
    """The promise as it was asked for; None in certificates made before it was kept."""
    stages: tuple[StageThreshold, ...] = ()
    """Drafting stages, cheapest first; empty in certificates of one stage made before it was kept."""
    risks: tuple[RiskResult, ...] = ()
    """What was shown about each limit of the promise."""
    labels: LabelSource = "gold"
    """Who said what is right: gold, the large model, or the large model corrected by some gold."""
    labels_missing: int | None = None
    """If refused: about how many more rows like these would show it; None if none would, or if issued."""
    classes: tuple[ClassCertificate, ...] = ()
    """By predicted label; part of the promise only with `promise.per_class`."""
    bands: tuple[Band, ...] = ()
    """What happens below the threshold by confidence, from the least sure on; empty: `below` throughout."""
    audit_limit: float | None = None
    """Where the large model audits: share of audited kept answers that may differ from its own before the promise
    counts as broken. None if it was not measured on kept rows, or wrong answers are not limited."""
    limits_of_validity: tuple[str, ...] = ()
    """What the promise rests on and when it ends."""

    def covers(self, label: str | None, confidence: float | None, *, stage: str = "") -> bool:
        """True if an answer `label` with this confidence is under the promise; `stage` is the last one unless named."""
        said = confidence or 0.0
        named = {one.name: one.threshold for one in self.stages}
        if not self.issued or said < named.get(stage, self.threshold):
            return False
        if self.promise is None or not self.promise.per_class:
            return True
        return any(one.certified and said >= one.threshold for one in self.classes if one.label == label)

    def decide(
        self, confidence: float | None, label: str | None = None
    ) -> Literal["keep_certified", "escalate", "keep", "abstain"]:
        """What to do with the last drafting stage's answer."""
        if self.covers(label, confidence):
            return "keep_certified"
        then: BelowAction = self.below
        for band in self.bands:
            if band.low <= (confidence or 0.0):
                then = band.then
        return then


class CertificateSubject(NamedTuple):
    """What a certificate is made for."""

    model_fingerprint: str
    """The weights."""
    dataset_fingerprint: str
    """The rows."""
    temperature: float
    """Of the last drafting stage."""
    person: bool
    """A person's queue takes requests that no model is good at."""


def certify(
    drafts: Evaluation | Sequence[Evaluation],
    large: Evaluation | None,
    promise: Guarantee,
    *,
    model_fingerprint: str,
    temperature: float = 1.0,
    person: bool = False,
    labels: Literal["gold", "large"] = "gold",
) -> Certificate:
    """The certificate for the drafting stages, cheapest first, from their answers on calibration rows.

    `large` on the same rows (or some of them, drawn at random) decides whether doubtful requests are worth sending on:
    they are, where it was right more often on exactly such rows. Without it they are, on trust. With `person`, where it
    was not, they go to a person instead of being kept. `labels="large"` says that the rows were scored against the
    large model's answers. The rows must not have been used for any choice. Raises DataError if a draft lacks rows,
    ConfigError for a promise by label about more than one drafting stage.
    """
    stages = [drafts] if isinstance(drafts, Evaluation) else list(drafts)
    if promise.per_class and len(stages) > 1:
        raise ConfigError(
            f"a promise by label speaks of one drafting stage, and there are {len(stages)}",
            hint="leave out promise.per_class, or let one stage draft",
        )
    made = CertificateSubject(model_fingerprint, stages[-1].dataset_fingerprint, temperature, person)
    return certify_cascade(cascade_data(stages, large, labels), promise, made)


def certify_without_gold(
    small: Evaluation,
    large: Evaluation,
    gold: Mapping[str, str],
    score: Callable[[str | None, str], bool],
    promise: Guarantee,
    *,
    model_fingerprint: str,
    temperature: float = 1.0,
) -> Certificate:
    """The certificate for `small` where the large model's answers stand in for labels.

    `gold` holds the right answers of some rows by row key: a random part of all, or the correction is wrong; empty, the
    large model is taken at its word. `score(answer, right)` says whether an answer is right. With gold the promise is
    about true errors (prediction-powered), without it about differing from the large model.
    """
    made = CertificateSubject(model_fingerprint, small.dataset_fingerprint, temperature, person=False)
    return certify_cascade(cascade_data_without_gold(small, large, gold, score), promise, made)


def certify_cascade(answers: CascadeData, promise: Guarantee, made: CertificateSubject) -> Certificate:
    """The certificate from what the stages made of the calibration rows."""
    found = search_cascade(answers, promise)
    classes = certify_per_class(answers, promise, found)
    if promise.per_class:
        found = found._replace(thresholds=(min_threshold(classes),), shares={})
    walk = answers.walk(found.thresholds)
    kept = guaranteed_rows(answers, classes) if promise.per_class else walk.kept
    agrees = walk.select_taken(np.vstack([answers.agrees, walk.right]))
    n_kept, errors = int(kept.sum()), int((kept & ~agrees).sum())
    risks = _shown(walk, promise, found) if found.issued and not promise.per_class else ()
    why, missing = _why(answers, promise, found, classes, (risks, errors))
    floor = found.floor if "regret" in promise.limits and found.issued else None
    top = 1.0 if promise.per_class and found.issued else found.thresholds[-1]
    rest = decide_below_threshold(answers, kept, top=top, floor=floor, person=made.person, sealed=found.sealed)
    limit = audit_limit(walk, kept, promise) if found.issued else None
    bounds = [one.bound for one in risks if one.risk == "wrong"]
    return Certificate(
        issued=found.issued,
        why=why,
        promised_error=1.0 if promise.at_most_wrong is None else promise.at_most_wrong,
        confidence=promise.confidence,
        threshold=found.thresholds[-1],
        n_labels=answers.n,
        n_kept=n_kept,
        errors_kept=errors,
        error_bound=bounds[0] if bounds else upper_bound(errors, n_kept, confidence=promise.confidence),
        coverage=wilson(n_kept, answers.n),
        below=rest.then,
        below_why=rest.why,
        below_difference=rest.difference,
        temperature=made.temperature,
        curve=threshold_curve(answers, found.thresholds, promise.confidence),
        model_fingerprint=made.model_fingerprint,
        dataset_fingerprint=made.dataset_fingerprint,
        promise=promise,
        stages=_stages(walk, found, agrees),
        risks=risks,
        labels=answers.labels,
        labels_missing=missing,
        classes=classes,
        bands=rest.bands,
        audit_limit=limit,
        limits_of_validity=limits_of_validity(answers, promise, limit, made.person),
    )


def _shown(walk: CascadeOutcome, promise: Guarantee, found: CascadeThresholds) -> tuple[RiskResult, ...]:
    unsent = walk.answers.walk((*found.thresholds[:-1], 0.0)) if found.sealed else walk
    walks = {name: walk if name in GROWS_WITH_COVERAGE else unsent for name in promise.limits}
    seen = {name: (limit, evidence(name, walks[name], limit)) for name, limit in promise.limits.items()}
    return tuple(
        RiskResult(risk=name, limit=limit, value=one.value, bound=one.bound(found.level), n=one.n)
        for name, (limit, one) in seen.items()
    )


def _why(
    answers: CascadeData,
    promise: Guarantee,
    found: CascadeThresholds,
    classes: Sequence[ClassCertificate],
    shown: tuple[Sequence[RiskResult], int],
) -> tuple[str, int | None]:
    """The sentence, and the labels missing if it is a refusal."""
    if found.issued:
        return (
            describe_per_class(answers, promise, classes)
            if promise.per_class
            else describe_issued(answers, promise, *shown)
        ), None
    missing = estimate_rows_needed(answers, promise, found.level)
    if promise.per_class:
        waits = [one.labels_missing * answers.n / max(1, one.n_kept) for one in classes if one.labels_missing]
        missing = round(min(waits)) + answers.n if waits else None
    missing = None if missing is None else missing - answers.n
    return describe_refused(answers, promise, found, missing), missing


def _stages(walk: CascadeOutcome, found: CascadeThresholds, agrees: np.ndarray) -> tuple[StageThreshold, ...]:
    mine = [walk.taken == stage for stage in range(walk.answers.n_stages)]
    return tuple(
        StageThreshold(name=name, threshold=threshold, n_kept=int(rows.sum()), errors_kept=int((rows & ~agrees).sum()))
        for name, threshold, rows in zip(walk.answers.names, found.thresholds, mine, strict=True)
    )


__all__ = [
    "NEVER_ACCEPT",
    "CascadeData",
    "Band",
    "Certificate",
    "ClassCertificate",
    "CertificateSubject",
    "Guarantee",
    "ThresholdSearchResult",
    "RiskResult",
    "StageThreshold",
    "ThresholdPoint",
    "certify",
    "certify_cascade",
    "certify_without_gold",
    "with_routing_cost",
    "search_threshold",
]
