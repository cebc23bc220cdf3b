"""Smoothing scales follow the measured ranges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from smallfirst.models.local.smoothquant import damping_scales, measure_input_ranges, smoothing_scales


def test_a_channel_is_divided_so_that_both_sides_are_equally_large() -> None:
    weight = torch.tensor([[2.0, -0.25], [-8.0, 0.1]])
    by = smoothing_scales(weight, torch.tensor([2.0, 4.0]))
    assert by.tolist() == pytest.approx([0.5, 4.0])  # √(2/8), √(4/0.25)
    assert (torch.tensor([2.0, 4.0]) / by).tolist() == pytest.approx((weight.abs().amax(0) * by).tolist())


def test_channels_of_zeros_have_finite_scales() -> None:
    by = smoothing_scales(torch.zeros(3, 2), torch.zeros(2))
    assert by.tolist() == pytest.approx([10**0.5] * 2)  # as if 0.001 and 0.0001
    assert damping_scales(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]


def test_only_channels_above_the_median_are_damped() -> None:
    assert damping_scales(torch.tensor([0.5, 1.0, 16.0])).tolist() == pytest.approx([1.0, 1.0, 2.0])


def test_ranges_are_the_largest_inputs_after_the_first_token(tiny_fp32: tuple[Any, Any]) -> None:
    model, _ = tiny_fp32
    prompts = [[0, 5, 9, 30], [0, 7], [0]]
    states = []
    hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, rows: states.append(rows[0][0, 1:]))
    with torch.inference_mode():
        for ids in prompts:
            model.model(input_ids=torch.tensor([ids]))
    hook.remove()
    ranges = measure_input_ranges(model, prompts)
    assert len(ranges) == 2
    assert ranges[1].down.tolist() == pytest.approx(torch.cat(states).abs().amax(0).tolist(), rel=1e-5)
    assert (ranges[0].qkv.shape, ranges[0].gate_up.shape, ranges[0].down.shape) == ((32,), (32,), (64,))
    assert not model.model.layers[1].mlp.down_proj._forward_pre_hooks
