"""The fused normalisation is transformers' own, with its gradients; others stay as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from smallfirst.training.rms_norm import RMSNorm, replace_norms


@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 4, 24)])
def test_values_and_gradients_are_transformers_own(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(24)
    theirs.weight.data = torch.randn(24)
    ours = RMSNorm(copy.deepcopy(theirs))
    states, weigh = torch.randn(shape) * 3, torch.randn(shape)
    found = []
    for norm in (theirs, ours):
        given = states.clone().requires_grad_()
        out = norm(given)
        (out * weigh).sum().backward()
        found.append((out, given.grad, norm.weight.grad))
    for their, our in zip(*found, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-5)


def test_bfloat16_is_as_near_to_the_exact_value_as_transformers_own() -> None:
    torch.manual_seed(1)
    theirs = LlamaRMSNorm(64).bfloat16()
    states = torch.randn(30, 64).bfloat16()
    exact = LlamaRMSNorm(64)(states.float())
    ours = RMSNorm(theirs)(states)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).norm() <= (theirs(states) - exact).norm()


def test_a_models_norms_are_replaced_under_their_names_and_other_formulas_stay(tiny_fp32: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_fp32
    names = [name for name, _ in model.named_parameters()]
    ids = torch.tensor([tokenizer.encode("where is my card, it is late")])
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        replace_norms(model)
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-5, rtol=0)
    assert [name for name, _ in model.named_parameters()] == names
    assert sum(isinstance(part, RMSNorm) for part in model.modules()) == 2 * 2 + 1
    other = torch.nn.Sequential(GemmaRMSNorm(8))
    other[0].variance_epsilon = 1e-6  # it multiplies by 1 + weight
    replace_norms(other)
    assert isinstance(other[0], GemmaRMSNorm)
