"""Make a certificate from a calibration set: look, search, evidence, the rule below the threshold, and the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import special

from smallfirst.base.stats.intervals import mid_p_value, paired_difference, score_lower_bound, upper_bound
from smallfirst.base.stats.sample_size import RowsNeeded, min_rows_without_error, rows_for_error
from smallfirst.routing.certificate.calibration_set import (
    CalibrationSet,
    CascadeOutcome,
    audit_limits,
    measure_risk,
    one_row_a_unit,
    trial_fingerprint,
    unit_numbers,
)
from smallfirst.routing.certificate.certificate import (
    NEVER_ACCEPT,
    BelowAction,
    Certificate,
    CertificateReport,
    Evidence,
    FieldCertificate,
    GroupCertificate,
    Guarantee,
    RiskResult,
    ThresholdPoint,
    describe_limit,
)
from smallfirst.routing.certificate.looks import LARGE, SMALL, Look, LookRequest, count_look, next_look
from smallfirst.routing.certificate.threshold_search import (
    CascadeThresholds,
    certify_fields,
    certify_groups,
    search_cascade,
    search_groups,
)

LEVEL = 0.05
"""Chance to send requests on that the large model is not better at."""
NOTHING_LEFT = (
    "not shown: earlier certificates on these calibration rows have spent the whole error probability; certify with "
    "rows of which none was used before"
)
"""Why a certificate is refused for which no error probability is left."""


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
    rows: CalibrationSet,
    guarantee: Guarantee,
    *,
    model_fingerprint: str,
    below: BelowRule = PASSED_ALONE,
    look: LookRequest | None = None,
) -> Certificate:
    """Certify the drafting stages from their answers on calibration rows that were used for no choice.

    `rows` were made for this guarantee. Of rows of a group one counts. Foreign rows that are accepted count as wrong
    with `guarantee.max_foreign_share`, and none known means all are. `look` is how this certificate counts among those
    tried on rows with these texts; None: it is the only one by agreement, and spends all of the level.
    """
    counted, share, next_share = None, 1.0, 1.0
    if look is not None:
        trial = trial_fingerprint(rows, guarantee, model_fingerprint, look.portion, look.shared)
        counted = count_look(look, rows.texts, trial)
        share, next_share = counted.share, next_look(look.path, rows.texts).share
    data, selection = rows.one_row_a_unit(), rows.selection
    if rows.unit is not None and rows.place is None:
        guarantee = guarantee.model_copy(update={"unit": "group"})
    limits, by_field, fields = guarantee.limits, guarantee.max_wrong_fields, None
    level = share * (1 - guarantee.confidence) / guarantee.n_limits
    tested = guarantee.model_copy(update={"confidence": 1 - level * max(1, len(limits))})
    shown = _search(data, tested, level)
    if by_field is not None and level and rows.fields is not None:
        fields = certify_fields(rows.fields, by_field, level=level, selection=selection.fields if selection else None)
    missing = None
    if level and not shown.found.issued:
        again = 1 - (look.n_once if look else 0) / max(1, rows.n)
        missing = _rows_missing(data, guarantee, shown.found.level, share=next_share / share, again=again)
    may_keep = "accuracy_loss" not in limits or not shown.found.issued or shown.found.keeps_all
    action, below_why = decide_below_threshold(data, shown.accepted, below, may_keep=may_keep)
    return Certificate(
        issued=shown.found.issued or (fields is not None and fields.issued),
        threshold=shown.found.thresholds[-1],
        thresholds=dict(zip(rows.stages, shown.found.thresholds, strict=True)),
        groups=shown.groups,
        fields=fields,
        below=action,
        guarantee=guarantee,
        model_fingerprint=model_fingerprint,
        dataset_fingerprint=rows.fingerprint,
        evidence=_evidence(data, guarantee, tested, shown, fields, missing),
        report=CertificateReport(
            why=_describe(data, guarantee, shown, fields, missing),
            below_why=below_why,
            curve=threshold_curve(data, shown.found.thresholds, tested.confidence),
            rests_on=tuple(_rests_on(data, guarantee, counted, n_rows=rows.n, person=below.person)),
        ),
    )


def _rows_missing(
    data: CalibrationSet, guarantee: Guarantee, refused_at: float, *, share: float, again: float
) -> RowsNeeded | None:
    """Return how many more rows are likely to show a limit on errors alone; None for other guarantees.

    `share`: level of the next look over that of this one. `again`: share of these rows that it tests again.
    """
    if set(guarantee.limits) != {"error"} or guarantee.per_group or data.foreign_share:
        return None
    if (
        data.place is not None and data.unit is not None and data.n
    ):  # one call of each conversation, then as many calls as it has
        drawn = data.take(one_row_a_unit(unit_numbers(data.unit.tolist())))
        if drawn.part is not None:  # functions with a limit of their own need more
            drawn = replace(drawn.take(drawn.part == ""), part=None)
        alone = replace(drawn, place=None, unit=None)
        found = _rows_missing(alone, guarantee, refused_at, share=share, again=again)
        return found and found._replace(n_more=math.ceil(found.n_more * data.n / max(1, drawn.n)))
    score, right, limit = data.confidence[-1], data.right[-1], guarantee.limits["error"]
    return rows_for_error(score, right, limit, refused_at * share, refused_at=refused_at, again=again)


def _evidence(
    data: CalibrationSet,
    guarantee: Guarantee,
    tested: Guarantee,
    shown: _Shown,
    fields: FieldCertificate | None,
    missing: RowsNeeded | None,
) -> Evidence:
    n_labels, n_accepted, n_errors = data.n, shown.n_accepted, shown.n_errors
    if fields and not guarantee.limits:
        n_labels, n_accepted, n_errors = fields.n_rows, fields.whole.n_rows_kept, fields.whole.n_rows_wrong
    issued = shown.found.issued
    return Evidence(
        n_labels=n_labels,
        n_accepted=n_accepted,
        n_errors=n_errors,
        risks=shown.risks,
        audit_limits=audit_limits(shown.outcome, shown.accepted, tested, shown.error_bound) if issued else {},
        labels_missing=missing.n_more if missing and not missing.unlikely else None,
        labels_missing_chance=missing.chance if missing else None,
    )


class _Shown(NamedTuple):
    """Where a search shows the limits on answers, and what is shown there."""

    found: CascadeThresholds
    groups: tuple[GroupCertificate, ...]
    outcome: CascadeOutcome
    accepted: np.ndarray
    """By row: covered."""
    n_accepted: int
    n_errors: int
    risks: tuple[RiskResult, ...]
    error_bound: float


def _search(data: CalibrationSet, tested: Guarantee, level: float) -> _Shown:
    """Search where each limit on answers is shown at `level`; without any, or at 0, nothing is."""
    limits, groups = tested.limits, tuple[GroupCertificate, ...]()
    found = CascadeThresholds((NEVER_ACCEPT,) * data.n_stages, level)
    if level and tested.per_group:
        groups = certify_groups(data, limits["error"], level=level, languages=tested.languages or ())
        found = found._replace(thresholds=(min((one.threshold for one in groups), default=NEVER_ACCEPT),))
    elif level and tested.most_of_group and data.unit is not None:
        return _search_groups(data, tested, level)
    elif level and limits:
        found = search_cascade(data, tested)
    outcome = data.outcome(found.thresholds)
    accepted = outcome.accepted
    if tested.per_group and data.part is not None:
        own = {one.label: one.threshold for one in groups}
        accepted = data.confidence[-1] >= np.array([own.get(part, NEVER_ACCEPT) for part in data.part.tolist()])
    shown = limits.items() if found.issued and not tested.per_group else ()
    risks = tuple(measure_risk(risk, outcome, limit, found.level) for risk, limit in shown)
    n, errors = int(accepted.sum()), int((accepted & ~outcome.right).sum())
    bound = upper_bound(errors, n, confidence=tested.confidence)
    bound = next((one.bound for one in risks if one.risk == "error"), bound)
    return _Shown(found, groups, outcome, accepted, n, errors, risks, bound)


def _search_groups(data: CalibrationSet, tested: Guarantee, level: float) -> _Shown:
    """Search where the limits on errors are shown by the sums of groups, that of each function among its own calls."""
    kept, shown = np.zeros(data.n, dtype=bool), list[GroupCertificate]()
    first, bound = 0, 0.0
    for name, limit in {"": tested.limits["error"], **tested.max_error_of}.items():
        rows = np.arange(data.n) if data.part is None else np.flatnonzero(data.part == name)
        one = search_groups(data.take(rows), limit, level)
        kept[rows[one.kept]] = True
        n, wrong = int(one.kept.sum()), int((~data.right[-1][rows[one.kept]]).sum())
        first, bound = (first if name else one.first), max(bound, one.bound if n else 0.0)
        found = {"threshold": one.threshold, "n_accepted": n, "n_errors": wrong, "error_bound": one.bound}
        shown.append(GroupCertificate(label=name, labels_missing=None, **found))
    threshold, n, errors = min(one.threshold for one in shown), int(kept.sum()), sum(one.n_errors for one in shown)
    risk = RiskResult(risk="error", limit=tested.limits["error"], value=errors / max(1, n), bound=bound, n=n)
    groups = tuple(shown) if tested.max_error_of else ()
    outcome = data.outcome((threshold,))
    cascade = CascadeThresholds((threshold,), level, first=first)
    return _Shown(cascade, groups, outcome, kept, n, errors, (risk,) if n else (), bound if n else 1.0)


def decide_below_threshold(
    data: CalibrationSet, accepted: np.ndarray, rule: BelowRule, *, may_keep: bool = True
) -> tuple[BelowAction, str]:
    """Return what happens to the rows that are not `accepted`, and the sentence that gives its evidence.

    Where the last stage passed its gate by itself, they stay small unless the large model is shown to be better on
    them. One test of all of them decides, so the chance to send requests on without a gain is about 5 %. `may_keep`:
    False where a limit on the accuracy loss is not shown while all of them stay small.
    """
    both = ~accepted & data.paired
    small, large, n = data.right[-1][both], data.large_right[both], int(both.sum())
    only_large, only_small = int((large & ~small).sum()), int((small & ~large).sum())
    p_value, seen = mid_p_value(only_large, only_small), "nothing tells whether the large model is better there"
    if n:
        seen = (
            f"on {n} calibration rows below the threshold large is right on {large.sum()}, small on {small.sum()} "
            f"(difference {paired_difference(large.tolist(), small.tolist())}, one-sided p = {p_value:.3f})"
        )
    elif accepted.all():
        seen = "no calibration row falls below the threshold"
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


def threshold_curve(data: CalibrationSet, chosen: tuple[float, ...], confidence: float) -> tuple[ThresholdPoint, ...]:
    """Return about 60 thresholds of the last stage, strict to loose; where large was not asked, the draft stands in."""
    descending = np.sort(data.confidence[-1])[::-1]
    counts = {round(share * data.n) for share in np.linspace(0, 1, 61)}
    thresholds = {*(float(descending[n - 1]) if n else NEVER_ACCEPT for n in counts), chosen[-1]}
    large_right = np.where(data.asked, data.large_right, data.right[-1])
    points = []
    for threshold in sorted(thresholds, reverse=True):
        outcome = data.outcome((*chosen[:-1], threshold))
        right = outcome.select(np.vstack([data.right, large_right]))
        errors = int((outcome.accepted & ~right).sum())
        points.append(
            ThresholdPoint(
                threshold=threshold,
                n_accepted=outcome.n_accepted,
                n_errors=errors,
                error_bound=upper_bound(errors, outcome.n_accepted, confidence=confidence),
                routed_accuracy=int(right.sum()) / max(1, data.n),
                routed_cost_usd_per_1k=1000 * outcome.mean_cost_usd,
            )
        )
    return tuple(points)


# The report


def _describe(
    data: CalibrationSet,
    guarantee: Guarantee,
    shown: _Shown,
    fields: FieldCertificate | None,
    missing: RowsNeeded | None,
) -> str:
    """Return the guarantee with what was measured of each limit, or why it is refused."""
    if not shown.found.level:
        return NOTHING_LEFT
    of_fields = [describe_fields(fields, guarantee.max_wrong_fields or 0.0)] if fields else []
    if guarantee.limits and not shown.found.issued:
        of_languages = [one.in_words for one in shown.groups if guarantee.languages]
        return "; ".join([_describe_refused(data, guarantee, shown.found, missing), *of_languages, *of_fields])
    return f"{guarantee.in_words}: {'; '.join([*_measured(guarantee, shown), *of_fields])}{_judged_by(data)}"


def _measured(guarantee: Guarantee, shown: _Shown) -> Iterator[str]:
    if guarantee.per_group:
        n = sum(one.certified for one in shown.groups)
        yield (
            f"shown for {n} of {len(shown.groups)} {guarantee.per_group}s, of whose {shown.n_accepted} kept "
            f"calibration answers {shown.n_errors} were wrong"
        )
        yield from (one.in_words for one in shown.groups if guarantee.languages)
    for own in shown.groups if guarantee.max_error_of else ():
        if own.label:
            stays = "" if own.certified else ", which shows too little: the large model makes them"
            yield f"of {own.n_accepted} kept calls of {own.label} {own.n_errors} were wrong{stays}"
    for one in shown.risks:
        if one.risk == "error":
            yield f"{shown.n_errors} of {one.n} kept calibration answers were wrong, so at most {one.bound:.3f}"
        else:
            yield f"{one.value:.3f} below the large model on {one.n} rows, so at most {one.bound:.3f}"


def describe_fields(found: FieldCertificate, max_wrong: float) -> str:
    """Return what is shown about the fields of answers."""
    each, whole, n = found.each, found.whole, f"{found.n_rows:,}"
    units = f" in {found.n_units:,} groups" if found.n_units < found.n_rows else ""
    if not found.issued:
        no = f"show at no threshold that at most {100 * max_wrong:g} % of kept fields are wrong"
        return f"fields are not certified: {n} rows{units} {no}"
    return (
        f"field by field {each.n_kept:,} of {found.n_rows * len(found.names):,} fields{units} are kept, "
        f"{each.n_wrong:,} of them wrong, so at most {each.bound:.3f}; {whole.n_rows_kept:,} of {n} answers are kept "
        f"as a whole, {whole.n_wrong:,} of their fields wrong, so at most {whole.bound:.3f}"
    )


def _describe_refused(
    data: CalibrationSet, guarantee: Guarantee, found: CascadeThresholds, missing: RowsNeeded | None
) -> str:
    """Return why nothing is guaranteed, and whether more rows are unlikely to change that."""
    limits, alpha, n = guarantee.limits, guarantee.max_error, data.n
    if "accuracy_loss" in limits and not data.paired.any():
        limit = describe_limit("accuracy_loss", limits["accuracy_loss"])
        return f'not shown: "{limit}" needs calibration rows with gold labels and the large model\'s answers'
    end = ""
    if missing is not None and missing.unlikely:
        chance = f"({100 * missing.chance:.0f} %)"
        end = f"; more rows like these are unlikely to show it {chance}: loosen the guarantee, or improve the model"
    if alpha and n < (fewest := min_rows_without_error(alpha, found.level)):
        return f"too few labels: {n} calibration rows; even without an error this guarantee needs {fewest}{end}"
    start = f"not shown: with {n} calibration rows"
    if guarantee.per_group:
        return f"{start} {guarantee.in_words} is shown for no {guarantee.per_group}"
    if not alpha or len(limits) > 1:
        return f"{start} no threshold shows {guarantee.in_words}"
    foreign = (
        f" while {100 * data.foreign_share:g} % of requests are foreign ({data.n_foreign} rows of data.open_ended)"
    )
    return (
        f"{start} ({(~data.right[-1]).sum()} of all answers wrong) no threshold keeping {found.first} or more answers "
        f"shows at most {100 * alpha:g} % wrong{foreign if data.foreign_share else ''}{_judged_by(data)}{end}"
    )


def _judged_by(data: CalibrationSet) -> str:
    return "" if data.judged_by == "gold" else "; right is what the large model answered"


def _rests_on(
    data: CalibrationSet, guarantee: Guarantee, look: Look | None, *, n_rows: int, person: bool
) -> Iterator[str]:
    """Yield what the guarantee rests on and when it ends, a sentence each; `n_rows` before one of a group was drawn."""
    n, asked, limits = data.n, int(data.asked.sum()), guarantee.limits
    yield from _rests_on_groups(data)
    if n < n_rows:
        yield f"{n_rows} calibration rows belong to {n} groups, of each of which one row counts"
    yield f"it holds for requests drawn like its {n} calibration rows; drift ends it"
    alone = "it allows one look: whatever else is tried on these rows weakens both; certify(…, look=…) counts them"
    yield _describe_look(guarantee, look) if look else alone
    if data.judged_by == "gold":
        yield "right is what the gold labels say; a wrong label counts as it stands"
    else:
        yield "the labels are the large model's answers: where it is wrong, so is this; no gold corrects it"
    if guarantee.unit:
        often = "where frequent ones are answered worse, more of the requests are wrong"
        yield f"each {guarantee.unit} counts once, however many requests it has: {often}"
    if share := data.foreign_share:
        rows = f"its {data.n_foreign} foreign calibration rows"
        yield f"it holds while at most {100 * share:g} % of requests are foreign, and those are like {rows}"
    elif data.n_foreign:
        yield "it is about the task's own requests: guarantee.max_foreign_share makes it count foreign ones as wrong"
    if len(limits) > 1:
        yield f"{100 * guarantee.confidence:g} % holds for all {len(limits)} limits together"
    if 0 < asked < n:
        yield f"the large model answered {asked} of the {n} rows, assumed to be a random part of them"
    if "accuracy_loss" in limits and person:
        yield "a request left to a person counts as answered no worse than by the large model"
    yield "what happens below the threshold was chosen on these rows and is not guaranteed to be right"
    if guarantee.max_wrong_fields is not None:
        yield "the fields of a row, and the rows of a group, count as one observation; no audit tests fields yet"


def _rests_on_groups(data: CalibrationSet) -> Iterator[str]:
    if data.place is not None and data.unit is not None:
        n_groups = len(set(data.unit.tolist()))
        yield f"its {data.n} calls come from {n_groups} conversations, which are right and wrong as a whole"
        yield "it speaks of conversations as the recorded model led them; what a small call changes later is not tested"
    if data.part is not None and (others := sum(one is None for one in data.part.tolist())):
        yield f"{others} of its {data.n} rows are told to be in none of the task's languages: such requests go on"


def _describe_look(guarantee: Guarantee, look: Look) -> str:
    level, family = 100 * (1 - guarantee.confidence), f", divided among {look.family} fixed before"
    return (
        f"it is certificate number {look.number} tried on these calibration rows, or on rows that overlap with them; "
        f"of the {level:.4g} % by which all of them together may fail it takes {look.share * level:.4g} %: one look "
        f"{LARGE * level:.4g} % and all others together {SMALL * level:.4g} %{family if look.family else ''}; rows of "
        "which none was used before begin anew"
    )
