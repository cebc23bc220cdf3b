"""A model read at one position gives the same answer alone, in a batch and in any order, on every engine."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from smallfirst.data.dataset import Dataset
from smallfirst.models.local.label_scorer import LabelScorer, PackedDecoder, unsupported_reason

TEXT = "where is my card"


@pytest.fixture
def texts(toy_rows: Dataset) -> list[str]:
    return [example.text * (1 + i % 3) for i, example in enumerate(toy_rows.examples)]


@pytest.fixture
def loaded(tiny_folder: Path, scorer: LabelScorer) -> LabelScorer:
    return LabelScorer.load(tiny_folder, scorer.manifest)


def test_results_do_not_depend_on_batch_or_order(scorer: LabelScorer, texts: list[str]) -> None:
    expected = {text: scorer.score([text])[0] for text in texts}
    scorer.batch_rows = 7
    mixed = random.Random(3).sample(texts, len(texts))
    for text, found in zip(mixed, scorer.score(mixed), strict=True):
        assert found.log_probabilities == pytest.approx(expected[text].log_probabilities, abs=1e-5)
        assert found.n_tokens == expected[text].n_tokens
    assert scorer.score([]) == []


def test_probabilities_are_those_of_the_label_tokens_after_the_prompt(scorer: LabelScorer) -> None:
    ids = [scorer.tokenizer.bos_token_id, *scorer.tokenizer.encode(f"{TEXT} =>", add_special_tokens=False)]
    with torch.inference_mode():
        logits = scorer.model(input_ids=torch.tensor([ids])).logits[0, -1]
    expected = logits[list(scorer.manifest.label_tokens)].softmax(-1)
    (found,) = scorer.score([TEXT])
    assert torch.tensor(found.log_probabilities).exp().tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.n_tokens == len(ids)
    assert found.busy_s > 0


def test_a_loaded_model_is_packed_and_gives_the_same_probabilities(loaded: LabelScorer, texts: list[str]) -> None:
    assert loaded.packed._shared.ids == tuple(loaded.prefix) == (loaded.tokenizer.bos_token_id,)
    plain = LabelScorer(loaded.model, loaded.tokenizer, loaded.manifest)
    assert plain.packed is None
    for found, expected in zip(loaded.score(texts), plain.score(texts), strict=True):
        assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=0.05)  # both in bf16
        assert found.n_tokens == expected.n_tokens


SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
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


def test_no_text_is_cached_and_the_model_itself_still_works() -> None:
    model, asked = made(MODELS["grouped heads, tied"]), prompts(8, 12)
    before = reference(model, asked[0])
    decoder = PackedDecoder(model)
    decoder.share_prefix([3, 1])
    shared = decoder._shared
    held = [set(vars(decoder)), [keys.clone() for keys in shared.keys], [values.clone() for values in shared.values]]
    for ids in asked:
        decoder.last_states([[3, 1, *ids]])
    assert decoder._shared is shared
    assert set(vars(decoder)) == held[0]
    assert all(map(torch.equal, shared.keys, held[1]))
    assert all(map(torch.equal, shared.values, held[2]))
    assert torch.equal(reference(model, asked[0]), before)


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
    if says.startswith("activation"):
        model.config.hidden_act = "silu"
        assert unsupported_reason(model) == ""
        model.model.norm.to(torch.bfloat16)
        assert "not all fp32, or all bf16" in unsupported_reason(model)
        return
