"""Labels into marks: the likeliest allowed path, its probability, and the probability that nothing is there."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from smallfirst.models.spans.decoding import absence, best_labels, likeliest_marks, marks


def log_probs(seed: int, n_tokens: int = 5, n_fields: int = 2) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).normal(size=(n_tokens, 1 + 2 * n_fields))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def is_allowed(path: tuple[int, ...]) -> bool:
    return all(
        label % 2 == 1 or label == 0 or before in (label, label - 1)
        for before, label in zip((0, *path), path, strict=False)
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_path_is_the_likeliest_of_all_that_are_allowed(seed: int) -> None:
    found = log_probs(seed)
    paths = filter(is_allowed, itertools.product(range(5), repeat=5))
    best = max(paths, key=lambda path: sum(found[t, label] for t, label in enumerate(path)))
    assert tuple(best_labels(found)) == best


def test_a_mark_has_the_probability_of_its_labels_and_of_its_end() -> None:
    found = log_probs(0)
    (first, second) = marks(found, np.array([0, 3, 4, 0, 1]))
    p = np.exp(found)
    assert (first.field, first.start, first.end) == (1, 1, 3)
    assert first.log_probability == pytest.approx(math.log(p[1, 3] * p[2, 4] * (1 - p[3, 4])))
    assert (second.field, second.start, second.end) == (0, 4, 5)
    assert second.log_probability == pytest.approx(math.log(p[4, 1]))


def test_two_marks_of_a_field_may_touch() -> None:
    found = marks(log_probs(1), np.array([1, 1, 2, 2, 0]))
    assert [(mark.field, mark.start, mark.end) for mark in found] == [(0, 0, 1), (0, 1, 4)]


def test_a_field_is_absent_if_no_token_begins_it() -> None:
    found = log_probs(2)
    assert absence(found) == pytest.approx(np.log(np.prod(1 - np.exp(found[:, [1, 3]]), axis=0)))
    assert np.isfinite(absence(np.zeros((3, 5)))).all()  # a begin that is certain


def test_what_must_be_there_is_looked_for_where_it_most_likely_begins() -> None:
    found = np.log(np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.4, 0.1, 0.5], [0.9, 0.05, 0.05]]))
    assert [(mark.start, mark.end) for mark in likeliest_marks(found, 0, 2)] == [(1, 3), (0, 1)]
