"""The certificate: the confidence from which the small model may answer, and the guarantee about those answers.

It holds for requests drawn like the calibration rows; drift ends it. What happens below the threshold is decided
without guarantee (`decide_below_threshold`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import special

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, mid_p_value, paired_difference, score_lower_bound, wilson
from smallfirst.base.stats.sample_size import rows_for_error
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.routing.certificate import looks as counted
from smallfirst.routing.certificate import summary
from smallfirst.routing.certificate.guarantee import LABEL, Guarantee
from smallfirst.routing.certificate.outcomes import CascadeData, RiskResult, audit_limits, cascade_data
from smallfirst.routing.certificate.units import (
    FieldCertificate,
    GroupCertificate,
    certify_fields,
    one_row_a_unit,
    search_limits,
)

LEVEL = 0.05
"""Chance to send requests on that the large model is not better at."""
BelowAction = Literal["escalate", "keep", "abstain"]
"""To the large model; answered small without a guarantee; to a person's queue."""


class Certificate(Record):
    """A guarantee about the answers that a Router keeps small, for one model version.

    First what the Router decides by, then the evidence, then what a person reads.
    """

    issued: bool
    threshold: float
    """Answers of the last drafting stage with at least this confidence are accepted; above 1 when none is."""
    thresholds: dict[str, float] = {}
    """The same of every drafting stage by its candidate's name, cheapest first."""
    classes: tuple[GroupCertificate, ...] = ()
    """By predicted label or tag, with `guarantee.per_group`."""
    fields: FieldCertificate | None = None
    """What is shown about the fields of the last stage's JSON answers; None where `guarantee.max_wrong_fields` is."""
    below: BelowAction
    filters: dict[str, Any] = {}
    """What requests pass before they reach the cascade for which it holds: domain check and policies."""

    guarantee: Guarantee
    n_labels: int
    """Calibration rows, none of which was used for any other choice."""
    n_accepted: int
    """Those that it covers."""
    n_errors: int
    """Wrong among these."""
    risks: tuple[RiskResult, ...] = ()
    """What was shown about each limit of the guarantee."""
    audit_limits: dict[str, dict[str, float]] = {}
    """By risk and judge: share of audited answers that may be called wrong before the limit counts as broken. `error`
    is also there where it is not limited: what the calibration rows allow for."""
    max_outside: float | None = None
    """Share of requests, in [0, 1], that the domain check by itself may call foreign before more are foreign than the
    guarantee counts on; None if it counts on none."""
    labels_missing: int | None = None
    """If refused: how many more rows like these are advised; None if issued, or if no number is likely to do."""
    labels_missing_chance: float | None = None
    """If refused: how likely as many, or the most, are to show it, in [0, 1]. None where it is not foretold, which
    takes a limit on errors over all answers, without foreign requests."""
    model_fingerprint: str
    dataset_fingerprint: str
    """Of the calibration rows."""

    why: str
    """The guarantee, or why it is refused, in one sentence."""
    below_why: str
    """The paired evidence behind `below`."""
    curve: tuple[summary.ThresholdPoint, ...]
    """What each threshold would have given, strict to loose."""
    limits_of_validity: tuple[str, ...] = ()
    """What the guarantee rests on and when it ends."""

    @property
    def coverage(self) -> Estimate:
        """Share of calibration rows accepted."""
        return wilson(self.n_accepted, self.n_labels)

    def audit_limit_for(self, risk: str, judge: Literal["large", "person"]) -> float | None:
        """Return the share of audits by `judge` that may find answers wrong, in (0, 1); None if that shows nothing."""
        return self.audit_limits.get(risk, {}).get(judge)

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
        group = label if name == LABEL else (tags or {}).get(name)
        return not name or any(value >= one.threshold for one in self.classes if one.label == group)

    def keeps_fields(self, field_confidence: Mapping[str, float]) -> bool:
        """Return True if an answer of the last stage is kept for its fields, where no other limit decides on it."""
        return self.fields is not None and not self.guarantee.limits and self.fields.keeps(field_confidence)


