"""A base model's size, read from headers, is that of the model itself; damaged folders have none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smallfirst.models.base_size import BaseSize, read_base_size


def model_of(folder: Path, **changes: Any) -> Any:
    import torch
    import transformers

    shape = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape | changes))
    model.to(torch.bfloat16).save_pretrained(folder)
    return model


def n_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_are_those_of_the_model(tmp_path: Path, tied: bool) -> None:
    model, size = model_of(tmp_path, tie_word_embeddings=tied), read_base_size(tmp_path)
    # A layer: q 16+16, k and v 8+16, o 16+16, gate, up and down 24+16.
    assert size == BaseSize(
        parameters=n_parameters(model),
        body=n_parameters(model.model) - 50 * 16,
        linear_ends=2 * (32 + 24 + 24 + 32 + 3 * 40),
        layers=2,
        hidden=16,
        inner=24,
        heads=4,
        query=16,
        key_value=8,
        vocabulary=50,
        causal=True,
    )


def test_a_tied_matrix_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model_of(tmp_path)
    size, weights = read_base_size(tmp_path), load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    assert read_base_size(tmp_path) == size


def test_weights_in_several_files_are_all_counted(tmp_path: Path) -> None:
    import torch
    import transformers

    model_of(tmp_path / "whole")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    loaded.save_pretrained(tmp_path / "parts", max_shard_size="4KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert read_base_size(tmp_path / "parts") == read_base_size(tmp_path / "whole")


@pytest.mark.parametrize(
    ("file", "damaged"),
    [
        ("model.safetensors", None),
        ("model.safetensors", lambda _: b"\xff" * 100),
        ("config.json", None),
        ("config.json", lambda _: b"{"),
        ("config.json", lambda old: old.replace(b'"hidden_size"', b'"size"')),
        ("config.json", lambda old: old.replace(b"{", b'{"num_local_experts": 8,', 1)),
    ],
)
def test_an_unknown_size_is_not_guessed(tmp_path: Path, file: str, damaged: Callable[[bytes], bytes] | None) -> None:
    model_of(tmp_path)
    before = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if damaged is not None:
        (tmp_path / file).write_bytes(damaged(before))
    assert read_base_size(tmp_path) is None
