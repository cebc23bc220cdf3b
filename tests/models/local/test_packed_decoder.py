"""The packed forward pass equals that of transformers: every family, ragged batches, a shared prefix."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers

from smallfirst.models.local import packed_decoder
from smallfirst.models.local.packed_decoder import PackedDecoder, PackedLinear, unsupported_reason

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def config(kind: str, **changed: Any) -> Any:
    family = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}
    return family[kind](**{**SIZES, **changed})


MODELS = {
    "grouped heads, tied": config("llama", tie_word_embeddings=True),
    "one key head, untied, biases": config(
        "llama", num_key_value_heads=1, tie_word_embeddings=False, attention_bias=True, mlp_bias=True
    ),
    "as many key heads": config("llama", num_key_value_heads=4),
    "llama 3 positions": config("llama", rope_parameters=LLAMA3),
    "qwen 2": config("qwen2"),
    "qwen 3, wide heads": config("qwen3", head_dim=16),
}


def made(chosen: Any) -> Any:
    """A seeded model with random norms and biases: ones and zeros would hide mistakes."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(chosen, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
    return model


def prompts(*lengths: int) -> list[list[int]]:
    draw = random.Random(7)
    return [[draw.randrange(50) for _ in range(n)] for n in lengths]


@torch.inference_mode()
def reference(model: Any, ids: list[int]) -> torch.Tensor:
    """States after every token, one row alone, by transformers."""
    states: torch.Tensor = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    return states.float()


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return made(MODELS[request.param])


@pytest.mark.parametrize("lengths", [(9,), (1,), (6, 6, 6), (3, 17, 1, 8, 17, 2), (520, 3)])
def test_states_are_those_of_transformers(model: Any, lengths: tuple[int, ...]) -> None:
    asked = prompts(*lengths)
    expected = torch.stack([reference(model, ids)[-1] for ids in asked])
    torch.testing.assert_close(PackedDecoder(model).last_states(asked), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_shared", [1, 5])
def test_a_shared_prefix_changes_nothing(model: Any, n_shared: int) -> None:
    decoder, asked = PackedDecoder(model), prompts(12, 9, 6, 8, n_shared)
    prefix = [3, 1, 4, 1, 5][:n_shared]
    for ids in asked[:3]:
        ids[:n_shared] = prefix
    asked[3][:n_shared] = [9] * n_shared  # begins otherwise
    asked[4] = prefix  # is the prefix and no more
    decoder.share_prefix(prefix)
    expected = torch.stack([reference(model, ids)[-1] for ids in asked])
    torch.testing.assert_close(decoder.last_states(asked), expected, atol=1e-5, rtol=1e-5)
    decoder.share_prefix([])
    torch.testing.assert_close(decoder.last_states(asked), expected, atol=1e-5, rtol=1e-5)


def test_the_model_itself_still_works(model: Any) -> None:
    (ids,) = prompts(7)
    before = reference(model, ids)
    decoder = PackedDecoder(model)
    decoder.share_prefix(ids[:2])
    decoder.last_states([ids])
    assert torch.equal(reference(model, ids), before)


def test_bf16_is_no_less_exact_than_in_transformers(model: Any) -> None:
    asked = prompts(*range(3, 19))
    exact = torch.stack([reference(model, ids)[-1] for ids in asked])
    rounded = made(model.config).to(torch.bfloat16)
    theirs = (torch.stack([reference(rounded, ids)[-1] for ids in asked]) - exact).abs().mean()
    ours = (PackedDecoder(rounded).last_states(asked) - exact).abs().mean()
    assert ours <= 1.1 * theirs


def test_no_text_is_cached() -> None:
    model = made(MODELS["grouped heads, tied"])
    decoder = PackedDecoder(model)
    decoder.share_prefix([3, 1])
    shared = decoder._shared
    held = [set(vars(decoder)), [keys.clone() for keys in shared.keys], [values.clone() for values in shared.values]]
    for ids in prompts(8, 12):
        decoder.last_states([[3, 1, *ids]])
    assert decoder._shared is shared
    assert set(vars(decoder)) == held[0]
    assert all(map(torch.equal, shared.keys, held[1]))
    assert all(map(torch.equal, shared.values, held[2]))


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (config("llama", hidden_act="gelu"), "activation gelu is not silu"),
        (
            config("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1),
            "some layers use sliding-window attention",
        ),
        (
            config("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "rotary positions of type dynamic depend on the text's length",
        ),
        (
            transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=64),
            "model type gpt2 is none of llama, qwen2, qwen3",
        ),
    ],
)
def test_other_architectures_are_refused(chosen: Any, says: str) -> None:
    model = made(chosen)
    assert unsupported_reason(model) == says
    with pytest.raises(ValueError, match=says):
        PackedDecoder(model)


def test_weights_of_several_kinds_are_refused() -> None:
    model = made(MODELS["grouped heads, tied"])
    assert unsupported_reason(model) == ""
    model.model.norm.to(torch.bfloat16)
    assert "not all fp32, or all bf16" in unsupported_reason(model)


def test_few_batch_sizes_are_computed_whatever_lengths_come(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()

    class Spy(PackedLinear):
        def __call__(self, rows: torch.Tensor) -> torch.Tensor:
            seen.add(len(rows))
            return super().__call__(rows)

    monkeypatch.setattr(packed_decoder, "PackedLinear", Spy)
    decoder = PackedDecoder(made(config("llama", num_hidden_layers=2)))
    for n in range(1, 250):
        decoder.last_states(prompts(n))
    assert len(seen) == 16 + 8 + 1  # the last layer goes on with one row a prompt
