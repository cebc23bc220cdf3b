"""The check of leaked test rows."""

from __future__ import annotations

from collections.abc import Callable

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
    assert result.measured == (
        "1 of 10 = 0.1000 (1 folded); accuracy 1.000 [0.722, 1.000] n=10, without them 1.000 [0.701, 1.000] n=9"
    )
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
    # Wilson for 5 of 10, and 1 of the 6 rows that are left.
    assert result.measured == (
        "4 of 10 = 0.4000 (2 exact, 1 folded, 1 near); "
        "accuracy 0.500 [0.237, 0.763] n=10, without them 0.167 [0.030, 0.564] n=6"
    )
    assert not result.passed
    assert result.advice == (
        "4 test rows repeat a training row: test.jsonl:1 is train.jsonl:71, test.jsonl:2 is train.jsonl:72, "
        "test.jsonl:3 is train.jsonl:73, and 1 more; remove those from the training rows, then  "
        "smallfirst run task.yaml"
    )
    assert check(0.4, candidate, leaks).passed
    assert not check(0.39, candidate, leaks).passed


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
