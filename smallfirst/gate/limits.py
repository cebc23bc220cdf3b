"""Bars on time, money and leaked rows: figures that are what they are, compared as measured.

Latency and cost are read off, not drawn from rows, so they carry n but no interval; a leak is counted. An empty
evaluation reports zeros and has shown nothing, so it meets none of them.
"""

from __future__ import annotations

from smallfirst.data.quality.leaks import LeakReport
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import CheckResult, ConfidenceLevel, not_measured
from smallfirst.stats import intervals as stats

PLACES = 3
"""So many leaked rows are named in a line."""


def check_maximum(bar: float, value: float, n: int, words: tuple[str, str]) -> CheckResult:
    """The line of a plain ceiling; `words` are templates of the bar and of what was measured."""
    passed = n > 0 and value <= bar
    return CheckResult(
        bar=words[0].format(bar),
        measured=f"{words[1].format(value)} n={n}",
        passed=passed,
        advice="" if passed else "a smaller model or a shorter prompt would help",
    )


def check_saving(share: float, candidate: Evaluation, large: Evaluation | None) -> CheckResult:
    """The line of the saving: 1,000 answers cost at least `share` less than the large model's."""
    bar = f"at least {share:.3f} cheaper than the large model"
    if large is None:
        return not_measured(
            bar, "the large model was not measured", "measure the large model on the same rows, or on a sample of them"
        )
    ours, theirs, n = candidate.cost_usd_per_1k, large.cost_usd_per_1k, min(len(candidate.rows), len(large.rows))
    if theirs <= 0:
        return not_measured(
            bar,
            f"the large model costs ${theirs:.4f} per 1,000 n={n}",
            "nothing is cheaper than that: give the large model its price, or take the bar out of the gate",
        )
    # 0.01 is 90 % below 0.10, but 1 - 0.9 is a hair less than 0.1 in floating point.
    passed = n > 0 and ours <= (1 - share) * theirs * (1 + 1e-12)
    return CheckResult(
        bar=bar,
        measured=f"{1 - ours / theirs:.3f} cheaper: ${ours:.4f} against ${theirs:.4f} per 1,000 n={n}",
        passed=passed,
        advice="" if passed else "a smaller model or a shorter prompt would help",
    )


def check_leaks(bar: float, candidate: Evaluation, leaks: LeakReport | None, level: ConfidenceLevel) -> CheckResult:
    """The line of the leak bar: share of test rows that also stand in the training rows, and accuracy without them."""
    text = f"at most {bar:g} of test rows also in the training rows"
    if leaks is None:
        return not_measured(text, "not looked for", "give the training rows too, so that leaks can be looked for")
    if leaks.test_fingerprint != candidate.dataset_fingerprint:
        return not_measured(
            text,
            f"looked for in other rows than the {len(candidate.rows)} measured here",
            "look for leaks in the rows that this evaluation rests on",
        )
    if not leaks.n_test:
        return not_measured(text, "no test row n=0", "no row was measured")
    passed = leaks.share <= bar
    return CheckResult(
        bar=text,
        measured=f"{leaks.n_leaked} of {leaks.n_test} = {leaks.share:.4f}{_kinds(leaks)}"
        f"{_with_and_without(candidate, leaks, level)}",
        passed=passed,
        advice="" if passed else _mend(leaks),
    )


def _kinds(leaks: LeakReport) -> str:
    counts = ((len(leaks.exact), "exact"), (len(leaks.folded), "folded"), (len(leaks.near), "near"))
    said = ", ".join(f"{n} {kind}" for n, kind in counts if n)
    return f" ({said})" if said else ""


def _with_and_without(candidate: Evaluation, leaks: LeakReport, level: ConfidenceLevel) -> str:
    keys = leaks.keys
    if not keys:
        return ""
    clean = [row.correct for row in candidate.rows if row.key not in keys]
    n, right = len(candidate.rows), sum(row.correct for row in candidate.rows)
    both = stats.wilson(right, n, confidence=level.confidence)
    without = stats.wilson(sum(clean), len(clean), confidence=level.confidence)
    return f"; accuracy {both} n={n}, without them {without} n={without.n}{level.mention}"


def _mend(leaks: LeakReport) -> str:
    first = [f"{leak.test} is {leak.train}" for leak in (*leaks.exact, *leaks.folded, *leaks.near)]
    more = [f"and {len(first) - PLACES} more"] if len(first) > PLACES else []
    rows = f"{leaks.n_leaked} test row{' repeats' if leaks.n_leaked == 1 else 's repeat'} a training row"
    places = ", ".join([*first[:PLACES], *more])
    return f"{rows}: {places}; take those out of the training rows, then  smallfirst run task.yaml"
