"""Attention without a mask is causal attention, and padding on the right changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from smallfirst.models.local import packed_rows
from smallfirst.models.local.packed_rows import causal_attention, pack_rows

SHAPES = [
    pytest.param(4, 4, 7, id="as many key heads as heads"),
    pytest.param(6, 2, 9, id="three heads on a key head"),
    pytest.param(4, 1, 1, id="one key head and one token"),
    pytest.param(4, 2, packed_rows.SHORT_TOKENS, id="the longest short row"),
    pytest.param(4, 2, packed_rows.SHORT_TOKENS + 1, id="the shortest long row"),
]


def drawn(heads: int, kv_heads: int, time: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    query = torch.randn(2, heads, time, 8, requires_grad=True)
    key, value = (torch.randn(2, kv_heads, time, 8, requires_grad=True) for _ in range(2))
    return query, key, value


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """PyTorch's own kernel on keys and values repeated for each head, as (rows, time, heads, width)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    return mixed.transpose(1, 2)


@pytest.mark.parametrize(("heads", "kv_heads", "time"), SHAPES)
def test_values_and_gradients_equal_pytorchs_causal_attention(heads: int, kv_heads: int, time: int) -> None:
    tensors = drawn(heads, kv_heads, time)
    weigh = torch.randn(2, time, heads, 8)
    mixed, weights = causal_attention(None, *tensors, None, scaling=0.3)
    assert weights is None
    torch.testing.assert_close(mixed, reference(*tensors), atol=1e-5, rtol=0)
    ours = torch.autograd.grad((mixed * weigh).sum(), tensors)
    theirs = torch.autograd.grad((reference(*tensors) * weigh).sum(), tensors)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-4, rtol=1e-4)
    half, _ = causal_attention(None, *(t.detach().bfloat16() for t in tensors), None, scaling=0.3)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), mixed, atol=0.05, rtol=0)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("keys", [9, packed_rows.SHORT_TOKENS + 5])
def test_a_given_mask_is_the_only_mask(heads: int, kv_heads: int, keys: int) -> None:
    torch.manual_seed(2)
    query = torch.randn(2, heads, 3, 8)
    key, value = (torch.randn(2, kv_heads, keys, 8) for _ in range(2))
    hidden = torch.rand(2, 1, 3, keys) < 0.4
    mask = torch.zeros(2, 1, 3, keys).masked_fill(hidden, torch.finfo(torch.float32).min)
    mixed, _ = causal_attention(None, query, key, value, mask, scaling=0.3)
    groups = heads // kv_heads
    wanted = F.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attn_mask=mask, scale=0.3
    )
    torch.testing.assert_close(mixed, wanted.transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keys", [9, packed_rows.SHORT_TOKENS + 5])
@pytest.mark.parametrize("time", [1, 2])
def test_without_a_mask_the_last_positions_see_all_before_them(keys: int, time: int) -> None:
    query, key, value = (t.detach() for t in drawn(4, 2, keys))
    mixed, _ = causal_attention(None, query[:, :, keys - time :], key, value, None, scaling=0.3)
    torch.testing.assert_close(mixed, reference(query, key, value)[:, keys - time :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_shared", [0, 2])
def test_packed_rows_attend_as_each_does_alone(n_shared: int) -> None:
    lengths = [3, 9, 4, 3]
    layout = pack_rows([[7] * n for n in lengths], n_shared=n_shared)
    torch.manual_seed(3)
    tensors = [torch.randn(1, heads, len(layout.ids), 8, requires_grad=True) for heads in (6, 2, 2)]
    weigh = torch.randn(len(layout.ids), 6, 8)
    mixed, _ = causal_attention(None, *tensors, None, scaling=0.3, packed=layout)
    assert mixed.shape == (1, len(layout.ids), 6, 8)
    alone = torch.zeros(len(layout.ids), 6, 8)
    for start, length in zip(layout.starts, lengths, strict=True):
        places = [*range(n_shared), *range(start, start + length - n_shared)]
        own, _ = causal_attention(None, *(part[:, :, places] for part in tensors), None, scaling=0.3)
        alone = alone.index_copy(0, torch.tensor(places), own[0])
    torch.testing.assert_close(mixed[0], alone, atol=1e-5, rtol=0)
    ours, theirs = (torch.autograd.grad((out * weigh).sum(), tensors) for out in (mixed[0], alone))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-4, rtol=1e-4)


ROWS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 10], [1, 2, 11, 12], [1, 2, 13]]


def test_rows_follow_one_another_shortest_first_after_their_common_prefix() -> None:
    packed = pack_rows(ROWS, n_shared=2)
    assert packed.ids.tolist() == [1, 2, 10, 13, 11, 12, 3, 4, 5, 6, 7, 8, 9]
    assert packed.positions.tolist() == [0, 1, 2, 2, 2, 3, 2, 3, 4, 5, 6, 7, 8]
    assert [group.lengths for group in packed.groups] == [[1, 1, 2], [7]]
    assert packed.starts == [6, 2, 4, 3]
