"""The certificate: the confidence from which the small model may answer, and the guarantee about those answers.

It holds for requests drawn like the calibration rows; drift ends it. What happens below the threshold is decided
without guarantee. `certify` makes certificates; here is what a Router, an audit or a report reads of one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.models.confidence import IsotonicCurve
from smallfirst.routing.languages import LANGUAGE
from smallfirst.tasks.call import function_of

LABEL = "label"
"""The `per_group` of the predicted label."""
NEVER_ACCEPT = 1.01
"""A threshold that no confidence reaches."""
BelowAction = Literal["escalate", "keep", "abstain"]
"""To the large model; answered small without a guarantee; to a person's queue."""


class Guarantee(Record):
    """What the certificate must show before answers may stay small; its limits share the significance level."""

    max_error: float | None = pydantic.Field(default=0.05, gt=0, lt=1)
    """Largest share of accepted answers that may be wrong (alpha), in (0, 1); null sets no limit on errors."""
    max_accuracy_loss: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """The routed path's accuracy may be at most this much below the large model's; 0.01 is one point."""
    max_wrong_fields: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """Largest share of the kept fields of JSON answers that may be wrong, in (0, 1); a field is kept by its own
    confidence. Without other limits (`max_error: null`) an answer stays small if every field is kept."""
    per_group: str = ""
    """Applies `max_error` to each group by itself, and covers only groups for which it can be shown: `label` for the
    predicted label, `language` for that of the text, else the name of a column of `data.columns.tags`, which requests
    send as a tag (`metadata`)."""
    languages: tuple[Annotated[str, pydantic.Field(pattern="^[a-z]{2,3}$")], ...] | None = None
    """Languages of the task (ISO 639-1), each guaranteed by itself; a request in another one goes to the large model.
    Left out, a run sets those of the rows if there are several and the extra `language` is installed; `[]`: never."""
    max_foreign_share: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of foreign requests up to which `max_error` holds, in [0, 1): an accepted foreign request counts as wrong.
    0 promises for the task's own requests alone."""
    unit: Literal["text", "group"] | None = None
    """What counts once where rows are no random requests: `text` for one row a text however often it is asked, as
    `discover` drafts them; `group` for one a group. A run sets it where it leaves repeats out. The promise says so."""
    most_of_group: int | None = pydantic.Field(default=None, ge=1)
    """Answers of a group (a conversation) that may be kept, the first ones: all of them count, by the sums of groups. A
    run sets it for function calls. None: one row of a group counts."""
    max_error_of: dict[str, float] = {}
    """By function a limit on its own calls, in place of `max_error`. A run sets it from `functions`; the limits share
    the error probability alike."""
    confidence: float = pydantic.Field(default=0.95, gt=0.5, lt=1)
    """Confidence level of the guarantee as a whole, in (0.5, 1)."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _languages_are_groups(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("languages"):
            return values
        return {"per_group": LANGUAGE, **values}

    @pydantic.model_validator(mode="after")
    def _has_a_limit(self) -> Guarantee:
        if not self.limits and self.max_wrong_fields is None:
            raise ValueError("a guarantee needs a limit: max_error, max_accuracy_loss or max_wrong_fields")
        if self.per_group and not self.limits_errors_alone:
            raise ValueError(f"per_group applies max_error to each {self.per_group} and allows no other limit")
        if self.languages and self.per_group != LANGUAGE:
            raise ValueError(f"languages are the groups of per_group: {LANGUAGE}, and it is {self.per_group}")
        if self.most_of_group and not self.limits_errors_alone:
            raise ValueError("most_of_group counts errors alone: set max_error and no other limit")
        if self.max_foreign_share and (self.max_error is None or self.per_group):
            raise ValueError("max_foreign_share widens max_error, over all labels together: set it, without per_group")
        return self

    @property
    def limits(self) -> dict[str, float]:
        limits = {"error": self.max_error, "accuracy_loss": self.max_accuracy_loss}
        return {risk: limit for risk, limit in limits.items() if limit is not None}

    @property
    def n_limits(self) -> int:
        """Limits that share the error probability, each alike."""
        return len(self.limits) + (self.max_wrong_fields is not None) + len(self.max_error_of)

    @property
    def limits_errors_alone(self) -> bool:
        return set(self.limits) == {"error"} and self.max_wrong_fields is None

    @property
    def in_words(self) -> str:
        limits = [describe_limit(risk, limit) for risk, limit in self.limits.items()]
        if self.max_wrong_fields is not None:
            limits.append(f"at most {100 * self.max_wrong_fields:g} % of kept fields wrong")
        said = ", ".join([*limits, *(f"of {name} at most {100 * own:g} %" for name, own in self.max_error_of.items())])
        if self.per_group:
            said += f" of each guaranteed {self.per_group}"
        if self.max_foreign_share:
            said += f" while at most {100 * self.max_foreign_share:g} % of requests are foreign"
        if self.most_of_group:
            said += f", at most {self.most_of_group} of a conversation"
        if self.unit:
            said += f", each {self.unit} counted once"
        return f"{said} ({100 * self.confidence:g} %)"


def describe_limit(risk: str, limit: float) -> str:
    """Describe one limit in words."""
    if risk == "error":
        return f"at most {100 * limit:g} % of kept answers wrong"
    return f"at most {100 * limit:g} point{'' if limit == 0.01 else 's'} less accurate than the large model"


class RiskResult(Record):
    """What n rows show about one limit of the guarantee."""

    risk: str
    """`error` or `accuracy_loss`."""
    limit: float
    value: float
    bound: float
    """Upper bound on the measured value, at the level of this limit."""
    n: int


class GroupCertificate(Record):
    """What is shown about the accepted answers of one group."""

    label: str
    """The predicted label, the language, or the value of the guarantee's tag."""
    threshold: float
    """Least confidence at which it is certified; above 1 when it is not."""
    n_accepted: int
    """Its calibration rows that are certified; all of them if it is not."""
    n_errors: int
    error_bound: float
    """Exact one-sided upper bound on their error, at this group's share of the level."""
    labels_missing: int | None
    """About how many more accepted rows of the group would show it at the measured error, of a language how many more
    rows are likely to show it of a part; None if none would."""
    n_rows: int = 0
    """Its calibration rows."""

    @property
    def certified(self) -> bool:
        return self.threshold <= 1

    @property
    def in_words(self) -> str:
        """What is shown, or how many rows that takes."""
        if self.certified:
            return f"{self.label} keeps {self.n_accepted:,} of {self.n_rows:,} rows"
        more = "more rows are unlikely to do" if self.labels_missing is None else f"{self.labels_missing:,} more may do"
        return f"{self.label} is not shown by {self.n_rows:,} rows, {more}"


