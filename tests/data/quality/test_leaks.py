"""Test rows found again in the training rows, and the gate that such rows must not get through."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fixtures.rows import text_rows as rows
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.data.dataset import Dataset
from smallfirst.data.quality.leaks import find_leaks
from smallfirst.data.sources.load import load_rows

TEN = "one two three four five six seven eight nine ten"
HERE = Path(__file__).resolve()
DATA = [Path(p) for p in (os.environ.get("SMALLFIRST_DATA"), HERE.parents[4] / "shared" / "datasets") if p]


TRAIN = rows("train.jsonl", "Where is my card?", "I want a refund", TEN, "where is my card")


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        ("Where is my card?", "exact", "train.jsonl:1"),
        ("where is my card", "exact", "train.jsonl:4"),
        ("WHERE is my card?", "folded", "train.jsonl:1"),
        ("  where  is my\tcard ", "folded", "train.jsonl:1"),
        ("where is my card!!!", "folded", "train.jsonl:1"),
        ("I want a re-fund", "folded", "train.jsonl:2"),
        ("ｗhere is my card", "folded", "train.jsonl:1"),  # a full-width letter
        (TEN.removesuffix(" ten"), "near", "train.jsonl:3"),
        (TEN.removesuffix(" nine ten"), None, ""),
        ("my card is where", "near", "train.jsonl:1"),
        ("something else", None, ""),
    ],
)
def test_a_copy_is_found_under_the_closest_kind(text: str, kind: str | None, place: str) -> None:
    test = rows("test.jsonl", "quite new", text)
    found = find_leaks(TRAIN, test)
    by_kind = {"exact": found.exact, "folded": found.folded, "near": found.near}
    assert [name for name, leaks in by_kind.items() if leaks] == ([kind] if kind else [])
    if kind:
        (leak,) = by_kind[kind]
        assert (leak.key, leak.test, leak.train) == (test.examples[1].key, "test.jsonl:2", place)
    assert (found.n_test, found.n_leaked, found.share) == (2, bool(kind), 0.5 if kind else 0.0)
    assert found.keys == ({test.examples[1].key} if kind else set())
    assert found.test_fingerprint == test.content_fingerprint


def test_what_is_asked_counts_and_not_the_answer() -> None:
    other = TRAIN.examples[0].model_copy(update={"answer": "y", "path": "test.jsonl"})
    assert len(find_leaks(TRAIN, Dataset(name="test", examples=(other,))).exact) == 1


def test_a_row_without_a_file_is_named_by_its_number() -> None:
    bare = Dataset(name="t", examples=(TRAIN.examples[0].model_copy(update={"path": "", "line": 7}),))
    assert find_leaks(bare, bare).exact[0].test == "row:7"


def test_without_rows_there_is_no_leak() -> None:
    empty = rows("none.jsonl")
    assert find_leaks(empty, TRAIN).n_leaked == 0
    nothing = find_leaks(TRAIN, empty)
    assert (nothing.n_test, nothing.share) == (0, 0.0)


words = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "Alpha", "BETA"]), min_size=1, max_size=4)
texts = st.lists(st.tuples(words, st.sampled_from([" ", "  ", ", ", "-"])).map(lambda p: p[1].join(p[0])), max_size=12)


@given(texts, texts)
def test_each_test_row_counts_once_and_copies_always(train: list[str], test: list[str]) -> None:
    found = find_leaks(rows("train", *train), rows("test", *test))
    places = [leak.test for leak in (*found.exact, *found.folded, *found.near)]
    assert len(places) == len(set(places)) <= found.n_test == len(test)
    assert len(found.exact) == sum(text in train for text in test)
    dressed = {"".join(c for c in text.lower() if c.isalpha()) for text in train}
    bare = ["".join(c for c in text.lower() if c.isalpha()) for text in test]
    assert len(found.exact) + len(found.folded) == sum(text in dressed for text in bare)


@given(texts, texts, st.data())
def test_a_training_row_that_copies_a_test_row_is_one_leak_more_or_was_one(
    train: list[str], test: list[str], data: st.DataObject
) -> None:
    if not test:
        return
    copied = data.draw(st.sampled_from(test))
    before = find_leaks(rows("train", *train), rows("test", *test))
    after = find_leaks(rows("train", *train, copied), rows("test", *test))
    assert after.share >= before.share
    assert len(after.exact) == sum(text in {*train, copied} for text in test)


@pytest.mark.parametrize(
    ("name", "exact", "in_other_dress"), [("banking77", 5, 20), ("clinc150", 2, 31), ("restaurant8k", 138, 171)]
)
def test_public_sets_leak_as_often_as_counted_by_hand(name: str, exact: int, in_other_dress: int) -> None:
    """Counted apart by comparing the lower-cased letters and digits of every row."""
    folder = next((data / name for data in DATA if (data / name).is_dir()), None)
    if folder is None:
        pytest.skip(f"{name} is in neither of {', '.join(map(str, DATA))}")
    found = find_leaks(load_rows(folder / "train.jsonl"), load_rows(folder / "test.jsonl"))
    assert (len(found.exact), len(found.folded)) == (exact, in_other_dress)
