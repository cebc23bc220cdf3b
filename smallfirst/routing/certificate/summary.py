"""The certificate as a person reads it: what is shown or missing, what it rests on, and what other thresholds do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import upper_bound
from smallfirst.base.stats.sample_size import RowsNeeded, min_rows_without_error
from smallfirst.routing.certificate.guarantee import Guarantee, describe_limit
from smallfirst.routing.certificate.looks import LARGE, SMALL, Look
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData
from smallfirst.routing.certificate.threshold_search import CascadeThresholds
from smallfirst.routing.certificate.units import FieldCertificate, Shown

NOTHING_LEFT = (
    "not shown: earlier certificates on these calibration rows have spent the whole error probability; certify with "
    "rows of which none was used before"
)
"""Why a certificate is refused for which no error probability is left."""


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


def threshold_curve(data: CascadeData, chosen: tuple[float, ...], confidence: float) -> tuple[ThresholdPoint, ...]:
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


def describe(
    data: CascadeData, guarantee: Guarantee, shown: Shown, fields: FieldCertificate | None, missing: RowsNeeded | None
) -> str:
    """Return the guarantee with what was measured of each limit, or why it is refused."""
    if not shown.found.level:
        return NOTHING_LEFT
    of_fields = [describe_fields(fields, guarantee.max_wrong_fields or 0.0)] if fields else []
    if guarantee.limits and not shown.found.issued:
        return "; ".join([describe_refused(data, guarantee, shown.found, missing), *of_fields])
    return f"{guarantee.in_words}: {'; '.join([*_measured(guarantee, shown), *of_fields])}{_judged_by(data)}"


def _measured(guarantee: Guarantee, shown: Shown) -> Iterator[str]:
    if guarantee.per_group:
        n = sum(one.certified for one in shown.groups)
        yield (
            f"shown for {n} of {len(shown.groups)} {guarantee.per_group}s, of whose {shown.n_accepted} kept "
            f"calibration answers {shown.n_errors} were wrong"
        )
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


def describe_refused(
    data: CascadeData, guarantee: Guarantee, found: CascadeThresholds, missing: RowsNeeded | None
) -> str:
    """Return why nothing is guaranteed, and whether more rows are unlikely to change that."""
    limits, alpha, n = guarantee.limits, guarantee.max_error, data.n
    if "accuracy_loss" in limits and data.labels == "large":
        return "not shown: the large model's own answers were the labels: nothing is below them; give some gold labels"
    if "accuracy_loss" in limits and not data.paired.any():
        needs = "needs the large model's answers on the calibration rows, of which"
        return f'not shown: "{describe_limit("accuracy_loss", limits["accuracy_loss"])}" {needs} {n} of {n} are missing'
    end = ""
    if missing is not None and missing.unlikely:
        chance = f"({100 * missing.chance:.0f} %)"
        end = f"; more rows like these are unlikely to show it {chance}: loosen the guarantee, or improve the model"
    if alpha and n < (fewest := min_rows_without_error(alpha, found.level)):
        return f"too few labels: {n} calibration rows; even without an error this guarantee needs {fewest}{end}"
    start = f"not shown: with {n} calibration rows"
    if guarantee.per_group:
        return f"{start} {guarantee.in_words} is shown for no {guarantee.per_group}"
    if len(limits) > 1:
        return f"{start} no threshold keeps all limits: {'; '.join(_shown_where(guarantee, found))}"
    if not alpha:
        return f"{start} no threshold shows {guarantee.in_words}"
    return (
        f"{start} ({(~data.right[-1]).sum()} of all answers wrong) no threshold keeping {found.first} or more answers "
        f"shows at most {100 * alpha:g} % wrong{_foreign_counted(data)}{_judged_by(data)}{end}"
    )


def _shown_where(guarantee: Guarantee, found: CascadeThresholds) -> Iterator[str]:
    for risk, limit in guarantee.limits.items():
        least, most = found.shares.get(risk, (0.0, 0.0))
        shown = f"while {100 * least:.0f} to {100 * most:.0f} % stay small" if risk in found.shares else "nowhere"
        yield f'"{describe_limit(risk, limit)}" is shown {shown}'


def _foreign_counted(data: CascadeData) -> str:
    if not data.foreign_share:
        return ""
    return (
        f" while {100 * data.foreign_share:g} % of requests are foreign, for which {data.n_foreign} rows stand (more "
        "of them in data.open_ended bound it tighter, and guarantee.max_foreign_share may be less)"
    )


def _judged_by(data: CascadeData) -> str:
    return "" if data.labels == "gold" else "; right is what the large model answered"


def limits_of_validity(
    data: CascadeData, guarantee: Guarantee, look: Look | None, *, n_rows: int, person: bool
) -> Iterator[str]:
    """Yield what the guarantee rests on and when it ends, a sentence each; `n_rows` before one of a group was drawn."""
    n, asked, limits = data.n, int(data.asked.sum()), guarantee.limits
    if n < n_rows:
        yield f"{n_rows} calibration rows belong to {n} groups, of each of which one row counts"
    yield f"it holds for requests drawn like its {n} calibration rows; drift ends it"
    alone = "it allows one look: whatever else is tried on these rows weakens both; certify(…, looks=FILE) counts them"
    yield _describe_look(guarantee, look) if look else alone
    if data.labels == "gold":
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


def _describe_look(guarantee: Guarantee, look: Look) -> str:
    level, family = 100 * (1 - guarantee.confidence), f", divided among {look.family} fixed before"
    return (
        f"it is certificate number {look.number} tried on these calibration rows, or on rows that overlap with them; "
        f"of the {level:.4g} % by which all of them together may fail it takes {look.share * level:.4g} %: one look "
        f"{LARGE * level:.4g} % and all others together {SMALL * level:.4g} %{family if look.family else ''}; rows of "
        "which none was used before begin anew"
    )
