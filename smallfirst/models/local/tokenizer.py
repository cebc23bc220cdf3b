"""Prompts and conversations as tokens, by tokenizers without their models.

`tokenizer.json` alone is read directly, any other is loaded by transformers. Conversations go through the model's own
chat template; the last message of a long one loses its middle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from smallfirst.data.dataset import Message
from smallfirst.errors import ConfigError

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


def encode_chat(tokenizer: Any, messages: Sequence[Message], *, max_tokens: int) -> list[int]:
    """Return the tokens up to where the answer begins. Raise ConfigError if all but the last message are too long."""
    *before, last = messages
    ids = _render(tokenizer, before, last)
    words = tokenizer.encode(last.content, add_special_tokens=False) if len(ids) > max_tokens else []
    keep = len(words)
    while len(ids) > max_tokens:
        keep -= len(ids) - max_tokens
        if keep < 1:
            raise ConfigError(f"the instructions alone take more than {max_tokens} tokens; show fewer solved examples")
        half = keep // 2
        cut = tokenizer.decode(words[: keep - half]) + tokenizer.decode(words[len(words) - half :])
        ids = _render(tokenizer, before, last.model_copy(update={"content": cut}))
    return ids


def with_system_message(messages: Sequence[Message], system: str) -> Sequence[Message]:
    """Return the conversation, with this system message first if it has none of its own."""
    if not system or any(message.role == "system" for message in messages):
        return messages
    return (Message(role="system", content=system), *messages)


def end_of_turn_token(tokenizer: Any) -> int:
    """Return the token that the template puts behind an answer, or else the tokenizer's end token."""
    if not tokenizer.chat_template:
        return int(tokenizer.eos_token_id)
    mark = "answer-stands-here"
    turns = [Message(role="user", content="?"), Message(role="assistant", content=mark)]
    text: str = tokenizer.apply_chat_template([turn.model_dump() for turn in turns], tokenize=False)
    ids = tokenizer.encode(text.rpartition(mark)[2].lstrip(), add_special_tokens=False)
    return int(ids[0] if ids else tokenizer.eos_token_id)


def escape_control_tokens(tokenizer: Any, text: str) -> str:
    """Return the text with a space inside every control token, so that no client can end its own turn."""
    while found := next((token for token in tokenizer.all_special_tokens if token in text), None):
        text = text.replace(found, f"{found[:1]} {found[1:]}")
    return text


def _render(tokenizer: Any, before: Sequence[Message], last: Message) -> list[int]:
    turns = [{"role": m.role, "content": escape_control_tokens(tokenizer, m.content)} for m in (*before, last)]
    ids: list[int] = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    return ids


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