class KeptFields(Record):
    """What is shown at one threshold about the calibration rows' fields."""

    threshold: float
    """Least confidence of a field that is kept; above 1 when none is."""
    n_kept: int
    n_wrong: int
    n_rows_kept: int
    """Rows of which every field is kept."""
    n_rows_wrong: int
    bound: float
    """Upper bound on the share of kept fields that are wrong; 1 when none is kept."""


class FieldCertificate(Record):
    """Two thresholds for the fields of one stage's answers; both hold together at the guarantee's confidence."""

    names: tuple[str, ...]
    each: KeptFields
    """Each field is kept by its own confidence, the others are marked as not certain."""
    whole: KeptFields
    """Answers are kept whose every field is confident enough, the others are asked elsewhere."""
    n_rows: int
    n_units: int
    curves: dict[str, IsotonicCurve] = {}
    """From the model's probability of a field to the calibrated one, fitted on selection rows."""

    @property
    def issued(self) -> bool:
        return min(self.each.threshold, self.whole.threshold) <= 1

    def certified(self, field_confidence: Mapping[str, float]) -> tuple[str, ...]:
        """Return the fields of an answer that are certified, from the model's probabilities by field path."""
        known = calibrated_fields(field_confidence, self.curves)
        return tuple(name for name in self.names if known.get(name, 0.0) >= self.each.threshold)

    def keeps(self, field_confidence: Mapping[str, float]) -> bool:
        """Return True if the whole answer may be kept: every field is confident enough."""
        known = calibrated_fields(field_confidence, self.curves)
        return min(known.get(name, 0.0) for name in self.names) >= self.whole.threshold


