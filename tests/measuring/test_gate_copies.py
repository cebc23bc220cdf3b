"""Test rows that repeat a training row are not judged, and enough others must be there."""

from __future__ import annotations

import pytest
from fixtures.gate import evaluation

from smallfirst.data.copies import Leak, LeakReport, find_leaks
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.measuring.gate import Gate
from smallfirst.measuring.verdict import CheckResult

GATE = Gate(accuracy_at_least=0.0)


def leak(i: int) -> Leak:
    return Leak(key=f"row{i}", test=f"test.jsonl:{i + 1}", train=f"train.jsonl:{i + 71}")


def dataset(path: str, texts: list[str]) -> Dataset:
    examples = (
        Example(messages=(Message(role="user", content=t),), answer="a", shape="label", path=path, line=i)
        for i, t in enumerate(texts, start=1)
    )
    return Dataset(name=path, examples=tuple(examples))


def clean_rows(right: list[bool], n_copies: int, *, left_out: bool = True) -> list[CheckResult]:
    """The results on copies for a candidate whose first rows repeat a training row, in three ways."""
    whole, copies = evaluation(right), tuple(leak(i) for i in range(n_copies))
    kinds = {"exact": copies[:-3], "folded": copies[-3:-1], "near": copies[-1:]}
    leaks = LeakReport(n_test=len(right), test_fingerprint=whole.dataset_fingerprint, **kinds)
    clean = whole.model_copy(update={"rows": whole.rows[n_copies:]}) if left_out else None
    _, *results = GATE.check(whole, large=None, leaks=leaks, clean=clean).checks
    return results


def test_copies_are_left_out_and_no_share_of_them_fails_while_enough_rows_are_left() -> None:
    (result,) = clean_rows([True] * 40 + [True] * 40 + [False] * 20, 20)
    assert result.passed
    assert (result.name, result.requirement) == ("clean_rows", "at least 50 test rows that repeat no training row")
    assert result.measured == (  # Wilson for 20 of 20, and 60 of 80
        "80 of 100, 20 left out (17 exact, 2 folded, 1 near); "
        "accuracy on copies 1.000 [0.839, 1.000] n=20, on the others 0.750 [0.645, 0.832] n=80"
    )
    assert result.advice == ""
    assert clean_rows([True] * 100, 0) == []


@pytest.mark.parametrize(
    ("n", "n_copies", "passed"), [(100, 50, True), (100, 51, False), (60, 30, True), (60, 31, False), (40, 40, False)]
)
def test_too_few_rows_without_a_copy_fail(n: int, n_copies: int, passed: bool) -> None:
    (result,) = clean_rows([True] * n, n_copies)
    assert result.passed == passed
    assert ("remove those from the training rows" in result.advice) != passed


def test_copies_that_were_not_left_out_fail() -> None:
    (result,) = clean_rows([True] * 100, 3, left_out=False)
    assert not result.passed


def test_a_training_row_among_the_test_rows_is_found_and_named() -> None:
    texts = [f"request number {i} about topic {i * 7}" for i in range(40)]
    train, test = dataset("train.jsonl", [*texts[:30], texts[34].upper() + "!"]), dataset("test.jsonl", texts[30:])
    keys = [example.key for example in test.examples]
    candidate = evaluation([True] * 10, keys=keys, dataset_fingerprint=test.content_fingerprint)
    _, result = GATE.check(candidate, large=None, leaks=find_leaks(train, test)).checks
    assert result.advice == (
        "1 test row repeats a training row: test.jsonl:5 is train.jsonl:31; "
        "remove those from the training rows, then  smallfirst run task.yaml"
    )
