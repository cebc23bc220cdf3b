"""The certificate in words: what is shown and what it rests on, or why it is refused and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from smallfirst.routing.certificate.guarantee import Guarantee, describe_limit
from smallfirst.routing.certificate.looks import LARGE, SMALL, Look
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.routing.certificate.risks import RiskResult
from smallfirst.routing.certificate.rows_needed import MIN_CHANCE, RowsNeeded
from smallfirst.routing.certificate.threshold_search import CascadeThresholds
from smallfirst.routing.certificate.units.per_group import GroupCertificate
from smallfirst.stats.sample_size import min_rows_without_error

NOTHING_LEFT = (
    "not shown: earlier certificates on these calibration rows have spent the whole error probability; certify with "
    "rows of which none was used before"
)
"""Why a certificate is refused for which no error probability is left."""


def describe_issued(data: CascadeData, guarantee: Guarantee, risks: Sequence[RiskResult], n_errors: int) -> str:
    """Return the guarantee and, for each of its limits, what was measured."""
    return f"{guarantee.in_words}: {'; '.join(_measured(one, n_errors) for one in risks)}{_judged_by(data)}"


def describe_per_group(data: CascadeData, guarantee: Guarantee, classes: Sequence[GroupCertificate]) -> str:
    """Return the guarantee by group, and for how many groups it is shown."""
    shown = [one for one in classes if one.certified]
    wrong, accepted = sum(one.n_errors for one in shown), sum(one.n_accepted for one in shown)
    return (
        f"{guarantee.in_words}: shown for {len(shown)} of {len(classes)} {guarantee.grouped_by}s, of whose {accepted} "
        f"kept calibration answers {wrong} were wrong{_judged_by(data)}"
    )


def describe_refused(data: CascadeData, guarantee: Guarantee, found: CascadeThresholds, missing: RowsNeeded) -> str:
    """Return why nothing is guaranteed, and how many rows would change that."""
    unmeasured = _unmeasured(data, guarantee)
    if unmeasured:
        return unmeasured
    alpha = guarantee.max_error
    fewest = min_rows_without_error(alpha, found.level) if alpha else 0
    if data.n < fewest:
        return (
            f"too few labels: {data.n} calibration rows; even without an error this guarantee needs {fewest}"
            f"{_rows_missing(missing)}"
        )
    if guarantee.grouped_by:
        none = f"{guarantee.in_words} is shown for no {guarantee.grouped_by}"
        return f"not shown: with {data.n} calibration rows {none}{_rows_missing(missing)}"
    if alpha and set(guarantee.limits) == {"error"}:
        n_wrong = int((~data.right[-1]).sum())
        return (
            f"not shown: with {data.n} calibration rows ({n_wrong} of all answers wrong) no threshold keeping "
            f"{found.first} or more answers shows at most {100 * alpha:g} % wrong"
            f"{_foreign_counted(data)}{_judged_by(data)}{_rows_missing(missing)}"
        )
    where = "; ".join(_shown_where(risk, limit, found) for risk, limit in guarantee.limits.items())
    return f"not shown: with {data.n} calibration rows no threshold keeps all limits: {where}{_rows_missing(missing)}"


def limits_of_validity(
    data: CascadeData,
    guarantee: Guarantee,
    audit_limits: Mapping[str, Mapping[str, float]],
    person: bool,
    look: Look | None,
) -> tuple[str, ...]:
    """Return what the guarantee rests on and when it ends, a sentence each."""
    n, asked = data.n, int(data.asked.sum())
    sentences = [
        f"it holds for requests drawn like its {n} calibration rows; drift ends it",
        _looks(guarantee, look),
        _label_source(data),
    ]
    if guarantee.unit:
        sentences.append(
            f"each {guarantee.unit} counts once, however many requests it has: where frequent ones are answered worse, "
            "more of the requests are wrong"
        )
    sentences += _about_foreign(data)
    if len(guarantee.limits) > 1:
        sentences.append(f"{100 * guarantee.confidence:g} % holds for all {len(guarantee.limits)} limits together")
    if 0 < asked < n:
        sentences.append(f"the large model answered {asked} of the {n} rows, assumed to be a random part of them")
    if "accuracy_loss" in guarantee.limits and person:
        sentences.append("a request left to a person counts as answered no worse than by the large model")
    sentences.append("what happens below the threshold was chosen on these rows and is not guaranteed to be right")
    return (*sentences, *_watched(guarantee, audit_limits))


def _watched(guarantee: Guarantee, audit_limits: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield how each limit is tested after go-live."""
    for risk in guarantee.limits if audit_limits else ():
        name = "it" if risk == "error" else "the limit on accuracy"
        by = audit_limits.get(risk, {})
        if "large" in by:
            yield (
                f"audits by the large model break {name} when more than {by['large']:.3f} of audited kept answers "
                "differ from its own"
            )
        if risk != "error" and "person" in by:
            yield (
                f"audits by a person break {name} when more than {by['person']:.3f} of audited kept answers are wrong: "
                "the large model is taken to be as good on them as it was on these rows"
            )
        if not by:
            yield f"{name} cannot be watched after go-live: too few rows show how good the large model is on kept ones"
    if guarantee.max_error is None and audit_limits:
        yield "how often kept answers are wrong is not limited: audits measure it, and at most raise a hint"


