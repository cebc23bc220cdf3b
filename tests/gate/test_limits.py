"""Ceilings on time, money and leaked rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smallfirst.data.quality.leaks import Leak, LeakReport
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import ConfidenceLevel
from smallfirst.gate.limits import check_leaks, check_maximum, check_saving

Measured = Callable[..., Evaluation]
ONE = ConfidenceLevel(1)
WORDS = ("p95 latency at most {:g} ms", "{:.1f} ms")


def leak(i: int) -> Leak:
    return Leak(key=f"row{i}", test=f"test.jsonl:{i + 1}", train=f"train.jsonl:{i + 71}")


def test_a_plain_figure_is_compared_as_it_is() -> None:
    assert check_maximum(9.0, 9.0, 100, WORDS).passed
    line = check_maximum(8.9, 9.0, 100, WORDS)
    assert (line.bar, line.measured, line.passed) == ("p95 latency at most 8.9 ms", "9.0 ms n=100", False)
    assert line.advice == "a smaller model or a shorter prompt would help"


@pytest.mark.parametrize(("value", "n"), [(0.0, 0), (float("nan"), 50), (float("inf"), 50)])
def test_what_was_not_measured_is_under_no_ceiling(value: float, n: int) -> None:
    assert not check_maximum(1000.0, value, n, WORDS).passed


@pytest.mark.parametrize(("ours", "passed"), [(0.01, True), (0.0099, True), (0.0101, False), (float("nan"), False)])
def test_the_saving_is_a_share_of_the_large_models_cost(measured: Measured, ours: float, passed: bool) -> None:
    small, large = measured([True] * 10, cost_usd_per_1k=ours), measured([True] * 8, cost_usd_per_1k=0.1)
    line = check_saving(0.9, small, large)
    assert line.passed is passed
    if ours == 0.01:
        assert line.bar == "at least 0.900 cheaper than the large model"
        assert line.measured == "0.900 cheaper: $0.0100 against $0.1000 per 1,000 n=8"


def test_nothing_is_cheaper_than_a_large_model_without_a_price(measured: Measured) -> None:
    small = measured([True] * 10)
    free = check_saving(0.0, small, measured([True] * 10, cost_usd_per_1k=0.0))
    assert not free.passed
    assert free.advice.startswith("nothing is cheaper than that: give the large model its price")
    assert check_saving(0.5, small, None).measured == "the large model was not measured"
    assert not check_saving(0.5, small, measured([], cost_usd_per_1k=1.0)).passed


def test_a_leak_fails_and_says_how_many_where_and_what_next(measured: Measured) -> None:
    candidate = measured([True] * 5 + [False] * 5)
    leaks = LeakReport(
        n_test=10,
        test_fingerprint=candidate.dataset_fingerprint,
        exact=(leak(0), leak(1)),
        folded=(leak(2),),
        near=(leak(3),),
    )
    line = check_leaks(0.0, candidate, leaks, ONE)
    assert line.bar == "at most 0 of test rows also in the training rows"
    # Wilson for 5 of 10, and 1 of the 6 rows that are left.
    assert line.measured == (
        "4 of 10 = 0.4000 (2 exact, 1 folded, 1 near); "
        "accuracy 0.500 [0.237, 0.763] n=10, without them 0.167 [0.030, 0.564] n=6"
    )
    assert not line.passed
    assert line.advice == (
        "4 test rows repeat a training row: test.jsonl:1 is train.jsonl:71, test.jsonl:2 is train.jsonl:72, "
        "test.jsonl:3 is train.jsonl:73, and 1 more; take those out of the training rows, then  "
        "smallfirst run task.yaml"
    )
    assert check_leaks(0.4, candidate, leaks, ONE).passed
    assert not check_leaks(0.39, candidate, leaks, ONE).passed


def test_no_leak_passes_without_more_words(measured: Measured) -> None:
    candidate = measured([True] * 10)
    line = check_leaks(0.0, candidate, LeakReport(n_test=10, test_fingerprint=candidate.dataset_fingerprint), ONE)
    assert (line.passed, line.measured, line.advice) == (True, "0 of 10 = 0.0000", "")


def test_leaks_that_were_not_looked_for_in_these_rows_fail(measured: Measured) -> None:
    candidate = measured([True] * 10)
    assert check_leaks(1.0, candidate, None, ONE).measured == "not looked for"
    other = check_leaks(1.0, candidate, LeakReport(n_test=10, test_fingerprint="another"), ONE)
    assert (other.passed, other.measured) == (False, "looked for in other rows than the 10 measured here")
    empty = measured([])
    assert not check_leaks(1.0, empty, LeakReport(n_test=0, test_fingerprint=empty.dataset_fingerprint), ONE).passed