def calibrated_fields(field_confidence: Mapping[str, float], curves: Mapping[str, IsotonicCurve]) -> dict[str, float]:
    """Return by top-level field (`items` for `items[].price`) the probability that all its values are right."""
    own: dict[str, float] = {}
    for path, probability in field_confidence.items():
        quoted = path.startswith('"')
        name = str(json.JSONDecoder().raw_decode(path)[0]) if quoted else path.split(".")[0].split("[")[0]
        own[name] = own.get(name, 1.0) * probability
    return {name: curves[name].at(value) if name in curves else value for name, value in own.items()}


class ThresholdPoint(Record):
    """What happens on calibration rows if answers at or above one confidence stay small."""

    threshold: float
    n_accepted: int
    n_errors: int
    error_bound: float
    """Exact one-sided upper bound on the error of accepted answers."""
    routed_accuracy: float
    """Over all rows, when the rest goes to the large model."""
    routed_cost_usd_per_1k: float
    """Drafts included."""


class Evidence(Record):
    """What calibration rows show, none of which was used for any other choice."""

    n_labels: int
    """Calibration rows."""
    n_accepted: int
    """Those that the certificate covers."""
    n_errors: int
    """Wrong among these."""
    risks: tuple[RiskResult, ...] = ()
    """What was shown about each limit of the guarantee."""
    audit_limits: dict[str, dict[str, float]] = {}
    """By risk and judge: share of audited answers that may be called wrong before the limit counts as broken. `error`
    is also there where it is not limited: what the calibration rows allow for."""
    labels_missing: int | None = None
    """If refused: how many more rows like these are advised; None if issued, or if no number is likely to do."""
    labels_missing_chance: float | None = None
    """If refused: how likely as many, or the most, are to show it, in [0, 1]. None where it is not foretold, which
    takes a limit on errors over all answers, without foreign requests."""


class CertificateReport(Record):
    """The certificate as a person reads it."""

    why: str
    """The guarantee, or why it is refused, in one sentence."""
    below_why: str
    """The paired evidence behind `below`."""
    curve: tuple[ThresholdPoint, ...] = ()
    """What each threshold would have given, strict to loose."""
    rests_on: tuple[str, ...] = ()
    """What the guarantee rests on and when it ends."""


class Certificate(Record):
    """A guarantee about the answers that a Router keeps small, for one model version."""

    issued: bool
    threshold: float
    """Answers of the last drafting stage with at least this confidence are accepted; above 1 when none is."""
    thresholds: dict[str, float] = {}
    """The same of every drafting stage by its candidate's name, cheapest first."""
    groups: tuple[GroupCertificate, ...] = ()
    """By predicted label, language or tag, with `guarantee.per_group`; by function with `guarantee.max_error_of`, the
    empty one for all that have no limit of their own."""
    fields: FieldCertificate | None = None
    """What is shown about the fields of the last stage's JSON answers; None where `guarantee.max_wrong_fields` is."""
    below: BelowAction
    """What happens to the other answers."""
    filters: dict[str, Any] = {}
    """What requests pass before they reach the cascade for which it holds: domain check and policies."""
    guarantee: Guarantee
    model_fingerprint: str
    dataset_fingerprint: str
    """Of the calibration rows."""
    evidence: Evidence
    report: CertificateReport

    @property
    def coverage(self) -> Estimate:
        """Share of calibration rows accepted."""
        return wilson(self.evidence.n_accepted, self.evidence.n_labels)

    def audit_limit_for(self, risk: str, judge: Literal["large", "person"]) -> float | None:
        """Return the share of audits by `judge` that may find answers wrong, in (0, 1); None if that shows nothing."""
        return self.evidence.audit_limits.get(risk, {}).get(judge)

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
        value, name = confidence or 0.0, self.guarantee.per_group
        if not self.issued or value < (self.threshold if threshold is None else threshold):
            return False
        if own := self.guarantee.max_error_of:
            called = function_of(label)
            group: str | None = called if called in own else ""
        else:
            group = label if name == LABEL else (tags or {}).get(name)
        return not (name or own) or any(value >= one.threshold for one in self.groups if one.label == group)

    def keeps_fields(self, field_confidence: Mapping[str, float]) -> bool:
        """Return True if an answer of the last stage is kept for its fields, where no other limit decides on it."""
        return self.fields is not None and not self.guarantee.limits and self.fields.keeps(field_confidence)

    def reported(self, **changes: Any) -> Certificate:
        """Return the certificate with fields of its report changed."""
        return self.model_copy(update={"report": self.report.model_copy(update=changes)})
