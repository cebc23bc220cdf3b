"""A base model's tokens without the base model: its tokenizer alone, loaded in a fraction of a second.

Gives the same tokens as training reads. Where `tokenizer.json` is all there is to a tokenizer, it is read directly;
any other is loaded by transformers, which takes some seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

_PLAIN = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that add nothing to tokenizer.json; others may build their own from its vocabulary."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer to put rows into tokens as training does."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""


class _Plain:
    """A tokenizer.json."""

    def __init__(self, tokenizer: Any, *, bos: str | None, eos: str | None) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id: int | None = tokenizer.token_to_id(bos) if bos else None
        self.eos_token_id: int | None = tokenizer.token_to_id(eos) if eos else None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the model in `folder`. Raises MissingExtra if transformers is not installed."""
    return _read_plain(folder) or _by_transformers(folder)


def _read_plain(folder: Path) -> Tokenizer | None:
    """None unless tokenizer.json with its settings is all there is."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        from tokenizers import Tokenizer
    except (OSError, ValueError, ImportError):
        return None
    if settings.get("tokenizer_class") not in _PLAIN or not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _Plain(tokenizer, bos=_text(settings.get("bos_token")), eos=_text(settings.get("eos_token")))


def _by_transformers(folder: Path) -> Tokenizer:
    from smallfirst.models.local.label_scorer import quiet_transformers

    transformers = quiet_transformers("Counting tokens")
    tokenizer: Tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def _text(token: Any) -> str | None:
    """A special token may be written as its text or as a mapping with its content."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None
