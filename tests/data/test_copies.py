"""Copies: near-duplicates, leaks between splits, and which rows count as independent."""

import random
from functools import partial

import numpy as np
import pytest
from fixtures.rows import text_rows
from fixtures.rows import text_rows as rows
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.data import copies
from smallfirst.data.copies import clusters, count_rows, find_leaks, independent_rows
from smallfirst.data.dataset import Dataset
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.threshold_search import search_threshold

TEN = "one two three four five six seven eight nine ten"


def test_a_shared_template_does_not_make_rows_alike() -> None:
    template = "answer the customer politely in two short sentences and name the article "
    template += "of our terms that applies to this case "
    known = rows("train", *(template + f"question{i} about{i}" for i in range(60)))
    found = find_leaks(known, rows("test", template + "question7 about9", template + "about9 question9"))
    assert [(leak.test, leak.train) for leak in found.leaks] == [("test:2", "train:10")]


sentences = st.lists(st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=14).map(" ".join), max_size=8)
LONG = [f"w{i}" for i in range(60)]


@st.composite
def long_texts(draw: st.DrawFn) -> list[str]:
    """The first words of a long text, some of them missing and some other ones added."""
    made = []
    for _ in range(draw(st.integers(1, 8))):
        words = LONG[: draw(st.sampled_from((9, 10, 12, 18, 19, 20, 28, 37, 38, 40, 48, 60)))]
        gone, more = (draw(st.sets(st.sampled_from(words), max_size=3)), draw(st.sets(st.sampled_from("abc"))))
        made.append(" ".join([*(word for word in words if word not in gone), *sorted(more)]))
    return made


@settings(max_examples=300, deadline=None)
@given(sentences | long_texts(), sentences | long_texts())
def test_exactly_the_texts_with_a_similar_one_are_found(known: list[str], new: list[str]) -> None:
    def alike(a: str, b: str) -> bool:
        x, y = set(a.split()), set(b.split())
        return a.replace(" ", "") == b.replace(" ", "") or len(x & y) / len(x | y) >= 0.9

    found = {leak.test: leak.train for leak in find_leaks(rows("train", *known), rows("test", *new)).leaks}
    assert set(found) == {f"test:{j}" for j, t in enumerate(new, 1) if any(alike(t, k) for k in known)}
    assert all(alike(new[int(a[5:]) - 1], known[int(b[6:]) - 1]) for a, b in found.items())


def test_few_pairs_are_compared_where_all_words_are_frequent(monkeypatch) -> None:
    draw, compared = random.Random(0), []
    texts = [" ".join(draw.sample(LONG, 14)) for _ in range(2_000)]
    count = copies._n_different
    monkeypatch.setattr(copies, "_n_different", lambda *given: compared.append(len(given[2])) or count(*given))
    assert len(set(clusters(texts))) == 2_000
    assert sum(compared) < 2_000


TRAIN = rows("train.jsonl", "Where is my card?", "I want a refund", TEN, "where is my card")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Where is my card?", 1),
        ("  WHERE  is my\tcard!!!", 1),
        ("I want a re-fund", 2),
        ("ｗhere is my card", 1),  # a full-width letter
        (TEN.removesuffix(" ten"), 3),
        (TEN.removesuffix(" nine ten"), None),
        ("my card is where", 1),
        ("something else", None),
    ],
)
def test_a_copy_is_found_with_the_first_row_that_it_repeats(text: str, line: int | None) -> None:
    test = rows("test.jsonl", "quite new", text)
    found = find_leaks(TRAIN, test)
    places = [] if line is None else [("test.jsonl:2", f"train.jsonl:{line}")]
    assert [(leak.test, leak.train) for leak in found.leaks] == places
    assert (found.n_test, found.share) == (2, 0.5 if line else 0.0)
    assert found.keys == ({test.examples[1].key} if line else set())
    assert found.test_fingerprint == test.content_fingerprint


labelled = partial(text_rows, "rows")


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


def test_sixty_three_texts_five_times_over_are_sixty_three_rows() -> None:
    data = labelled(
        *(f"question {i} of topic {i % 9}" for i in range(63)), *(f"Question {i}, of TOPIC {i % 9}" for i in range(63))
    )
    counted, why = count_rows((labelled("question 62 of topic 8", "unseen"),), data)
    assert (len(counted), why.n_leaked, why.n_repeats) == (62, 2, 62)
    assert why.in_words.startswith(
        "62 of 126 calibration rows count: 2 also stand in the training or selection rows; 62"
    )


def test_a_group_that_was_trained_on_does_not_count_and_another_counts_once() -> None:
    data = labelled("a", "b", group="customer 1").examples + labelled("c", "d", "e", group="customer 2").examples
    counted, why = count_rows((labelled("f", group="customer 1"),), Dataset(name="all", examples=data))
    assert [example.group for example in counted.examples] == ["customer 2"]
    assert (why.n_seen_groups, why.n_repeats) == (2, 2)
    assert "one row counts for each group" in why.in_words


def test_a_promise_on_repeats_is_kept_only_by_one_row_a_text() -> None:
    """Texts five times over, answers right at a rate that rises with confidence: of 600 certificates, how many lie."""
    draw, guarantee, broken = random.Random(5), Guarantee(max_error=0.2), [0, 0]
    kept = independent_rows([f"text {i}" for i in range(63)] * 5)
    assert len(kept) == 63
    for _ in range(600):
        confidence = [draw.random() for _ in range(63)]
        right = [draw.random() < 0.5 + 0.5 * c for c in confidence]
        for i, chosen in enumerate((range(315), kept)):
            scores, truth = np.array(confidence * 5)[list(chosen)], np.array(right * 5)[list(chosen)]
            threshold = search_threshold(scores.tolist(), truth.tolist(), guarantee).threshold
            broken[i] += threshold <= 1 and (1 - threshold) / 4 > 0.2  # mean error of confidences above the threshold
    assert broken[0] > 0.09 * 600
    assert broken[1] <= 0.05 * 600
