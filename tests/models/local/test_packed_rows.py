"""Attention without a mask is causal attention, and padding on the right changes nothing."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

from smallfirst.models.local import packed_rows
from smallfirst.models.local.packed_rows import RaggedRows, causal_attention, pack_rows

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


def by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: RaggedRows, scaling: float
) -> torch.Tensor:
    """What a kernel for rows of unequal length does: a row's last query sees all keys, each before it one less."""
    found, groups = [], query.shape[1] // key.shape[1]
    ends = zip(*(part.tolist() for part in (rows.query_ends, rows.key_ends)), strict=True)
    for (begin, key_begin), (end, key_end) in itertools.pairwise(ends):
        q, k, v = query[begin:end], key[key_begin:key_end], value[key_begin:key_end]
        k, v = (part.repeat_interleave(groups, 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scaling
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        found.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v))
    assert rows.longest_query == max(rows.query_ends.diff())
    assert rows.longest_key == max(rows.key_ends.diff())
    return torch.cat(found)


@pytest.mark.parametrize("n_shared", [0, 3])
def test_one_call_of_a_kernel_for_ragged_rows_equals_the_groups(n_shared: int) -> None:
    packed = pack_rows([[7] * 3 + [1] * n for n in (9, 2, 2, 30)], n_shared=n_shared)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, h, len(packed.ids), 8, requires_grad=True) for h in (4, 2, 2))
    grouped = causal_attention(None, query, key, value, None, 0.3, packed)[0]
    rows = packed_rows._ragged(packed.lengths, n_shared, torch.device("cpu"))
    one = packed_rows._ragged_attention(by_row, query, key, value, 0.3, rows)[None]
    torch.testing.assert_close(one, grouped, atol=1e-5, rtol=1e-4)
    weigh = torch.randn_like(one)
    for mine, theirs in zip(
        *(torch.autograd.grad((out * weigh).sum(), (query, key, value)) for out in (one, grouped)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_a_kernel_for_ragged_rows_is_asked_for_on_a_gpu_in_half_precision_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed, query = pack_rows([[1, 2], [3]]), torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16)
    here = dataclasses.replace(packed, ragged=packed_rows._ragged(packed.lengths, 0, torch.device("cpu")))
    seen: list[int] = []
    monkeypatch.setattr(packed_rows, "ragged_kernel", lambda: lambda *parts: (seen.append(1), by_row(*parts))[1])
    assert packed.to(torch.device("cpu")).ragged is None
    wide = torch.zeros(1, 2, 3, 320, dtype=torch.bfloat16)
    for given, rows in ((query, packed), (query.float(), here), (wide, here)):
        causal_attention(None, given, given, given, None, 0.3, rows)
    assert not seen
    causal_attention(None, query, query, query, None, 0.3, here)
    assert seen


def test_pytorchs_kernel_takes_what_it_is_given() -> None:
    """Its arguments are checked without a GPU: on tensors without values it computes the shape."""
    kernel = packed_rows.ragged_kernel.__wrapped__()
    if kernel is None:
        pytest.skip("this PyTorch has no attention for ragged rows with grouped heads")
    packed = pack_rows([[7, 7, 1], [7, 7, 2, 3]], n_shared=2)
    rows = packed_rows._ragged(packed.lengths, 2, torch.device("meta"))
    query, key, value = (torch.zeros(1, h, len(packed.ids), 8, dtype=torch.bfloat16, device="meta") for h in (4, 2, 2))
    found = packed_rows._ragged_attention(kernel, query, key, value, 0.3, rows)
    assert found.shape == (len(packed.ids), 4, 8)


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
