"""Lengths in tokens: spread by hand, rows over the limit by place, and guesses that stop nothing."""

from __future__ import annotations

from fixtures.rows import text_rows as rows

from smallfirst.data.quality.lengths import (
    TokenCounts,
    estimate_token_counts,
    find_long_rows,
    format_lengths,
    summarize_lengths,
)


def test_percentiles_are_lengths_that_a_row_has() -> None:
    counts = tuple(range(1, 41))  # 1 … 40: half of 40 rows is 20, 19 of 20 rows are 38
    [found] = summarize_lengths(TokenCounts(counts={"train": counts[::-1]}, limit=38, counted_by="tiny"))
    assert (found.n_rows, found.median, found.p95, found.longest, found.total, found.n_over) == (40, 20, 38, 40, 820, 2)


def test_one_row_is_its_own_median_and_a_split_without_rows_has_no_spread() -> None:
    [found] = summarize_lengths(TokenCounts(counts={"train": (7,), "test": ()}, limit=10, counted_by="tiny"))
    assert (found.split, found.median, found.p95, found.longest) == ("train", 7, 7, 7)


def test_every_row_over_the_limit_is_a_place() -> None:
    splits = {"train": rows("train", *"abcdefghijklmn"), "test": rows("test", "a", "b")}
    tokens = TokenCounts(counts={"train": (5,) * 13 + (4,), "test": (4, 5)}, limit=4, counted_by="tiny")
    train, test = find_long_rows(splits, tokens)
    assert (train.level, train.n, len(train.where), len(train.places)) == ("stop", 13, 10, 13)
    assert train.places[12].words == "train:13 has 5"
    assert (test.level, test.where) == ("fix", ("test:2 has 5",))


def test_a_row_at_the_limit_is_none_over_it() -> None:
    tokens = TokenCounts(counts={"train": (4,)}, limit=4, counted_by="tiny")
    assert list(find_long_rows({"train": rows("train", "a"), "test": rows("test", "a")}, tokens)) == []


def test_a_guess_is_marked_as_one_and_stops_nothing() -> None:
    # 8 bytes are 2 tokens, and 2 for the cue and the label; "ü" has two bytes.
    splits = {"train": rows("train", "12345678", "üüüü", "123456789")}
    tokens = estimate_token_counts(splits, limit=4)
    assert (tokens.counts["train"], tokens.counted_by) == ((4, 4, 5), "")
    [found] = find_long_rows(splits, tokens)
    assert (found.level, found.where) == ("note", ("train:3 has 5",))
    assert "probably" in found.what
    assert format_lengths(summarize_lengths(tokens))[0] == "tokens a row (guessed: bytes / 4; limit 4)"


def test_answers_that_are_written_count_in_training_only() -> None:
    splits = {name: rows(name, "1234", shape="prompt", answer="12345678") for name in ("train", "test")}
    assert estimate_token_counts(splits, limit=9).counts == {"train": (5,), "test": (3,)}


def test_the_table_shows_each_split() -> None:
    tokens = TokenCounts(counts={"train": (3, 9), "validation": (1000,)}, limit=512, counted_by="tiny")
    assert format_lengths(summarize_lengths(tokens)) == [
        "tokens a row (counted by tiny; limit 512)",
        "               median      p95  longest     over",
        "  train             3        9        9        0",
        "  validation    1,000    1,000    1,000        1",
    ]
    assert format_lengths(()) == []
