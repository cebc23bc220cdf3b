"""One token per label, a word of its name or a combination of letters, so that one position gives the class."""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence

from smallfirst.errors import ConfigError
from smallfirst.models.local.tokenizer import Tokenizer


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
