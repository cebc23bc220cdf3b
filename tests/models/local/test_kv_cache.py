"""Blocks, padding, and rows that leave or join change nothing for the rows of a KV cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from smallfirst.models.local.kv_cache import KVCache


def whole(model: Any, ids: list[int]) -> torch.Tensor:
    """State after the last token, the whole row read at once and alone."""
    with torch.inference_mode():
        return model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]


@torch.inference_mode()
def test_blocks_of_any_length_read_like_the_whole(tiny_fp32: tuple[Any, Any]) -> None:
    model, _ = tiny_fp32
    rows = [list(range(10, 17)), list(range(30, 32)), list(range(50, 61))]
    cache = KVCache(model, 3)
    cache.read([rows[0][:3], rows[1][:1], rows[2][:8]])
    cache.read([rows[0][3:4], rows[1][1:], rows[2][8:10]])
    last = cache.read([rows[0][4:], [99], rows[2][10:]])
    for state, ids in zip(last, [rows[0], [*rows[1], 99], rows[2]], strict=True):
        torch.testing.assert_close(state, whole(model, ids), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_selected_rows_continue_as_if_alone(tiny_fp32: tuple[Any, Any]) -> None:
    model, _ = tiny_fp32
    cache = KVCache(model, 3)
    cache.read([[5, 6, 7], [8], [9, 10]])
    cache.select_rows([2, 0])
    last = cache.read([[11], [12, 13]])
    torch.testing.assert_close(last[0], whole(model, [9, 10, 11]), atol=1e-5, rtol=0)
    torch.testing.assert_close(last[1], whole(model, [5, 6, 7, 12, 13]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", [0, 300])
def test_padded_places_are_never_seen_again(tiny_fp32: tuple[Any, Any], padding: int) -> None:
    model, _ = tiny_fp32
    cache = KVCache(model, 2)
    with torch.inference_mode():
        cache.read([[5, 6, 7, 8, 9], [padding or 3]])
    assert cache.seen.tolist() == [[True] * 5, [True, False, False, False, False]]
    assert cache.lengths.tolist() == [5, 1]


@torch.inference_mode()
def test_rows_that_join_later_continue_as_if_alone(tiny_fp32: tuple[Any, Any]) -> None:
    model, _ = tiny_fp32
    cache, late = KVCache(model, 2), KVCache(model, 2)
    cache.read([[5, 6, 7, 8], [9]])
    cache.read([[10], [11]])
    late.read([[20, 21], list(range(30, 39))])
    cache.join(late)
    last = cache.read([[12], [13, 14], [22], [40]])
    wanted = [[5, 6, 7, 8, 10, 12], [9, 11, 13, 14], [20, 21, 22], [*range(30, 39), 40]]
    for state, ids in zip(last, wanted, strict=True):
        torch.testing.assert_close(state, whole(model, ids), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_repeated_rows_are_independent_of_each_other_and_the_original(tiny_fp32: tuple[Any, Any]) -> None:
    model, _ = tiny_fp32
    begun = KVCache(model, 1)
    begun.read([[5, 6, 7]])
    for _ in range(2):
        copies = begun.repeat(2)
        last = copies.read([[8], [9, 10]])
        torch.testing.assert_close(last[0], whole(model, [5, 6, 7, 8]), atol=1e-5, rtol=0)
        torch.testing.assert_close(last[1], whole(model, [5, 6, 7, 9, 10]), atol=1e-5, rtol=0)
    assert begun.lengths.tolist() == [3]


@torch.inference_mode()
def test_compacting_removes_only_unused_columns(tiny_fp32: tuple[Any, Any]) -> None:
    model, _ = tiny_fp32
    cache = KVCache(model, 3)
    cache.read([list(range(10, 210)), [5, 6], [7]])
    cache.read([[1], [8], [9, 3]])
    assert not cache.compact()
    cache.select_rows([1, 2])
    assert cache.compact()
    assert cache.columns == 3
    last = cache.read([[2], [4]])
    torch.testing.assert_close(last[0], whole(model, [5, 6, 8, 2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(last[1], whole(model, [7, 9, 3, 4]), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_few_widths_are_computed_and_no_padding_is_kept(tiny_fp32: tuple[Any, Any]) -> None:
    model, _ = tiny_fp32
    seen: set[int] = set()
    hook = model.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.add(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        for n in range(9, 129):
            ids = [10 + at % 50 for at in range(n)]
            cache = KVCache(model, 1)
            cache.read([ids])
            assert cache.columns == n
            if n == 77:
                torch.testing.assert_close(cache.read([[5]])[0], whole(model, [*ids, 5]), atol=1e-5, rtol=0)
    finally:
        hook.remove()
    assert len(seen - {1, 78}) == 15
