"""Laws of the gate: what must never turn a pass into a fail, or a fail into a pass, whatever the rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.stats.intervals import Estimate
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import Gate
from smallfirst.measuring.verdict import Verdict

Measured = Callable[..., Evaluation]

MINIMA = ("accuracy_at_least", "each_part_at_least")
MAXIMA = ("not_worse_than_large_by", "score_not_worse_than_large_by", "p95_ms_at_most", "cost_usd_per_1k_at_most")
NAMED_MINIMA = {"measures_at_least": "macro_f1", "parts_at_least": "odd"}
NAMED_MAXIMA = {"measures_at_most": "macro_f1"}


class Case(NamedTuple):
    """What a gate looks at: right or wrong and the score of both models on each row, and the other findings."""

    small: list[bool]
    large: list[bool]
    small_scores: list[float]
    large_scores: list[float]
    figure: Estimate


shares = st.one_of(st.sampled_from([0.0, 0.05, 0.5, 0.8, 0.9, 1.0]), st.floats(0, 1))
thresholds = st.one_of(st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]), st.floats(0.001, 1))


@st.composite
def estimates(draw: st.DrawFn, n: int) -> Estimate:
    """A figure in [0, 1] inside its interval."""
    low, value, high = sorted(draw(st.tuples(shares, shares, shares)))
    return Estimate(value=value, low=low, high=high, n=n)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to 150 rows, most of them right, so that thresholds are met about as often as missed."""
    n = draw(st.sampled_from([0, 1, 2, 12, 40, 150]))
    some = st.sets(st.integers(0, n - 1), max_size=12) if n else st.just(set())
    wrong, missed = draw(some), draw(some)
    graded = draw(st.dictionaries(st.sampled_from(range(max(1, n))), shares, max_size=8))
    level = draw(shares)
    return Case(
        small=[i not in wrong for i in range(n)],
        large=[i not in missed for i in range(n)],
        small_scores=[graded.get(i, level) for i in range(n)],
        large_scores=[level] * n,
        figure=draw(estimates(n)),
    )


@st.composite
def gates(draw: st.DrawFn) -> dict[str, Any]:
    """All thresholds of a gate at random heights, as settings."""
    found: dict[str, Any] = {name: draw(thresholds) for name in (*MINIMA, *MAXIMA)}
    found |= {name: {key: draw(thresholds)} for name, key in (NAMED_MINIMA | NAMED_MAXIMA).items()}
    return found | {"part_rows": draw(st.integers(1, 30))}


def judged(measured: Measured, gate: dict[str, Any], case: Case, *, comparisons: int = 1) -> Verdict:
    figures = {"measures": {"macro_f1": case.figure}, "p50_ms": 0.4, "p95_ms": 0.8, "cost_usd_per_1k": 0.05}
    small = measured(case.small, scores=case.small_scores, **figures)
    large = measured(case.large, scores=case.large_scores, candidate="large", cost_usd_per_1k=0.1)
    return Gate(**gate).check(small, large=large, comparisons_made=comparisons)


def no_fail_became_a_pass(before: Verdict, after: Verdict) -> bool:
    """True if every check that failed still fails, and so the verdict."""
    pairs = list(zip(before.checks, after.checks, strict=True))
    return all(b.passed or not a.passed for b, a in pairs) and (before.passed or not after.passed)


def shows_no_more(before: Verdict, after: Verdict) -> bool:
    """True if no lower end rose, so that there is no height of a minimum at which a fail becomes a pass."""
    pairs = [
        (b.estimate, a.estimate) for b, a in zip(before.checks, after.checks, strict=True) if b.estimate and a.estimate
    ]
    return no_fail_became_a_pass(before, after) and all(a.low <= b.low + 1e-12 for b, a in pairs)


def some_of(n: int) -> st.SearchStrategy[set[int]]:
    return st.sets(st.integers(0, max(0, n - 1)))


@settings(max_examples=30)
@given(gates(), cases(), st.data())
def test_more_right_rows_never_turn_pass_into_fail(
    measured: Measured, gate: dict[str, Any], case: Case, data: st.DataObject
) -> None:
    corrected = data.draw(some_of(len(case.small)))
    raised = data.draw(st.dictionaries(st.integers(0, max(0, len(case.small) - 1)), shares, max_size=5))
    better = case._replace(
        small=[ok or i in corrected for i, ok in enumerate(case.small)],
        small_scores=[max(score, raised.get(i, 0.0)) for i, score in enumerate(case.small_scores)],
    )
    assert shows_no_more(judged(measured, gate, better), judged(measured, gate, case))


@settings(max_examples=30)
@given(gates(), cases(), st.data())
def test_a_better_large_model_never_turns_fail_into_pass(
    measured: Measured, gate: dict[str, Any], case: Case, data: st.DataObject
) -> None:
    corrected = data.draw(some_of(len(case.large)))
    better = case._replace(
        large=[ok or i in corrected for i, ok in enumerate(case.large)],
        large_scores=[min(1.0, s + 0.3 * (i in corrected)) for i, s in enumerate(case.large_scores)],
    )
    assert shows_no_more(judged(measured, gate, case), judged(measured, gate, better))


@settings(max_examples=30)
@given(gates(), gates(), cases())
def test_a_stricter_bar_never_turns_fail_into_pass(
    measured: Measured, gate: dict[str, Any], other: dict[str, Any], case: Case
) -> None:
    stricter = dict(gate)
    for names, choose in ((MINIMA, max), (MAXIMA, min)):
        stricter |= {name: choose(gate[name], other[name]) for name in names}
    for named, choose in ((NAMED_MINIMA, max), (NAMED_MAXIMA, min)):
        stricter |= {name: {key: choose(gate[name][key], other[name][key])} for name, key in named.items()}
    assert no_fail_became_a_pass(judged(measured, gate, case), judged(measured, stricter, case))


@settings(max_examples=30)
@given(gates(), cases(), st.integers(1, 40), st.integers(1, 40))
def test_more_comparisons_never_turn_fail_into_pass(
    measured: Measured, gate: dict[str, Any], case: Case, few: int, more: int
) -> None:
    looked_at_few = judged(measured, gate, case, comparisons=few)
    assert shows_no_more(looked_at_few, judged(measured, gate, case, comparisons=few + more))
