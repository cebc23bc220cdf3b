"""Rows count once a text, near-copy or group, and not at all where they were learnt from."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.data.quality.independence import count_rows, independent_rows
from smallfirst.data.quality.near_duplicates import clusters
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.threshold_search import search_threshold

TEN = "one two three four five six seven eight nine ten"


def rows(*texts: str, group: str = "") -> Dataset:
    made = (
        Example(messages=(Message(role="user", content=text),), answer="a", shape="label", line=i, group=group)
        for i, text in enumerate(texts, start=1)
    )
    return Dataset(name="rows", examples=tuple(made))


@pytest.mark.parametrize(
    ("texts", "groups", "expected"),
    [
        (["My card?", "another", "my  CARD", "mycard"], None, [0, 1, 0, 0]),
        ([f"{TEN} eleven", "another", TEN.removesuffix(" ten"), TEN], None, [0, 1, 0, 0]),  # by a chain
        (["a", "b", "c", "d"], ["x", "", "x", ""], [0, 1, 0, 3]),
        (["a", "b", "A!", "d"], ["x", "y", "y", ""], [0, 0, 0, 3]),  # one text joins two groups
        ([], [], []),
    ],
)
def test_copies_near_copies_and_groups_are_one_cluster(
    texts: list[str], groups: list[str] | None, expected: list[int]
) -> None:
    assert clusters(texts, groups) == expected
    assert len(independent_rows(texts, groups=groups)) == len(set(expected))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([TEN, TEN.removesuffix(" ten"), "b", "B!", "c d", "cd", "e"]), max_size=20))
def test_no_two_rows_that_count_are_alike(texts: list[str]) -> None:
    found = clusters(texts)
    assert sorted({found[i] for i in independent_rows(texts)}) == sorted(set(found))


def test_sixty_three_texts_five_times_over_are_sixty_three_rows() -> None:
    data = rows(
        *(f"question {i} of topic {i % 9}" for i in range(63)), *(f"Question {i}, of TOPIC {i % 9}" for i in range(63))
    )
    counted, why = count_rows((rows("question 62 of topic 8", "unseen"),), data)
    assert (len(counted), why.n_leaked, why.n_repeats) == (62, 2, 62)
    assert why.in_words.startswith(
        "62 of 126 calibration rows count: 2 also stand in the training or selection rows; 62"
    )


def test_a_group_that_was_trained_on_does_not_count_and_another_counts_once() -> None:
    data = rows("a", "b", group="customer 1").examples + rows("c", "d", "e", group="customer 2").examples
    counted, why = count_rows((rows("f", group="customer 1"),), Dataset(name="all", examples=data))
    assert [example.group for example in counted.examples] == ["customer 2"]
    assert (why.n_seen_groups, why.n_repeats) == (2, 2)
    assert "one row counts for each group" in why.in_words


def test_a_promise_on_repeats_is_kept_only_by_one_row_a_text() -> None:
    """Texts five times over, answers right at a rate that rises with confidence: of 600 certificates, how many lie."""
    draw, guarantee, broken = random.Random(5), Guarantee(max_error=0.2), [0, 0]
    for _ in range(600):
        confidence = [draw.random() for _ in range(63)]
        right = [draw.random() < 0.5 + 0.5 * c for c in confidence]
        texts = [f"text {i}" for i in range(63)]
        kept = independent_rows(texts * 5)
        assert len(kept) == 63
        for i, chosen in enumerate((range(315), kept)):
            scores, truth = np.array(confidence * 5)[list(chosen)], np.array(right * 5)[list(chosen)]
            threshold = search_threshold(scores.tolist(), truth.tolist(), guarantee).threshold
            broken[i] += threshold <= 1 and (1 - threshold) / 4 > 0.2  # mean error of confidences above the threshold
    print(broken)
    assert broken[0] > 0.09 * 600
    assert broken[1] <= 0.05 * 600
