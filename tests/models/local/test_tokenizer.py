"""Tokens without the model: the same as training's own tokenizer gives, with or without tokenizer.json alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smallfirst.models.local.tokenizer import load_tokenizer

TEXTS = ("where is my card", "", "Zürich — 12 €\n\n  exchange rate", "<s> A </s>", "ｗ 你好 👍🏽")


def their_own(folder: Path) -> tuple[list[list[int]], int, int]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return (
        [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS],
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )


def ours(folder: Path) -> tuple[list[list[int]], int | None, int | None]:
    tokens = load_tokenizer(folder)
    return [tokens.encode(text, add_special_tokens=False) for text in TEXTS], tokens.bos_token_id, tokens.eos_token_id


def test_tokens_are_those_that_training_reads(tiny_folder: Path) -> None:
    assert ours(tiny_folder) == their_own(tiny_folder)


def test_a_tokenizer_of_another_class_is_loaded_by_transformers(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["tokenizer_class"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert type(load_tokenizer(folder)).__module__.startswith("transformers")
    assert ours(folder) == their_own(folder)


@pytest.mark.parametrize("token", ["<s>", {"content": "<s>", "lstrip": False}, None])
def test_a_special_token_may_be_written_in_several_ways(tiny_folder: Path, tmp_path: Path, token: object) -> None:
    folder = tmp_path / "tokens"
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": token}))
    assert load_tokenizer(folder).bos_token_id == (0 if token else None)


def test_neither_torch_nor_transformers_is_loaded(tiny_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from smallfirst.models.local.tokenizer import load_tokenizer; "
        "print(len(load_tokenizer(Path(sys.argv[1])).encode('where is my card', add_special_tokens=False)), "
        "sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == str(len(ours(tiny_folder)[0][0]))
    assert done.stdout.split()[1] == "[]"
