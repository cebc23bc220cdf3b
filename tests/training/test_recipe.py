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
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify
from smallfirst.training.recipe import TokenizedRow, encode_task_rows, epoch_batches, micro_batches


def rows_of(lengths: list[int]) -> list[TokenizedRow]:
    """Rows of these many tokens, told apart by their first token."""
    return [TokenizedRow((i, *range(100, 99 + n)), n - 1) for i, n in enumerate(lengths)]


def padded_tokens(batch: list[TokenizedRow]) -> int:
    return len(batch) * max(len(row.ids) - 1 for row in batch)


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_folder)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(40, 200), st.integers(0, 2**40))
def test_an_epoch_has_every_row_once_within_the_budget_and_repeats_by_its_seed(
    lengths: list[int], budget: int, seed: int
) -> None:
    rows = rows_of(lengths)
    batches = epoch_batches(rows, batch_tokens=budget, seed=seed)
    assert Counter(row for batch in batches for row in batch) == Counter(rows)
    assert all(0 < padded_tokens(batch) <= budget for batch in batches)
    assert batches == epoch_batches(rows, batch_tokens=budget, seed=seed)


def test_another_seed_gives_other_batches_not_just_another_order() -> None:
    rows = rows_of([10 + i % 20 for i in range(200)])
    first, second = (epoch_batches(rows, batch_tokens=100, seed=seed) for seed in (0, 1))
    together = [{frozenset(row.ids[0] for row in batch) for batch in epoch} for epoch in (first, second)]
    assert len(together[0] & together[1]) < len(together[0]) / 2


def test_batches_are_full_and_waste_little_on_padding() -> None:
    assert len(epoch_batches(rows_of([9, 9, 9, 9]), batch_tokens=32, seed=0)) == 1
    assert len(epoch_batches(rows_of([9, 9, 9, 9]), batch_tokens=31, seed=0)) == 2
    batches = epoch_batches(rows_of([8 + i % 40 for i in range(400)]), batch_tokens=512, seed=0)
    real, padded = sum(7 + i % 40 for i in range(400)), sum(map(padded_tokens, batches))
    assert (padded - real) / padded < 0.15


def test_micro_batches_keep_every_row_in_order_and_a_longer_one_alone() -> None:
    rows = rows_of([5, 5, 4, 60, 7, 8])
    parts = micro_batches(rows, 12)
    assert [row for part in parts for row in part] == rows
    assert [[len(row.ids) for row in part] for part in parts] == [[5, 5, 4], [60], [7], [8]]


def test_a_row_is_the_start_token_the_prompt_and_the_code_or_the_answer_and_its_end(
    tokenizer: Any, toy_rows: Dataset, toy_task: Classify
) -> None:
    codes = choose_label_tokens(toy_task.labels, tokenizer)
    for row, made in zip(toy_rows.examples, encode_task_rows(toy_rows, toy_task, tokenizer, 64, codes), strict=True):
        prompt = [0, *tokenizer.encode(toy_task.prompt(row.text), add_special_tokens=False)]
        assert made == TokenizedRow((*prompt, codes[toy_task.labels.index(row.answer)]), len(prompt))
    written = encode_task_rows(toy_rows, Answer(name="toy"), tokenizer, 64)
    assert {row.ids[-1] for row in written} == {tokenizer.eos_token_id}
    assert all(row.n_prompt < len(row.ids) - 1 for row in written)


def test_all_rows_that_cannot_be_trained_on_are_named_at_once(tokenizer: Any, toy_task: Classify) -> None:
    long = "where is my card " * 10
    n = len(tokenizer.encode(f"{long.strip()} =>")) + 2
    data = answered_rows("rows.csv", ("a", "card_arrival"), ("what", "card_departure"), (long, "card_arrival"))
    assert len(encode_task_rows(data.subset("long", data.examples[2:]), toy_task, tokenizer, n, (1, 2, 3, 4))) == 1
    with pytest.raises(DataError) as caught:
        encode_task_rows(data, toy_task, tokenizer, n - 1, (1, 2, 3, 4))
    assert str(caught.value) == (
        "2 of 3 rows cannot be trained on:\n"
        '  rows.csv:2  unknown label "card_departure"\n'
        f"  rows.csv:3  {n} tokens; the limit is {n - 1} (max_seq_tokens)\n"
        "  next: fix or remove these lines; for long ones raise max_seq_tokens (context_length)"
    )
