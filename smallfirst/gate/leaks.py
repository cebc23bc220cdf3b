"""The check of leaks: test rows that are also training rows are left out, and enough others must be there.

Short real requests repeat, so a share of copies is no fault of the rows. Answers to them may be learned by heart;
the thresholds are about the other rows, so that this passes nothing. `leaks_at_most` limits the share all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smallfirst.data.quality.leaks import LeakReport, PairLeaks, min_clean_rows
from smallfirst.gate.check_result import (
    CheckInputs,
    CheckResult,
    Requirement,
    Share,
    check_value,
    join_first,
    not_measured,
)
from smallfirst.records import Record
from smallfirst.stats.intervals import wilson

MAX_NAMED = 3
"""Leaked rows named in one message."""


class LeakThresholds(Record):
    """The threshold for leaked test rows."""

    leaks_at_most: Share | None = None
    """Share of test rows that may also be training rows, and of any split's rows that may be in an earlier split; fails
    if leaks were not looked for. Without it copies are left out, and no share of them fails."""


def check_leaks(gate: LeakThresholds, inputs: CheckInputs) -> Iterator[CheckResult]:
    """Yield a result if test rows repeat training rows, and one for their share if a threshold is declared."""
    maximum, leaks = gate.leaks_at_most, inputs.leaks
    if maximum is not None:
        yield _check_share(maximum, inputs)
        if leaks is not None and leaks.pairs:
            yield _check_pairs(maximum, leaks.pairs)
    everything = inputs.with_copies or inputs.candidate
    copies = [row for row in everything.rows if leaks and row.key in leaks.keys]
    if leaks is None or not copies:
        return
    if inputs.candidate is not everything:
        yield _check_clean_rows(inputs, leaks)
    elif maximum is None:
        requirement = Requirement("clean_rows", 0, "judged without copies of training rows")
        measured = f"{len(copies)} of {len(everything.rows)} rows repeat a training row"
        yield not_measured(requirement, measured, "give the other rows too: clean=restrict_to_rows(…)")


def _check_clean_rows(inputs: CheckInputs, leaks: LeakReport) -> CheckResult:
    """Check that enough rows are left, and say how right the answers to copies are."""
    everything, clean = inputs.with_copies or inputs.candidate, inputs.candidate
    minimum, level = min_clean_rows(len(everything.rows)), inputs.level
    requirement = Requirement("clean_rows", minimum, f"at least {minimum} test rows that repeat no training row")
    copies = [row.correct for row in everything.rows if row.key in leaks.keys]
    on_copies = wilson(sum(copies), len(copies), confidence=level.confidence)
    on_clean = wilson(sum(row.correct for row in clean.rows), len(clean.rows), confidence=level.confidence)
    measured = (
        f"{len(clean.rows)} of {len(everything.rows)}, {len(copies)} left out{_kinds(leaks)}; "
        f"accuracy on copies {on_copies} n={len(copies)}, on the others {on_clean} n={len(clean.rows)}{level.note}"
    )
    passed = len(clean.rows) >= minimum
    return check_value(requirement, passed=passed, measured=measured, advice="" if passed else _advice(leaks))


def _check_share(maximum: float, inputs: CheckInputs) -> CheckResult:
    requirement = Requirement("leaks_at_most", maximum, f"at most {maximum:g} of test rows also in the training rows")
    leaks, everything = inputs.leaks, inputs.with_copies or inputs.candidate
    if leaks is None:
        return not_measured(requirement, "not looked for", "give the training rows too, so that leaks can be found")
    if leaks.test_fingerprint != everything.dataset_fingerprint:
        measured = f"looked for in other rows than the {len(everything.rows)} measured here"
        return not_measured(requirement, measured, "look for leaks in the rows of this evaluation")
    if not leaks.n_test:
        return not_measured(requirement, "no test row n=0", "no row was measured")
    passed, measured = leaks.share <= maximum, f"{leaks.n_leaked} of {leaks.n_test} = {leaks.share:.4f}{_kinds(leaks)}"
    return check_value(requirement, passed=passed, measured=measured, advice="" if passed else _advice(leaks))


def _check_pairs(maximum: float, pairs: Sequence[PairLeaks]) -> CheckResult:
    worst = max(pairs, key=lambda pair: pair.share)
    text = f"at most {maximum:g} of the rows of any other split also in an earlier one"
    measured = f"most {worst.new} in {worst.old}: {worst.n_leaked} of {worst.n_rows} = {worst.share:.4f}"
    passed, advice = worst.share <= maximum, "smallfirst check task.yaml names them; remove those from"
    advice = "" if passed else f"{advice} the {worst.old} rows"
    return check_value(Requirement("leaks_at_most", maximum, text), passed=passed, measured=measured, advice=advice)


def _kinds(leaks: LeakReport) -> str:
    counts = ((len(leaks.exact), "exact"), (len(leaks.folded), "folded"), (len(leaks.near), "near"))
    found = ", ".join(f"{n} {kind}" for n, kind in counts if n)
    return f" ({found})" if found else ""


def _advice(leaks: LeakReport) -> str:
    pairs = [f"{leak.test} is {leak.train}" for leak in (*leaks.exact, *leaks.folded, *leaks.near)]
    rows = f"{leaks.n_leaked} test row{' repeats' if leaks.n_leaked == 1 else 's repeat'} a training row"
    return (
        f"{rows}: {join_first(pairs, MAX_NAMED)}; remove those from the training rows, then  smallfirst run task.yaml"
    )
