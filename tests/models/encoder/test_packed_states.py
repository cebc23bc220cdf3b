"""Encoders read without padding give the states and gradients of transformers' own padded pass."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from smallfirst.models.encoder import packed_states as module
from smallfirst.models.encoder.packed_states import packed_states
from smallfirst.models.local.packed_rows import pack_rows, pad_right

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45], [6, 7, 8], [9, 8, 7]]
SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 40, "initializer_range": 0.3,
}  # fmt: skip


@pytest.fixture(params=["Bert", "MPNet"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**SIZES)
    return getattr(transformers, f"{request.param}Model")(config).eval()


def padded(model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    mask = pad_right([[1] * len(row) for row in rows])
    states = model(input_ids=pad_right(rows), attention_mask=mask).last_hidden_state
    return [own[: len(row)] for own, row in zip(states, rows, strict=True)]


def packed(model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    layout = pack_rows(rows)
    states = packed_states(model, layout)
    return [states[start : start + len(row)] for start, row in zip(layout.starts, rows, strict=True)]


def test_states_and_gradients_are_those_of_the_padded_pass(model: Any) -> None:
    torch.manual_seed(1)
    weigh = [torch.randn(len(row), 32) for row in ROWS]
    found = []
    for read in (padded, packed):
        model.zero_grad()
        states = read(model, ROWS)
        torch.stack([(own * by).sum() for own, by in zip(states, weigh, strict=True)]).sum().backward()
        found.append([*states, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 30
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("short", [0, 100])  # by PyTorch's fused kernel, or by two products and a softmax
def test_in_bf16_short_and_long_rows_have_the_states_of_fp32_up_to_rounding(
    model: Any, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = torch.cat(packed(model, ROWS))
    monkeypatch.setattr(module, "SHORT_TOKENS", short)
    found = torch.cat(packed(model.to(torch.bfloat16), ROWS)).float()
    assert (found - wanted).norm() / wanted.norm() < 0.03


def test_dropout_of_states_is_that_of_the_model_and_only_in_training_mode(model: Any) -> None:
    calm = packed(model, ROWS)[0]
    assert torch.equal(calm, packed(model, ROWS)[0])
    model.train()
    torch.manual_seed(2)
    first, second = (packed(model, ROWS)[0] for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)
