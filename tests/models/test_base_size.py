"""A base model's size, read from headers, is that of the model itself; damaged folders have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smallfirst.models.base_size import BaseSize, read_base_size


def model_of(folder: Path, **changes: Any) -> Any:
    """A seeded Llama written to `folder`."""
    import torch
    import transformers

    shape = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape | changes))
    model.to(torch.bfloat16).save_pretrained(folder)
    return model


def size_of(folder: Path) -> BaseSize:
    size = read_base_size(folder)
    assert size is not None
    return size


def n_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameters_are_those_of_the_model(tmp_path: Path) -> None:
    model, size = model_of(tmp_path), size_of(tmp_path)
    assert size.parameters == n_parameters(model)
    assert (size.embedding, size.head, size.vocabulary, size.causal) == (50 * 16, 0, 50, True)
    assert size.body == size.parameters - 50 * 16
    assert (size.layers, size.hidden, size.inner, size.heads, size.query, size.key_value) == (2, 16, 24, 4, 16, 8)
    # A layer: q 16+16, k and v 8+16, o 16+16, gate, up and down 24+16.
    assert size.linear_ends == 2 * (32 + 24 + 24 + 32 + 3 * 40)


def test_a_tied_matrix_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = model_of(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    size = size_of(tmp_path)
    assert (size.head, size.parameters) == (0, n_parameters(model))


def test_weights_in_several_files_are_all_counted(tmp_path: Path) -> None:
    import torch
    import transformers

    model = model_of(tmp_path / "whole")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    loaded.save_pretrained(tmp_path / "parts", max_shard_size="4KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert size_of(tmp_path / "parts").parameters == n_parameters(model)


@pytest.mark.parametrize("damage", ["no weights", "no config", "no widths", "experts", "a damaged header", "no JSON"])
def test_an_unknown_size_is_not_guessed(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    model_of(folder)
    config = json.loads((folder / "config.json").read_text())
    if damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "no widths":
        del config["hidden_size"]
        (folder / "config.json").write_text(json.dumps(config))
    elif damage == "experts":
        (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 8}))
    elif damage == "a damaged header":
        (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    else:
        (folder / "config.json").write_text("{")
    assert read_base_size(folder) is None


def test_an_untied_output_matrix_is_counted_separately(tmp_path: Path) -> None:
    model = model_of(tmp_path, tie_word_embeddings=False)
    size = size_of(tmp_path)
    assert (size.head, size.parameters) == (50 * 16, n_parameters(model))
    assert size.body == size.parameters - 2 * 50 * 16