class BelowRule(NamedTuple):
    """How requests below the threshold are decided on."""

    alone: bool = True
    """The last stage passed its gate by itself: they stay small unless the large model, on the calibration rows or a
    random part, is shown to be better. If False, all of them go on."""
    person: bool = False
    """What is not sent on waits for a person."""
    usd_per_wrong_answer: float | None = None
    """What a wrong answer costs in USD: the gain must be worth the large model's price. None: any gain counts."""


PASSED_ALONE = BelowRule()


def certify(
    drafts: Evaluation | Sequence[Evaluation],
    large: Evaluation | None,
    guarantee: Guarantee,
    *,
    model_fingerprint: str,
    labels: Literal["gold", "large"] = "gold",
    selection: Evaluation | Sequence[Evaluation] | None = None,
    foreign: Sequence[Sequence[float]] = (),
    below: BelowRule = PASSED_ALONE,
    looks: Path | None = None,
    portion: counted.Portion = "large",
    shared: counted.SharedLook = counted.ALONE,
    n_once: int = 0,
) -> Certificate:
    """Certify the drafting stages, cheapest first, from their answers on calibration rows used for no choice.

    `labels="large"`: rows were scored against the large model's answers. `selection`: the stages' answers to selection
    rows, which choose where the search begins; None: a fixed rule does. `foreign`: by stage the confidences, in [0, 1],
    of drafts of foreign requests that nothing was fitted on; with `guarantee.max_foreign_share` those that are accepted
    count as wrong, and none known means all are. Of rows of a group one counts; the order of rows does not matter.

    `looks`: the file that counts the certificates tried on rows with these texts (`looks`), this one too, which spends
    the `portion` of the level that it names, of a `shared` look its part. None: it is the only one by agreement, and
    spends all of the level. `n_once`: how many of the rows a later look may not use.

    Raise DataError if a draft lacks rows, ConfigError for a guarantee by group about several stages, or by field about
    answers without fields.
    """
    stages, choosing = _as_list(drafts), _as_list(selection)
    if guarantee.per_group and len(stages) > 1:
        raise ConfigError(
            f"a guarantee by {guarantee.per_group} covers one drafting stage, and there are {len(stages)}",
            hint="leave out guarantee.per_group, or let one stage draft",
        )
    if any(len(stage) for stage in foreign):
        foreign = list(zip(*sorted(zip(*foreign, strict=True)), strict=True))
    look, share, next_share = None, 1.0, 1.0
    if looks is not None:
        rows_of = (stages, large and counted.in_order(large), choosing)
        trial = counted.trial_fingerprint(*rows_of, guarantee, model_fingerprint, labels, foreign, portion, shared)
        texts = counted.text_fingerprints(row.text for row in stages[-1].rows)
        look = counted.count_look(looks, texts, trial, portion, shared)
        share, next_share = look.share, counted.next_look(looks, texts).share
    rows = cascade_data(stages, large, labels, guarantee, foreign)
    data = rows.take(one_row_a_unit(rows.unit, rows.n))  # of rows that are right and wrong together one counts
    if rows.unit is not None:
        guarantee = guarantee.model_copy(update={"unit": "group"})
    limits, by_field, fields = guarantee.limits, guarantee.max_wrong_fields, None
    level = share * (1 - guarantee.confidence) / guarantee.n_limits
    tested = guarantee.model_copy(update={"confidence": 1 - level * max(1, len(limits))})
    shown = search_limits(data, tested, level, cascade_data(choosing) if choosing else None)
    found, missing = shown.found, None
    if by_field is not None and level:
        fields = certify_fields(stages[-1], by_field, level=level, selection=choosing[-1] if choosing else None)
    if level and not found.issued and set(limits) == {"error"} and not guarantee.per_group and not data.foreign_share:
        again, later = 1 - n_once / max(1, rows.n), found.level * next_share / share
        score, right = data.confidence[-1], data.right[-1]
        missing = rows_for_error(score, right, limits["error"], later, refused_at=found.level, again=again)
    may_keep = "accuracy_loss" not in limits or not found.issued or found.keeps_all
    action, below_why = decide_below_threshold(data, shown.accepted, below, may_keep=may_keep)
    by_row = (data.n, shown.n_accepted, shown.n_errors)
    by_whole = (fields.n_rows, fields.whole.n_rows_kept, fields.whole.n_rows_wrong) if fields else by_row
    n_labels, n_accepted, n_errors = by_row if limits else by_whole
    rests_on = summary.limits_of_validity(data, guarantee, look, n_rows=rows.n, person=below.person)
    return Certificate(
        issued=found.issued or (fields is not None and fields.issued),
        threshold=found.thresholds[-1],
        thresholds=dict(zip((stage.candidate for stage in stages), found.thresholds, strict=True)),
        classes=shown.groups,
        fields=fields,
        below=action,
        guarantee=guarantee,
        n_labels=n_labels,
        n_accepted=n_accepted,
        n_errors=n_errors,
        risks=shown.risks,
        audit_limits=audit_limits(shown.outcome, shown.accepted, tested, shown.error_bound) if found.issued else {},
        labels_missing=missing.n_more if missing and not missing.unlikely else None,
        labels_missing_chance=missing.chance if missing else None,
        model_fingerprint=model_fingerprint,
        dataset_fingerprint=stages[-1].dataset_fingerprint,
        why=summary.describe(data, guarantee, shown, fields, missing),
        below_why=below_why,
        curve=summary.threshold_curve(data, found.thresholds, tested.confidence),
        limits_of_validity=tuple(rests_on),
    )


