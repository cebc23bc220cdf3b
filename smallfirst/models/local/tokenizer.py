"""Prompts, conversations and labels as tokens, by tokenizers without their models; what transformers loads, and how.

Conversations go through the model's own chat template; the last message of a long one loses its middle. A label is one
token, a word of its name or a combination of letters, so that one position gives the class.
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from smallfirst.base.errors import ConfigError, MissingExtra
from smallfirst.base.progress import disable_tqdm_in_pipes
from smallfirst.data.dataset import Message


class Tokenizer(Protocol):
    """The part of a tokenizer that turns rows into tokens."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of the model in `folder`. Raise ConfigError if it brings code, or MissingExtra."""
    transformers = import_transformers("Counting tokens", weights=False)
    tokenizer: Tokenizer = load_pretrained(transformers.AutoTokenizer, folder)
    return tokenizer


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


def choose_label_tokens(labels: Sequence[str], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return one token id per label, in order. Raise ConfigError if the vocabulary has too few."""
    words = [_words(label) for label in labels]
    in_labels = Counter(word for label_words in words for word in set(label_words))
    taken: set[int] = set()
    chosen: dict[int, int] = {}
    # Labels whose rarest word occurs in few others choose first, so that fewer fall back to letters.
    for i in sorted(range(len(labels)), key=lambda i: min((in_labels[w] for w in words[i]), default=99)):
        for word in sorted(words[i], key=lambda w: (in_labels[w], words[i].index(w))):
            token = _single_token(word, tokenizer)
            if token is not None and token not in taken:
                chosen[i] = token
                taken.add(token)
                break
    spare = _letter_tokens(tokenizer)
    for i in range(len(labels)):
        while i not in chosen:
            token = next(spare, None)
            if token is None:
                raise ConfigError(f"this tokenizer has too few single-token words for {len(labels)} labels")
            if token not in taken:
                chosen[i] = token
                taken.add(token)
    return tuple(chosen[i] for i in range(len(labels)))


def _words(label: str) -> list[str]:
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", parts) if len(word) > 3]


def _single_token(word: str, tokenizer: Tokenizer) -> int | None:
    ids = tokenizer.encode(f" {word}", add_special_tokens=False)
    # The token for unknown words occurs in prompts as well, and says nothing about a label.
    if len(ids) != 1 or ids[0] == getattr(tokenizer, "unk_token_id", None):
        return None
    return ids[0]


def _letter_tokens(tokenizer: Tokenizer) -> Iterator[int]:
    for length in (1, 2, 3):
        for letters in itertools.product(string.ascii_uppercase, repeat=length):
            token = _single_token("".join(letters), tokenizer)
            if token is not None:
                yield token


def import_transformers(step: str, *, weights: bool = True) -> Any:
    """Return the transformers module, its log lines and progress bars off. Raise MissingExtra naming `step`.

    Without `weights` only tokenizers are wanted, which need no PyTorch.
    """
    disable_tqdm_in_pipes()
    try:
        if weights:
            import torch  # noqa: F401 - transformers imports without it and fails later
        import transformers as module
    except ImportError:
        raise MissingExtra(step, "train" if weights else "serve") from None
    transformers: Any = module  # its functions carry no types
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def load_pretrained(auto_class: Any, folder: Path, **settings: Any) -> Any:
    """Return what a class of transformers loads from `folder`; the only call of `from_pretrained`.

    Nothing is fetched, no code of the folder is run and nobody is asked whether it may. Raise ConfigError if it
    brings code.
    """
    refuse_remote_code(folder)
    return auto_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)


def refuse_remote_code(folder: Path) -> None:
    """Raise ConfigError if the folder holds Python or a configuration that asks to run some."""
    hint = "use a model of a family that transformers itself implements"
    if code := next(folder.glob("*.py"), None):
        raise ConfigError(f"{code} is code, and code that comes with weights is never run", hint=hint)
    for path in folder.glob("*config.json"):
        if '"auto_map"' in path.read_text(encoding="utf-8"):
            raise ConfigError(
                f"{path} names code to run (auto_map), and code that comes with weights is never run", hint=hint
            )
