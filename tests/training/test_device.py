"""What saves memory or time changes neither loss nor gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from smallfirst.models.local.weights import load_causal
from smallfirst.training import causal_lm
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.causal_lm import CausalBackend, target_loss
from smallfirst.training.config import TrainConfig
from smallfirst.training.device import (
    RMSNorm,
    as_kept,
    checkpoint_layers,
    compile_layers,
    learn_in_fp32,
    replace_norms,
)

ROWS = [
    TokenizedRow((0, 5, 9, 300, 301), 3),
    TokenizedRow((0, 5, 7, 300, 301, 302), 3),
    TokenizedRow((0, 5, 11, 12, 13, 14, 300), 6),
]


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    return load_causal(tiny_folder)[0].float().train()


def gradients(model: Any, rows: list[TokenizedRow] = ROWS) -> list[torch.Tensor]:
    model.zero_grad()
    loss = target_loss(model, rows)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def saved_bytes(work: Callable[[], object]) -> int:
    """Of the tensors that the forward pass keeps for the backward pass."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(seen.values())


def test_checkpointed_layers_give_the_same_loss_and_gradient_and_keep_less(model: Any) -> None:
    plain, kept = gradients(model), saved_bytes(lambda: target_loss(model, ROWS))
    checkpoint_layers(model)
    assert_same(gradients(model), plain)
    assert saved_bytes(lambda: target_loss(model, ROWS)) < kept / 2


def test_what_learns_in_fp32_is_kept_in_bf16_and_then_exactly_what_it_was(model: Any) -> None:
    learn_in_fp32(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-6)  # less than bf16 tells apart
    exact = [parameter.detach().clone() for parameter in model.parameters()]
    places = [id(parameter) for parameter in model.parameters()]
    with as_kept(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert_same(list(model.parameters()), exact)
    assert [id(parameter) for parameter in model.parameters()] == places  # the optimizer's
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_setting_checkpoints_what_is_trained(method: str, tiny_folder: Path) -> None:
    found = []
    for setting in (False, True):
        config, backend = TrainConfig(method=method, gradient_checkpointing=setting), CausalBackend()
        torch.manual_seed(0)
        model, _ = backend.load(tiny_folder, config)
        backend.begin(model, ROWS, config)
        found.append([*gradients(model), torch.tensor(saved_bytes(lambda m=model: target_loss(m, ROWS)))])
    *plain, kept = found[0]
    *again, less = found[1]
    assert_same(again, plain)
    assert less < kept


def test_the_loss_of_many_targets_is_computed_in_parts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, kept = gradients(model), saved_bytes(lambda: target_loss(model, ROWS))
    monkeypatch.setattr(causal_lm, "LOSS_TARGETS", 2)
    assert_same(gradients(model), whole)
    assert saved_bytes(lambda: target_loss(model, ROWS)) < kept


def test_rows_of_4096_tokens_packed_give_the_gradient_of_each_alone(model: Any) -> None:
    torch.manual_seed(0)
    long, other = (tuple(torch.randint(5, 300, (n,)).tolist()) for n in (4096, 1500))
    rows = [TokenizedRow(long, 4080), TokenizedRow(other, 1490), ROWS[0]]
    packed = gradients(model, rows)
    alone = [gradients(model, [row]) for row in rows]
    assert_same(packed, [torch.stack(parts).sum(0) for parts in zip(*alone, strict=True)])


def test_compiled_layers_give_the_same_and_are_compiled_once_for_all_rows(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, and run as traced: making kernels of it takes a C++ compiler and minutes."""
    traced, ran = list[Any](), list[Any]()

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        traced.append(graph)
        return lambda *given: (ran.append(graph), graph(*given))[1]

    drawn = ([4, 9], [5, 30, 7], [60, 3, 20, 110])
    batches = [[TokenizedRow(tuple(range(5, 5 + n)), n - 2) for n in lengths] for lengths in drawn]
    plain = [gradients(model, rows) for rows in batches]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compile_layers(model)
    for rows, expected in zip(batches[:2], plain, strict=False):
        assert_same(gradients(model, rows), expected)
    n_traced = len(traced)
    assert n_traced > 0
    for rows, expected in zip(batches, plain, strict=True):
        assert_same(gradients(model, rows), expected)
    assert len(traced) == n_traced
    checkpoint_layers(model)
    n_ran = len(ran)
    assert_same(gradients(model, batches[0]), plain[0])
    assert len(ran) > n_ran  # what is computed again is the compiled layer


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
