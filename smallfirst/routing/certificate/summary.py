"""What a certificate says in words: what is shown and on what it rests, or why it is refused and what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from smallfirst.routing.certificate.guarantee import Guarantee, describe_limit
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.routing.certificate.per_class import ClassCertificate
from smallfirst.routing.certificate.risks import RiskResult
from smallfirst.routing.certificate.threshold_search import CascadeThresholds, min_accepted_rows, min_rows_without_error


def describe_issued(answers: CascadeData, promise: Guarantee, risks: Sequence[RiskResult], n_wrong: int) -> str:
    """The promise and, for each of its limits, what was seen."""
    return f"{promise.in_words}: {'; '.join(_seen(one, n_wrong) for one in risks)}{_judged(answers)}"


def describe_per_class(answers: CascadeData, promise: Guarantee, classes: Sequence[ClassCertificate]) -> str:
    """The promise by label, and how many labels it is shown for."""
    shown = [one for one in classes if one.certified]
    wrong, kept = sum(one.errors for one in shown), sum(one.n_kept for one in shown)
    return (
        f"{promise.in_words}: shown for {len(shown)} of {len(classes)} labels, of whose {kept} kept calibration "
        f"answers {wrong} were wrong{_judged(answers)}"
    )


def describe_refused(answers: CascadeData, promise: Guarantee, found: CascadeThresholds, missing: int | None) -> str:
    """Why nothing is promised, and how many rows would change that."""
    unmeasured = _unmeasured(answers, promise)
    if unmeasured:
        return unmeasured
    alpha = promise.at_most_wrong
    fewest = min_rows_without_error(alpha, found.level) if alpha else 0
    if answers.n < fewest:
        return (
            f"too few labels: {answers.n} calibration rows; even without an error this promise needs {fewest}"
            f"{_would(missing)}"
        )
    if promise.per_class:
        return f"not shown: with {answers.n} calibration rows {promise.in_words} is shown for no label{_would(missing)}"
    if alpha and set(promise.limits) == {"wrong"}:
        n_wrong = int((~(answers.agrees if answers.labels == "large+gold" else answers.right)[-1]).sum())
        return (
            f"not shown: with {answers.n} calibration rows ({n_wrong} of all answers wrong) no threshold keeping "
            f"{min_accepted_rows(answers.n, alpha, found.level)} or more answers shows at most {100 * alpha:g} % wrong"
            f"{_judged(answers)}{_would(missing)}"
        )
    where = "; ".join(_where(name, limit, found) for name, limit in promise.limits.items())
    return f"not shown: with {answers.n} calibration rows no threshold keeps all of it: {where}{_would(missing)}"


def limits_of_validity(
    answers: CascadeData, promise: Guarantee, audit_limit: float | None, person: bool
) -> tuple[str, ...]:
    """What the promise rests on and when it ends, a sentence each."""
    n, asked = answers.n, int(answers.asked.sum())
    said = [
        f"it speaks of requests drawn like its {n} calibration rows; drift ends it",
        "it allows one look: choosing another promise on the same rows after seeing this one weakens both",
        _label_source(answers),
    ]
    if len(promise.limits) > 1:
        said.append(f"{100 * promise.confidence:g} % holds for all {len(promise.limits)} limits together")
    if 0 < asked < n:
        said.append(f"the large model answered {asked} of the {n} rows, taken for a random part of them")
    if "cost" in promise.limits:
        said.append("no request is taken to cost more than twice the dearest walk that was seen")
    if "late" in promise.limits:
        said.append("latencies are those of the calibration run's machine; a draft counts as its slowest request alone")
    if "regret" in promise.limits and person:
        said.append("a request given to a person counts as answered no worse than by the large model")
    said.append("what happens below the threshold rests on what was seen there and is not promised to be right")
    if audit_limit is not None:
        said.append(
            f"audits by the large model break it when more than {audit_limit:.3f} of audited kept answers differ from "
            "its own"
        )
    return tuple(said)


def _seen(one: RiskResult, n_wrong: int) -> str:
    return {
        "wrong": f"{n_wrong} of {one.n} kept calibration answers were wrong, so at most {one.bound:.3f}",
        "regret": f"{one.value:.3f} below the large model on {one.n} rows, so at most {one.bound:.3f}",
        "cost": f"${one.value:.3g} per 1,000 seen, so at most ${one.bound:.3g}",
        "late": f"{100 * one.value:.1f} % of {one.n} requests were slower, so at most {100 * one.bound:.1f} %",
        "escalated": f"{100 * one.value:.1f} % of {one.n} were sent on, so at most {100 * one.bound:.1f} %",
    }[one.risk]


def _where(name: str, limit: float, found: CascadeThresholds) -> str:
    if name not in found.shares:
        return f"«{describe_limit(name, limit)}» is shown nowhere"
    least, most = found.shares[name]
    return f"«{describe_limit(name, limit)}» is shown while {100 * least:.0f} to {100 * most:.0f} % stay small"


def _would(missing: int | None) -> str:
    if missing is None:
        return "; no number of rows like these would show it: promise less, or improve the model"
    return f"; about {missing} more rows like these would show it"


def _unmeasured(answers: CascadeData, promise: Guarantee) -> str:
    """Said where a limit needs the large model, or gold, on rows that have neither."""
    if "regret" in promise.limits and answers.labels == "large":
        return "not shown: the large model's own answers were the labels, so nothing is below them; give some gold"
    needing = [describe_limit(name, limit) for name, limit in promise.limits.items() if name in ("regret", "cost")]
    if needing and not (answers.paired if "regret" in promise.limits else answers.asked).any():
        return (
            f"not shown: «{', '.join(needing)}» needs the large model's answers on the calibration rows, of which "
            f"{answers.n - int(answers.paired.sum())} of {answers.n} are missing"
        )
    return ""


def _judged(answers: CascadeData) -> str:
    return {
        "gold": "",
        "large": "; right is what the large model answered",
        "large+gold": f"; right is what the large model answered, corrected by {answers.gold.sum()} gold rows",
    }[answers.labels]


def _label_source(answers: CascadeData) -> str:
    return {
        "gold": "right is what the gold labels say; a wrong label counts as it stands",
        "large": "the labels are the large model's answers: where it is wrong, so is the promise; no gold corrects it",
        "large+gold": (
            f"the labels are the large model's answers, corrected by {answers.gold.sum()} gold rows that must be a "
            "random part of all rows"
        ),
    }[answers.labels]