def _measured(one: RiskResult, n_errors: int) -> str:
    if one.risk == "error":
        return f"{n_errors} of {one.n} kept calibration answers were wrong, so at most {one.bound:.3f}"
    return f"{one.value:.3f} below the large model on {one.n} rows, so at most {one.bound:.3f}"


def _shown_where(risk: str, limit: float, found: CascadeThresholds) -> str:
    if risk not in found.shares:
        return f'"{describe_limit(risk, limit)}" is shown nowhere'
    least, most = found.shares[risk]
    return f'"{describe_limit(risk, limit)}" is shown while {100 * least:.0f} to {100 * most:.0f} % stay small'


def _looks(guarantee: Guarantee, look: Look | None) -> str:
    if look is None:
        return (
            "it allows one look: another guarantee, grouping or start of the search on the same rows, after seeing "
            "this one, weakens both; certify(…, looks=FILE) counts them"
        )
    level = 100 * (1 - guarantee.confidence)
    portion = f"one look {LARGE * level:.4g} % and all others together {SMALL * level:.4g} %"
    family = f", divided among {look.family} fixed before" if look.family else ""
    return (
        f"it is certificate number {look.number} tried on these calibration rows, or on rows that overlap with them; "
        f"of the {level:.4g} % by which all of them together may fail it takes {look.share * level:.4g} %: {portion}"
        f"{family}; rows of which none was used before begin anew"
    )


def _rows_missing(missing: RowsNeeded) -> str:
    chance = f"{100 * missing.chance:.0f} %"
    if missing.chance >= MIN_CHANCE:
        return f"; {missing.n_more:,} more rows like these would show it with a chance of {chance}"
    return (
        f"; even {missing.n_more:,} more rows like these would show it with a chance of {chance} only: loosen the "
        "guarantee, or improve the model"
    )


def _foreign_counted(data: CascadeData) -> str:
    if not data.foreign_share or data.foreign is None:
        return ""
    n = data.foreign.confidence.shape[1]
    return (
        f" while {100 * data.foreign_share:g} % of requests are foreign, for which {n} rows stand (more of them "
        "in data.open_ended bound it tighter, and guarantee.max_foreign_share may be less)"
    )


def _about_foreign(data: CascadeData) -> Iterator[str]:
    if data.foreign is None:
        return
    n, most = data.foreign.confidence.shape[1], data.foreign_share
    if most:
        yield (
            f"it holds while at most {100 * most:g} % of requests are foreign, and those are like its {n} foreign "
            "calibration rows"
        )
    else:
        yield "it is about the task's own requests: guarantee.max_foreign_share makes it count foreign ones as wrong"


def _unmeasured(data: CascadeData, guarantee: Guarantee) -> str:
    """Return the refusal where a limit needs the large model, or gold labels, on rows that have neither."""
    if "accuracy_loss" not in guarantee.limits:
        return ""
    if data.labels == "large":
        return (
            "not shown: the large model's own answers were the labels, so nothing is below them; give some gold labels"
        )
    if not data.paired.any():
        limit = describe_limit("accuracy_loss", guarantee.limits["accuracy_loss"])
        return (
            f'not shown: "{limit}" needs the large model\'s answers on the calibration rows, of which '
            f"{data.n - int(data.paired.sum())} of {data.n} are missing"
        )
    return ""


def _judged_by(data: CascadeData) -> str:
    return "" if data.labels == "gold" else "; right is what the large model answered"


def _label_source(data: CascadeData) -> str:
    if data.labels == "gold":
        return "right is what the gold labels say; a wrong label counts as it stands"
    return "the labels are the large model's answers: where it is wrong, so is this; no gold corrects it"
