"""The check of leaked test rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fixtures.gate import evaluation

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.data.quality.leaks import Leak, LeakReport, PairLeaks, find_leaks
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import CheckInputs, CheckResult, ConfidenceLevel
from smallfirst.gate.leaks import LeakThresholds, check_leaks

Measured = Callable[..., Evaluation]


def check(maximum: float, candidate: Evaluation, leaks: LeakReport | None) -> CheckResult:
    inputs = CheckInputs(candidate, ConfidenceLevel(1), leaks=leaks)
    (result,) = check_leaks(LeakThresholds(leaks_at_most=maximum), inputs)
    return result


def leak(i: int) -> Leak:
    return Leak(key=f"row{i}", test=f"test.jsonl:{i + 1}", train=f"train.jsonl:{i + 71}")


def dataset(path: str, texts: list[str]) -> Dataset:
    examples = (
        Example(messages=(Message(role="user", content=t),), answer="a", shape="label", path=path, line=i)
        for i, t in enumerate(texts, start=1)
    )
    return Dataset(name=path, examples=tuple(examples))


def test_a_training_row_among_the_test_rows_is_found_and_named() -> None:
    texts = [f"request number {i} about topic {i * 7}" for i in range(40)]
    train, test = dataset("train.jsonl", texts[:30]), dataset("test.jsonl", texts[30:])
    keys = [example.key for example in test.examples]
    candidate = evaluation([True] * 10, keys=keys, dataset_fingerprint=test.content_fingerprint)
    assert check(0.0, candidate, find_leaks(train, test)).passed

    leaky = dataset("train.jsonl", [*texts[:30], texts[34].upper() + "!"])
    result = check(0.0, candidate, find_leaks(leaky, test))
    assert not result.passed
    assert result.measured == ("1 of 10 = 0.1000 (1 folded)")
    assert result.advice == (
        "1 test row repeats a training row: test.jsonl:5 is train.jsonl:31; "
        "remove those from the training rows, then  smallfirst run task.yaml"
    )


def test_a_leak_fails_and_says_how_many_where_and_what_next(measured: Measured) -> None:
    candidate = measured([True] * 5 + [False] * 5)
    leaks = LeakReport(
        n_test=10,
        test_fingerprint=candidate.dataset_fingerprint,
        exact=(leak(0), leak(1)),
        folded=(leak(2),),
        near=(leak(3),),
    )
    result = check(0.0, candidate, leaks)
    assert result.requirement == "at most 0 of test rows also in the training rows"
    assert result.measured == "4 of 10 = 0.4000 (2 exact, 1 folded, 1 near)"
    assert not result.passed
    assert result.advice == (
        "4 test rows repeat a training row: test.jsonl:1 is train.jsonl:71, test.jsonl:2 is train.jsonl:72, "
        "test.jsonl:3 is train.jsonl:73, and 1 more; remove those from the training rows, then  "
        "smallfirst run task.yaml"
    )
    assert check(0.4, candidate, leaks).passed
    assert not check(0.39, candidate, leaks).passed


def clean_rows(right: list[bool], n_copies: int, *, gate: LeakThresholds | None = None) -> list[CheckResult]:
    """Check a candidate whose first rows repeat a training row."""
    whole = evaluation(right)
    leaks = LeakReport(
        n_test=len(right),
        test_fingerprint=whole.dataset_fingerprint,
        exact=tuple(leak(i) for i in range(n_copies)),
    )
    clean = whole.model_copy(update={"rows": whole.rows[n_copies:]})
    inputs = CheckInputs(clean, ConfidenceLevel(1), leaks=leaks, with_copies=whole)
    return list(check_leaks(gate or LeakThresholds(), inputs))


def test_copies_are_left_out_and_no_share_of_them_fails_while_enough_rows_are_left() -> None:
    (result,) = clean_rows([True] * 40 + [True] * 40 + [False] * 20, 20)
    assert result.passed
    assert result.requirement == "at least 50 test rows that repeat no training row"
    assert result.measured == (  # Wilson for 20 of 20, and 60 of 80
        "80 of 100, 20 left out (20 exact); "
        "accuracy on copies 1.000 [0.839, 1.000] n=20, on the others 0.750 [0.645, 0.832] n=80"
    )
    assert result.advice == ""


@pytest.mark.parametrize(
    ("n", "n_copies", "passed"), [(100, 50, True), (100, 51, False), (60, 30, True), (60, 31, False), (40, 40, False)]
)
def test_too_few_rows_without_a_copy_fail(n: int, n_copies: int, passed: bool) -> None:
    (result,) = clean_rows([True] * n, n_copies)
    assert result.passed == passed
    assert ("remove those from the training rows" in result.advice) != passed


def test_a_declared_share_is_held_to_beside_it() -> None:
    share, rows = clean_rows([True] * 100, 3, gate=LeakThresholds(leaks_at_most=0.01))
    assert (share.name, share.passed, rows.name, rows.passed) == ("leaks_at_most", False, "clean_rows", True)
    assert clean_rows([True] * 100, 0) == []


def test_copies_that_were_not_left_out_fail() -> None:
    whole = evaluation([True] * 10)
    leaks = LeakReport(n_test=10, test_fingerprint=whole.dataset_fingerprint, exact=(leak(3),))
    (result,) = check_leaks(LeakThresholds(), CheckInputs(whole, ConfidenceLevel(1), leaks=leaks))
    assert (result.passed, result.measured) == (False, "1 of 10 rows repeat a training row")


def test_no_leak_passes_without_more_words(measured: Measured) -> None:
    candidate = measured([True] * 10)
    result = check(0.0, candidate, LeakReport(n_test=10, test_fingerprint=candidate.dataset_fingerprint))
    assert (result.passed, result.measured, result.advice) == (True, "0 of 10 = 0.0000", "")


def test_leaks_that_were_not_looked_for_in_these_rows_fail(measured: Measured) -> None:
    candidate = measured([True] * 10)
    assert check(1.0, candidate, None).measured == "not looked for"
    other = check(1.0, candidate, LeakReport(n_test=10, test_fingerprint="another"))
    assert (other.passed, other.measured) == (False, "looked for in other rows than the 10 measured here")
    empty = measured([])
    assert not check(1.0, empty, LeakReport(n_test=0, test_fingerprint=empty.dataset_fingerprint)).passed


def test_every_other_pair_of_splits_is_held_to_the_same_share(measured: Measured) -> None:
    candidate = measured([True] * 10)
    pairs = (
        PairLeaks(new="calibration", old="train", n_rows=200, n_leaked=9),
        PairLeaks(new="test", old="calibration", n_rows=10, n_leaked=1),
    )
    leaks = LeakReport(n_test=10, test_fingerprint=candidate.dataset_fingerprint, pairs=pairs)
    for maximum, passed in ((0.05, False), (0.1, True)):
        inputs = CheckInputs(candidate, ConfidenceLevel(1), leaks=leaks)
        own, others = check_leaks(LeakThresholds(leaks_at_most=maximum), inputs)
        assert (own.passed, others.passed) == (True, passed)
        assert others.measured == "most test in calibration: 1 of 10 = 0.1000"
