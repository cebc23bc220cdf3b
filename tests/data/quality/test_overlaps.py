"""Texts seen before, from letter for letter to nearly: by hand, as a law, and where the overlaps are published."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from fixtures.rows import text_rows as rows
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.data.quality.leaks import find_leaks
from smallfirst.data.quality.overlaps import OVERLAP_KINDS, Overlap, find_overlaps, format_overlaps
from smallfirst.data.sources.load import load_rows

DATASETS = Path(os.environ.get("SMALLFIRST_DATA", Path(__file__).parents[4] / "shared" / "datasets"))
TEN = "one two three four five six seven eight nine ten"


TRAIN = rows("train", "Where is my card?", "I want a top-up", TEN)


def counts(overlap: Overlap) -> tuple[int, ...]:
    return (overlap.exact, overlap.case, overlap.folded, overlap.nearly)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Where is my card?", (1, 1, 1, 1)),
        ("where is MY card?", (0, 1, 1, 1)),
        ("where  is my card", (0, 0, 1, 1)),
        ("I want a top up", (0, 0, 1, 1)),
        ("I want a topup", (0, 0, 0, 1)),
        (TEN.removesuffix(" ten"), (0, 0, 0, 1)),
        ("something else", (0, 0, 0, 0)),
    ],
)
def test_each_kind_holds_the_one_before(text: str, expected: tuple[int, ...]) -> None:
    ([overlap], found) = find_overlaps({"train": TRAIN, "test": rows("test", text)})
    assert counts(overlap) == expected
    assert (overlap.new, overlap.old, overlap.n_rows) == ("test", "train", 1)
    assert len(found) == (expected[3] > 0)
    if found:
        assert ("nearly" in found[0].what) == (not expected[2])


def test_a_text_seen_in_both_earlier_splits_counts_once_against_both_together() -> None:
    splits = {
        "train": rows("train", "a b", "c d"),
        "validation": rows("validation", "A b", "e f"),
        "test": rows("test", "a b", "e f", "g h"),
    }
    overlaps, _ = find_overlaps(splits)
    found = {(o.new, o.old): counts(o) for o in overlaps}
    assert found == {
        ("validation", "train"): (0, 1, 1, 1),
        ("test", "train"): (1, 1, 1, 1),
        ("test", "validation"): (1, 2, 2, 2),
        ("test", "train or validation"): (2, 2, 2, 2),
    }


def test_findings_name_every_row_and_what_it_repeats() -> None:
    _, found = find_overlaps({"train": TRAIN, "test": rows("test", "where is my card", "I want a topup", "new")})
    same, near = found
    assert same.where == ("test:1 is train:1",)
    assert near.where == ("test:2 is nearly train:2",)
    assert [(place.path, place.line) for place in (*same.places, *near.places)] == [("test", 1), ("test", 2)]


def test_the_table_is_left_out_where_nothing_was_seen_twice() -> None:
    overlaps, _ = find_overlaps({"train": TRAIN, "test": rows("test", "new")})
    assert format_overlaps(overlaps) == []
    overlaps, _ = find_overlaps({"train": TRAIN, "test": rows("test", "new", "I want a topup")})
    assert format_overlaps(overlaps)[1:] == [
        "                   exact     case   folded   nearly       of",
        "  test in train        0        0        0        1        2",
    ]


words = st.lists(st.sampled_from(["alpha", "beta", "Alpha", "BETA"]), min_size=1, max_size=3)
texts = st.lists(st.tuples(words, st.sampled_from([" ", "  ", ", ", "-"])).map(lambda p: p[1].join(p[0])), max_size=8)


@given(texts, texts)
def test_figures_only_grow_and_end_at_what_the_gate_counts(train: list[str], test: list[str]) -> None:
    splits = {"train": rows("train", *train), "test": rows("test", *test)}
    ([overlap], _) = find_overlaps(splits)
    leaks = find_leaks(splits["train"], splits["test"])
    assert list(counts(overlap)) == sorted(counts(overlap))
    assert (overlap.exact, overlap.nearly) == (len(leaks.exact), leaks.n_leaked)


@cache
def overlaps_of(name: str) -> tuple[Overlap, ...]:
    splits = {part: load_rows(DATASETS / name / f"{part}.jsonl") for part in ("train", "validation", "test")}
    return find_overlaps(splits)[0]


@pytest.mark.parametrize(
    ("name", "old", "kind", "published"),
    [
        # "Ignoring case", against the training file.
        ("banking77", "train", "case", 5),
        ("clinc150", "train", "case", 2),
        ("snips_slots", "train", "case", 26),
        ("restaurant8k", "train", "case", 168),
        # "White space and punctuation folded too", against the official training rows: Banking77's are both files here.
        ("banking77", "train or validation", "folded", 25),
        ("clinc150", "train", "folded", 19),
    ],
)
def test_published_overlaps_are_found(name: str, old: str, kind: str, published: int) -> None:
    if not (DATASETS / name).is_dir():
        pytest.skip(f"no {name} beside this copy")
    [found] = [o for o in overlaps_of(name) if (o.new, o.old) == ("test", old)]
    assert kind in OVERLAP_KINDS
    assert getattr(found, kind) == published
