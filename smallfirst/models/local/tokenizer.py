"""Tokenizers without their models: `tokenizer.json` alone is read directly, any other is loaded by transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

_FAST_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that add nothing to tokenizer.json; others may build their own from its vocabulary."""


class Tokenizer(Protocol):
    """The part of a tokenizer that turns rows into tokens."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class _FastTokenizer:
    def __init__(self, tokenizer: Any, *, bos: str | None, eos: str | None) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id: int | None = tokenizer.token_to_id(bos) if bos else None
        self.eos_token_id: int | None = tokenizer.token_to_id(eos) if eos else None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of the model in `folder`. Raise ConfigError if it brings code, or MissingExtra."""
    from smallfirst.models.local.weights import refuse_remote_code

    refuse_remote_code(folder)
    return _load_fast(folder) or _load_by_transformers(folder)


def encode_prompt(tokenizer: Any, prompt: str, max_tokens: int) -> list[int]:
    """Return the start token and the prompt; the middle of a longer prompt is cut, so the cue at its end stays."""
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False, **plain_text_options(tokenizer, prompt))
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    if len(ids) > max_tokens:
        half = max_tokens // 2
        ids = ids[:half] + ids[len(ids) - (max_tokens - half) :]
    return ids


def plain_text_options(tokenizer: Any, text: str) -> dict[str, bool]:
    """Return the `encode` options under which a control token spelled out in `text` is read as ordinary words."""
    control = getattr(tokenizer, "all_special_tokens", ())
    return {"split_special_tokens": True} if any(token in text for token in control) else {}


def common_prefix(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the tokens with which both sequences begin."""
    n = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return list(one[:n])


def _load_fast(folder: Path) -> Tokenizer | None:
    """Return None unless tokenizer.json with its settings is all there is."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        from tokenizers import Tokenizer as Backend
    except (OSError, ValueError, ImportError):
        return None
    if settings.get("tokenizer_class") not in _FAST_CLASSES or not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = Backend.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bos, eos = (_token_text(settings.get(name)) for name in ("bos_token", "eos_token"))
    return _FastTokenizer(tokenizer, bos=bos, eos=eos)


def _load_by_transformers(folder: Path) -> Tokenizer:
    from smallfirst.models.local.weights import import_transformers, load_pretrained

    transformers = import_transformers("Counting tokens")
    tokenizer: Tokenizer = load_pretrained(transformers.AutoTokenizer, folder)
    return tokenizer


def _token_text(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None
