"""Conversations as tokens, through the model's own chat template; the last message of a long one loses its middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smallfirst.data.dataset import Message
from smallfirst.errors import ConfigError


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
