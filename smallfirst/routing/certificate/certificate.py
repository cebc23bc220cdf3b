"""The certificate: the confidence from which the small model may answer, and the guarantee about those answers.

It holds for requests drawn like the calibration rows; drift ends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from smallfirst.errors import ConfigError
from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.routing.certificate.below_threshold import BelowAction, BelowRule, decide_below_threshold
from smallfirst.routing.certificate.curves import ThresholdPoint, threshold_curve
from smallfirst.routing.certificate.filters import RequestFilters
from smallfirst.routing.certificate.guarantee import LABEL, Guarantee
from smallfirst.routing.certificate.looks import (
    ALONE,
    Look,
    Portion,
    SharedLook,
    count_look,
    in_order,
    next_look,
    text_fingerprints,
    trial_fingerprint,
)
from smallfirst.routing.certificate.outcomes import (
    NEVER_ACCEPT,
    CascadeData,
    CascadeOutcome,
    ForeignAccepted,
    LabelSource,
    cascade_data,
    foreign_accepted,
    with_foreign,
)
from smallfirst.routing.certificate.risks import RiskResult, audit_limits, evidence
from smallfirst.routing.certificate.rows_needed import MAX_ROWS, MIN_CHANCE, RowsNeeded, rows_needed
from smallfirst.routing.certificate.summary import (
    NOTHING_LEFT,
    describe_issued,
    describe_per_group,
    describe_refused,
    limits_of_validity,
)
from smallfirst.routing.certificate.threshold_search import CascadeThresholds, nothing_accepted, search_cascade
from smallfirst.routing.certificate.units.clusters import one_row_a_unit
from smallfirst.routing.certificate.units.fields import FieldCertificate, allow_wrong_fields, certify_fields
from smallfirst.routing.certificate.units.per_group import (
    GroupCertificate,
    certify_per_group,
    guaranteed_rows,
)
from smallfirst.stats.intervals import Estimate, upper_bound, wilson


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
    temperature: float = 1.0
    """Divides the log-probabilities before they become confidences; fitted on selection rows."""
    curve: tuple[ThresholdPoint, ...]
    """What each threshold would have given, strict to loose."""
    model_fingerprint: str
    """The weights it was made for."""
    dataset_fingerprint: str
    """The calibration rows."""
    guarantee: Guarantee
    """The guarantee as it was asked for."""
    stages: tuple[StageThreshold, ...] = ()
    """Drafting stages, cheapest first."""
    risks: tuple[RiskResult, ...] = ()
    """What was shown about each limit of the guarantee."""
    labels: LabelSource = "gold"
    """Who decides what is right: gold labels, or the large model."""
    labels_missing: int | None = None
    """If refused: how many more rows like these are advised; None if issued, or if no number is likely to do."""
    labels_missing_chance: float | None = None
    """If refused: how likely as many are to show it, in [0, 1]; without an advised number, how likely the most are."""
    look: int | None = None
    """Number of this certificate among those tried on rows that overlap; None if it is the only one by agreement."""
    level: float | None = None
    """Error probability that this look spends, in [0, 1]; None in certificates of before 2026-11-30."""
    classes: tuple[GroupCertificate, ...] = ()
    """By predicted label or tag; part of the guarantee only with `guarantee.per_group`."""
    audit_limit: float | None = None
    """Of earlier certificates; `audit_limits` has it."""
    audit_limits: dict[str, dict[str, float]] = {}
    """By risk and judge: share of audited answers that may be called wrong before the limit counts as broken. `error`
    is also there where it is not limited: what the calibration rows allow for."""
    limits_of_validity: tuple[str, ...] = ()
    """What the guarantee rests on and when it ends."""
    fields: FieldCertificate | None = None
    """What is shown about the fields of the last stage's JSON answers; None where `guarantee.max_wrong_fields` is."""
    filters: RequestFilters | None = None
    """What requests must pass before they reach the cascade for which it holds."""
    foreign: ForeignAccepted | None = None
    """What happens to foreign calibration rows; None where none are known."""

    def audit_limit_for(self, risk: str, judge: Literal["large", "person"]) -> float | None:
        """Return the share of audits by `judge` that may find answers wrong, in (0, 1); None if that shows nothing."""
        if self.audit_limits or risk != "error":
            return self.audit_limits.get(risk, {}).get(judge)
        # Not issued, or issued before there were `audit_limits`.
        most = self.max_error if self.max_error < 1 else self.error_bound
        if self.issued and judge == "large":
            most = self.audit_limit or (1.0 if self.labels == "gold" else most)
        return most if most < 1 else None

    def covers(
        self,
        label: str | None,
        confidence: float | None,
        *,
        threshold: float | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> bool:
        """Return True if the guarantee covers an answer `label` to a request with `tags`.

        `threshold` is that of the stage which gave it; None: the last one's.
        """
        value = confidence or 0.0
        if not self.issued or value < (self.threshold if threshold is None else threshold):
            return False
        name = self.guarantee.grouped_by
        group = label if name == LABEL else (tags or {}).get(name)
        return not name or any(one.certified and value >= one.threshold for one in self.classes if one.label == group)

    def keeps_fields(self, field_confidence: Mapping[str, float]) -> bool:
        """Return True if an answer of the last stage is kept for its fields, where no other limit decides on it."""
        return self.fields is not None and not self.guarantee.limits and self.fields.keeps(field_confidence)

    def decide(
        self, confidence: float | None, label: str | None = None
    ) -> Literal["keep_certified", "escalate", "keep", "abstain"]:
        return "keep_certified" if self.covers(label, confidence) else self.below


class CertificateSubject(NamedTuple):
    """What a certificate is made for."""

    model_fingerprint: str
    dataset_fingerprint: str
    below: BelowRule
    """How requests below the threshold are decided on."""
    look: Look | None = None
    """The look at the calibration rows; None: the only one, at the whole level."""
    next_share: float = 1.0
    """Share of the error probability that the next look at these rows would spend, in [0, 1]."""

    @property
    def share(self) -> float:
        """Share of the error probability that this look spends, in [0, 1]; 0 if earlier ones have spent all."""
        return self.look.share if self.look else 1.0


def certify(
    drafts: Evaluation | Sequence[Evaluation],
    large: Evaluation | None,
    guarantee: Guarantee,
    *,
    model_fingerprint: str,
    person: bool = False,
    labels: Literal["gold", "large"] = "gold",
    looks: Path | None = None,
    portion: Portion = "large",
    shared: SharedLook = ALONE,
    selection: Evaluation | Sequence[Evaluation] | None = None,
    alone: bool = True,
    usd_per_wrong_answer: float | None = None,
    foreign: Sequence[Sequence[float]] = (),
) -> Certificate:
    """Certify the drafting stages, cheapest first, from their answers on calibration rows used for no choice.

    `alone`: the last stage passed its gate by itself, so what is below the threshold stays small unless `large`, on
    these rows or a random part, is shown to be better there, by as much as its price takes at `usd_per_wrong_answer`;
    if False everything below goes on. With `person`, what is not sent on goes to a person. `labels="large"`: rows were
    scored against its answers. `looks`: the file that counts the certificates tried on rows with these texts (`looks`);
    this one is counted, and spends the `portion` of the level that it names: "large", or a small one where that is
    taken; of a `shared` look, of certificates that were fixed together, it spends its part. None: it is the only one by
    agreement, and spends all of the level. `selection`: the stages' answers to selection rows, which choose where the
    search begins; None: a fixed rule does. Of rows that share a group one counts, and the guarantee says so (`unit`);
    the order of rows does not matter. `foreign`: by stage the confidences, in [0, 1], of drafts of foreign requests
    that nothing was fitted on; with `guarantee.max_foreign_share` they count as wrong where they are accepted, and none
    known means all are.
    Raise DataError if a draft lacks rows, ConfigError for a guarantee by group about several stages, or by field about
    answers without fields.
    """
    inputs = dict(locals())  # every parameter, those to come as well: what a look is counted by
    stages, choosing = _as_list(drafts), _as_list(selection)
    if guarantee.grouped_by and len(stages) > 1:
        raise ConfigError(
            f"a guarantee by {guarantee.grouped_by} covers one drafting stage, and there are {len(stages)}",
            hint="leave out guarantee.per_group (per_class), or let one stage draft",
        )
    rule = BelowRule(alone, person, usd_per_wrong_answer)
    if any(len(stage) for stage in foreign):
        foreign = list(zip(*sorted(zip(*foreign, strict=True)), strict=True))
    drafted = [allow_wrong_fields(one, guarantee.wrong_fields_allowed) for one in stages]
    chosen_on = cascade_data(choosing, None, labels) if choosing else None
    data = with_foreign(cascade_data(drafted, large, labels), foreign, guarantee.max_foreign_share)
    look, next_share = None, 1.0
    if looks is not None:
        inputs |= {"drafts": stages, "large": large and in_order(large), "selection": choosing, "foreign": foreign}
        texts = text_fingerprints(row.text for row in stages[-1].rows)
        look = count_look(looks, texts, trial_fingerprint(inputs), portion, shared)
        next_share = next_look(looks, texts).share
    subject = CertificateSubject(model_fingerprint, stages[-1].dataset_fingerprint, rule, look, next_share)
    counted = data.take(one_row_a_unit(data.group, data.n))
    if data.group is not None:
        guarantee = guarantee.model_copy(update={"unit": "group"})
    by_rows, level = guarantee.split_level()
    found = certify_cascade(counted, by_rows, subject, chosen_on)
    if counted.n < data.n:
        told = f"{data.n} calibration rows belong to {counted.n} groups, of each of which one row counts"
        found = found.model_copy(update={"limits_of_validity": (told, *found.limits_of_validity)})
    if guarantee.max_wrong_fields is None:
        return found
    level *= subject.share
    choosing_fields = choosing[-1] if choosing else None
    fields = certify_fields(stages[-1], guarantee.max_wrong_fields, level=level, selection=choosing_fields)
    return found.model_copy(update=fields.changes(guarantee, found.issued, found.why, found.limits_of_validity))


def _as_list(drafts: Evaluation | Sequence[Evaluation] | None) -> list[Evaluation]:
    return [in_order(one) for one in ([drafts] if isinstance(drafts, Evaluation) else drafts or ())]


def certify_cascade(
    data: CascadeData, guarantee: Guarantee, subject: CertificateSubject, selection: CascadeData | None = None
) -> Certificate:
    """Return the certificate from the stages' answers to calibration rows; those to selection rows choose its start."""
    asked, guarantee = guarantee, guarantee.at_share(subject.share or 1.0)
    searched = guarantee.limits and subject.share
    found = search_cascade(data, guarantee, selection=selection) if searched else nothing_accepted(data)
    classes = certify_per_group(data, guarantee, found) if subject.share else ()
    if guarantee.grouped_by:
        least = min((one.threshold for one in classes if one.certified), default=NEVER_ACCEPT)
        found = found._replace(thresholds=(least,), shares={})
    outcome = data.outcome(found.thresholds)
    accepted = guaranteed_rows(data, guarantee, classes) if guarantee.grouped_by else outcome.accepted
    n_accepted, errors = int(accepted.sum()), int((accepted & ~outcome.right).sum())
    risks = _risk_results(outcome, guarantee, found) if found.issued and not guarantee.grouped_by else ()
    hopeless = found.issued or not guarantee.limits or not subject.share
    missing = None if hopeless else _rows_needed(data, asked, subject, selection)
    if not subject.share:
        why = NOTHING_LEFT
    elif missing is not None:
        why = describe_refused(data, asked, found, missing)
    elif guarantee.grouped_by:
        why = describe_per_group(data, asked, classes)
    else:
        why = describe_issued(data, asked, risks, errors)
    may_keep = "accuracy_loss" not in guarantee.limits or not found.issued or found.keeps_all
    below = decide_below_threshold(data, accepted, subject.below, may_keep=may_keep)
    bounds = [one.bound for one in risks if one.risk == "error"]
    error_bound = bounds[0] if bounds else upper_bound(errors, n_accepted, confidence=guarantee.confidence)
    limits = audit_limits(outcome, accepted, guarantee, error_bound) if found.issued else {}
    return Certificate(
        issued=found.issued,
        why=why,
        max_error=1.0 if guarantee.max_error is None else guarantee.max_error,
        confidence=asked.confidence,
        threshold=found.thresholds[-1],
        n_labels=data.n,
        n_accepted=n_accepted,
        n_errors=errors,
        error_bound=error_bound,
        coverage=wilson(n_accepted, data.n),
        below=below.action,
        below_why=below.why,
        below_difference=below.difference,
        curve=threshold_curve(data, found.thresholds, guarantee.confidence),
        model_fingerprint=subject.model_fingerprint,
        dataset_fingerprint=subject.dataset_fingerprint,
        guarantee=asked,
        stages=_stage_thresholds(outcome, found),
        risks=risks,
        labels=data.labels,
        labels_missing=missing.n_more if missing and missing.chance >= MIN_CHANCE else None,
        labels_missing_chance=missing.chance if missing else None,
        look=subject.look.number if subject.look else None,
        level=subject.share * (1 - asked.confidence),
        classes=classes,
        audit_limits=limits,
        limits_of_validity=limits_of_validity(data, asked, limits, subject.below.person, subject.look),
        foreign=foreign_accepted(outcome, guarantee.confidence),
    )


def _risk_results(outcome: CascadeOutcome, guarantee: Guarantee, found: CascadeThresholds) -> tuple[RiskResult, ...]:
    shown = [(risk, evidence(risk, outcome, limit)) for risk, limit in guarantee.limits.items()]
    return tuple(
        RiskResult(risk=risk, limit=one.limit, value=one.value, bound=one.bound(found.level), n=one.n)
        for risk, one in shown
    )


def _rows_needed(
    data: CascadeData, guarantee: Guarantee, subject: CertificateSubject, selection: CascadeData | None
) -> RowsNeeded:
    """Simulate the next look, on these rows and more; in less detail where the search takes long."""
    tested = guarantee.at_share(subject.next_share)
    quick = set(guarantee.limits) == {"error"} and data.n_stages == 1 and not guarantee.grouped_by

    def shows(rows: CascadeData) -> bool:
        found = search_cascade(rows, tested, selection=selection, steps=20)
        if not guarantee.grouped_by:
            return found.issued
        return any(one.certified for one in certify_per_group(rows, tested, found))

    return rows_needed(data, shows, n_worlds=40 if quick else 20, max_rows=MAX_ROWS if quick else MAX_ROWS // 4)


def _stage_thresholds(outcome: CascadeOutcome, found: CascadeThresholds) -> tuple[StageThreshold, ...]:
    own = [outcome.stage == stage for stage in range(outcome.data.n_stages)]
    return tuple(
        StageThreshold(
            name=name, threshold=threshold, n_accepted=int(rows.sum()), n_errors=int((rows & ~outcome.right).sum())
        )
        for name, threshold, rows in zip(outcome.data.names, found.thresholds, own, strict=True)
    )