def _as_list(drafts: Evaluation | Sequence[Evaluation] | None) -> list[Evaluation]:
    return [counted.in_order(one) for one in ([drafts] if isinstance(drafts, Evaluation) else drafts or ())]


def decide_below_threshold(
    data: CascadeData, accepted: np.ndarray, rule: BelowRule, *, may_keep: bool = True
) -> tuple[BelowAction, str]:
    """Return what happens to the rows that are not `accepted`, and the sentence that gives its evidence.

    Where the last stage passed its gate by itself, they stay small unless the large model is shown to be better on
    them. One test of all of them decides, so the chance to send requests on without a gain is about 5 %. `may_keep`:
    False where a limit on the accuracy loss is not shown while all of them stay small.
    """
    both = ~accepted & data.paired
    small, large, n = data.right[-1][both], data.large_right[both], int(both.sum())
    only_large, only_small = int((large & ~small).sum()), int((small & ~large).sum())
    p_value, seen = mid_p_value(only_large, only_small), _not_measured(data, accepted)
    if n:
        seen = (
            f"on {n} calibration rows below the threshold large is right on {large.sum()}, small on {small.sum()} "
            f"(difference {paired_difference(large.tolist(), small.tolist())}, one-sided p = {p_value:.3f})"
        )
    if not rule.alone and rule.person and not data.asked.any():
        return "abstain", "only certified answers stay small; without a large model the others wait for a person"
    if not rule.alone:
        return "escalate", f"only certified answers stay small, the others go on; {seen}"
    price = rule.usd_per_wrong_answer
    worth = f" and worth its price at ${price:g} a wrong answer" if price is not None else ""
    if n and p_value <= LEVEL:
        break_even = float(data.cost_usd[-1][both].mean()) / price if price else 0.0
        z = float(special.ndtri(1 - LEVEL))
        if break_even <= 0 or score_lower_bound(only_large, only_small, n, z) > break_even:
            return "escalate", f"{seen}: shown to be better{worth}"
    seen += f": not shown to be better{worth}" if n else ""
    if rule.person:
        return "abstain", f"{seen}, so they go to a person's queue"
    if may_keep:
        return "keep", f"{seen}, so they stay small"
    return "escalate", f"{seen}, so they stay small; but the limit on the accuracy loss is not shown where they do"


def _not_measured(data: CascadeData, accepted: np.ndarray) -> str:
    if not data.asked.any():
        return "the large model was not measured"
    if accepted.all():
        return "no calibration row falls below the threshold"
    if not data.asked[~accepted].any():
        return "the large model was not measured on rows below the threshold"
    return "below the threshold only the large model says what is right, so nothing shows that it is better"
