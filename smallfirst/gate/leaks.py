"""The check of leaks: test rows that are also training rows, and the accuracy without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smallfirst.data.quality.leaks import LeakReport, PairLeaks
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import (
    CheckInputs,
    CheckResult,
    ConfidenceLevel,
    Requirement,
    Share,
    check_value,
    join_first,
    not_measured,
)
from smallfirst.records import Record
from smallfirst.stats import intervals

MAX_NAMED = 3
"""Leaked rows named in one message."""


class LeakThresholds(Record):
    """The threshold for leaked test rows."""

    leaks_at_most: Share | None = None
    """Share of test rows that may also be training rows, and of any split's rows that may be in an earlier split; fails
    if leaks were not looked for."""


def check_leaks(gate: LeakThresholds, inputs: CheckInputs) -> Iterator[CheckResult]:
    """Yield the result for the share of test rows that are also training rows, if the threshold is declared."""
    maximum, (candidate, level, _, leaks, _) = gate.leaks_at_most, inputs
    if maximum is None:
        return
    requirement = Requirement("leaks_at_most", maximum, f"at most {maximum:g} of test rows also in the training rows")
    if leaks is None:
        yield not_measured(requirement, "not looked for", "give the training rows too, so that leaks can be found")
    elif leaks.test_fingerprint != candidate.dataset_fingerprint:
        yield not_measured(
            requirement,
            f"looked for in other rows than the {len(candidate.rows)} measured here",
            "look for leaks in the rows of this evaluation",
        )
    elif not leaks.n_test:
        yield not_measured(requirement, "no test row n=0", "no row was measured")
    else:
        passed = leaks.share <= maximum
        share = f"{leaks.n_leaked} of {leaks.n_test} = {leaks.share:.4f}"
        measured = f"{share}{_kinds(leaks)}{_accuracy_without(candidate, leaks, level)}"
        yield check_value(requirement, passed=passed, measured=measured, advice="" if passed else _advice(leaks))
    if leaks is not None and leaks.pairs:
        yield _check_pairs(maximum, leaks.pairs)


def _check_pairs(maximum: float, pairs: Sequence[PairLeaks]) -> CheckResult:
    worst = max(pairs, key=lambda pair: pair.share)
    text = f"at most {maximum:g} of the rows of any other split also in an earlier one"
    return check_value(
        Requirement("leaks_at_most", maximum, text),
        passed=worst.share <= maximum,
        measured=f"most {worst.new} in {worst.old}: {worst.n_leaked} of {worst.n_rows} = {worst.share:.4f}",
        advice=f"smallfirst check task.yaml names them; remove those from the {worst.old} rows"
        if worst.share > maximum
        else "",
    )


def _kinds(leaks: LeakReport) -> str:
    counts = ((len(leaks.exact), "exact"), (len(leaks.folded), "folded"), (len(leaks.near), "near"))
    found = ", ".join(f"{n} {kind}" for n, kind in counts if n)
    return f" ({found})" if found else ""


def _accuracy_without(candidate: Evaluation, leaks: LeakReport, level: ConfidenceLevel) -> str:
    if not leaks.keys:
        return ""
    all_rows = [row.correct for row in candidate.rows]
    clean = [row.correct for row in candidate.rows if row.key not in leaks.keys]
    both, without = (intervals.wilson(sum(rows), len(rows), confidence=level.confidence) for rows in (all_rows, clean))
    return f"; accuracy {both} n={both.n}, without them {without} n={without.n}{level.note}"


def _advice(leaks: LeakReport) -> str:
    pairs = [f"{leak.test} is {leak.train}" for leak in (*leaks.exact, *leaks.folded, *leaks.near)]
    rows = f"{leaks.n_leaked} test row{' repeats' if leaks.n_leaked == 1 else 's repeat'} a training row"
    return (
        f"{rows}: {join_first(pairs, MAX_NAMED)}; remove those from the training rows, then  smallfirst run task.yaml"
    )
