"""Rows and batches: no row lost, no budget broken, every target at the right place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import transformers
from fixtures.rows import answered_rows
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.base.errors import DataError
from smallfirst.data.dataset import Dataset
from smallfirst.models.local.tokenizer import choose_label_tokens
from smallfirst.tasks.classify import Classify
from smallfirst.training.batches import TokenizedRow, encode_label_rows, epoch_batches

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=60)


def rows_of(lengths: list[int]) -> list[TokenizedRow]:
    """Rows of these many tokens, told apart by their first token."""
    return [TokenizedRow((i, *range(100, 99 + n)), n - 1) for i, n in enumerate(lengths)]


def padded_tokens(batch: list[TokenizedRow]) -> int:
    return len(batch) * max(len(row.ids) - 1 for row in batch)


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_folder)


@given(LENGTHS, st.integers(40, 200), st.integers(0, 2**40))
def test_an_epoch_has_every_row_exactly_once(lengths: list[int], budget: int, seed: int) -> None:
    rows = rows_of(lengths)
    batches = epoch_batches(rows, batch_tokens=budget, seed=seed)
    assert Counter(row for batch in batches for row in batch) == Counter(rows)


@given(LENGTHS, st.integers(40, 200), st.integers(0, 2**40))
def test_no_batch_is_over_budget_with_its_padding(lengths: list[int], budget: int, seed: int) -> None:
    for batch in epoch_batches(rows_of(lengths), batch_tokens=budget, seed=seed):
        assert 0 < padded_tokens(batch) <= budget


@given(LENGTHS, st.integers(0, 2**40))
def test_the_same_seed_gives_the_same_batches(lengths: list[int], seed: int) -> None:
    rows = rows_of(lengths)
    assert epoch_batches(rows, batch_tokens=80, seed=seed) == epoch_batches(rows, batch_tokens=80, seed=seed)


def test_another_seed_gives_other_batches_not_just_another_order() -> None:
    rows = rows_of([10 + i % 20 for i in range(200)])
    first, second = (epoch_batches(rows, batch_tokens=100, seed=seed) for seed in (0, 1))
    together = [{frozenset(row.ids[0] for row in batch) for batch in epoch} for epoch in (first, second)]
    assert len(together[0] & together[1]) < len(together[0]) / 2


def test_a_row_longer_than_the_budget_stands_alone() -> None:
    rows = rows_of([60, 5, 5, 5])
    batches = epoch_batches(rows, batch_tokens=40, seed=0)
    assert sorted(sorted(len(row.ids) for row in batch) for batch in batches) == [[5, 5, 5], [60]]


def test_a_budget_that_fits_exactly_is_used_up() -> None:
    (batch,) = epoch_batches(rows_of([9, 9, 9, 9]), batch_tokens=32, seed=0)
    assert len(batch) == 4
    assert len(epoch_batches(rows_of([9, 9, 9, 9]), batch_tokens=31, seed=0)) == 2


def test_batches_of_like_length_waste_little_on_padding() -> None:
    batches = epoch_batches(rows_of([8 + i % 40 for i in range(400)]), batch_tokens=512, seed=0)
    real, padded = sum(7 + i % 40 for i in range(400)), sum(map(padded_tokens, batches))
    assert (padded - real) / padded < 0.15


def test_a_row_is_the_start_token_the_prompt_and_the_code(
    tokenizer: Any, toy_rows: Dataset, toy_task: Classify
) -> None:
    codes = choose_label_tokens(toy_task.labels, tokenizer)
    rows = encode_label_rows(toy_rows, toy_task, codes=codes, tokenizer=tokenizer, max_tokens=64)
    assert len(rows) == len(toy_rows)
    for row, made in zip(toy_rows.examples, rows, strict=True):
        prompt = [0, *tokenizer.encode(toy_task.prompt(row.text), add_special_tokens=False)]
        code = codes[toy_task.labels.index(row.answer)]
        assert made == TokenizedRow((*prompt, code), len(prompt))


def test_a_row_of_exactly_the_limit_is_taken(tokenizer: Any, toy_task: Classify) -> None:
    data = answered_rows("rows.csv", ("where is my card", "card_arrival"))
    n = len(tokenizer.encode("where is my card =>")) + 2
    for limit, ends_well in ((n, True), (n - 1, False)):
        try:
            encode_label_rows(data, toy_task, codes=(1, 2, 3, 4), tokenizer=tokenizer, max_tokens=limit)
        except DataError:
            assert not ends_well
        else:
            assert ends_well


def test_all_rows_that_cannot_be_trained_on_are_named_at_once(tokenizer: Any, toy_task: Classify) -> None:
    long = "where is my card " * 10
    n = len(tokenizer.encode(f"{long.strip()} =>")) + 2
    data = answered_rows(
        "rows.csv",
        ("where is my card", "card_arrival"),
        ("what", "card_departure"),
        (long, "card_arrival"),
        (long, "nonsense"),
    )
    with pytest.raises(DataError) as caught:
        encode_label_rows(data, toy_task, codes=(1, 2, 3, 4), tokenizer=tokenizer, max_tokens=16)
    assert str(caught.value) == (
        "3 of 4 rows cannot be trained on:\n"
        '  rows.csv:2  unknown label "card_departure"\n'
        f"  rows.csv:3  {n} tokens; the limit is 16 (max_seq_tokens)\n"
        '  rows.csv:4  unknown label "nonsense"\n'
        "  next: fix or remove these lines; for long ones raise max_seq_tokens (context_length)"
    )
    assert [problem.line for problem in caught.value.problems] == [2, 3, 4]
