"""Packed rows: every token once, in groups with little padding, and a way there and back that loses nothing."""

from __future__ import annotations

import torch

from smallfirst.models.local.token_batches import pack_rows

ROWS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 10], [1, 2, 11, 12], [1, 2, 13]]


def test_rows_follow_one_another_shortest_first_after_their_common_prefix() -> None:
    packed = pack_rows(ROWS, n_shared=2)
    assert packed.ids.tolist() == [1, 2, 10, 13, 11, 12, 3, 4, 5, 6, 7, 8, 9]
    assert packed.positions.tolist() == [0, 1, 2, 2, 2, 3, 2, 3, 4, 5, 6, 7, 8]
    assert [group.lengths for group in packed.groups] == [[1, 1, 2], [7]]
    assert packed.starts == [6, 2, 4, 3]


def test_a_group_is_padded_with_zeros_and_back_without_loss_and_so_are_gradients() -> None:
    group = pack_rows(ROWS, n_shared=2).groups[0]
    tokens = torch.arange(1.0, 9.0).view(4, 2).requires_grad_()
    padded = group.pad(tokens)
    assert padded.tolist() == [[[1, 2], [0, 0]], [[3, 4], [0, 0]], [[5, 6], [7, 8]]]
    back = group.unpad(padded * 3)
    assert torch.equal(back, tokens * 3)
    weigh = torch.randn(4, 2)
    (back * weigh).sum().backward()
    assert torch.equal(tokens.grad, weigh * 3)  # type: ignore[arg-type]


def test_each_group_is_handed_its_own_tokens() -> None:
    packed = pack_rows(ROWS)
    values = torch.arange(float(len(packed.ids)))[:, None]
    seen = []

    def reverse(group: object, padded: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(padded.shape))
        return -padded

    assert torch.equal(packed.by_group(reverse, values), -values)
    assert seen == [(3, 4, 1), (1, 9, 1)]
    assert packed.pad(values)[:, 0, 0].tolist() == [10, 0, 6, 3]
    assert packed.pad(values)[1, :, 0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 0]
