"""How right an open answer is: built-in scorers, and those of the entry-point group smallfirst.scorers."""

from __future__ import annotations

import numbers
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from smallfirst.base.errors import ConfigError
from smallfirst.base.extensions import Registry

Scorer = Callable[[str, str, str], float]
"""Question, answer and gold answer to a number in [0, 1]."""

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Return `text` without case, punctuation, articles and spare white space, as SQuAD compares answers.

    Punctuation is dropped: "e-mail" is "email". A text of nothing else stays as it is.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c for c in plain if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", kept).split()) or " ".join(plain.split())


def exact(question: str, answer: str, gold: str) -> float:
    """Return 1 if both are equal after `normalize_answer`, else 0."""
    return float(normalize_answer(answer) == normalize_answer(gold))


def token_f1(question: str, answer: str, gold: str) -> float:
    """Return the F1 of the words of both after `normalize_answer`, with multiplicity (SQuAD's token F1)."""
    said, there = normalize_answer(answer).split(), normalize_answer(gold).split()
    shared = (Counter(said) & Counter(there)).total()
    return 2 * shared / (len(said) + len(there)) if shared else float(said == there)


SCORERS: Registry[Scorer] = Registry(
    "smallfirst.scorers", {name: f"smallfirst.tasks.scorers:{name}" for name in ("exact", "token_f1")}, noun="scorer"
)


@lru_cache
def load_scorer(name: str) -> Scorer:
    """Return the scorer of this name, its results checked. Raise ConfigError if unknown, broken or out of [0, 1]."""
    function, hint = SCORERS.get(name), "fix the function (question, answer, gold) -> float, then evaluate again"

    def checked(question: str, answer: str, gold: str) -> float:
        where = f'for the answer "{answer[:80]}"'
        try:
            value = function(question, answer, gold)
        except Exception as error:
            raise ConfigError(f'scorer "{name}" failed {where}: {type(error).__name__}: {error}', hint=hint) from error
        if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
            raise ConfigError(f'scorer "{name}" returned {value!r} {where}: no number from 0 to 1', hint=hint)
        return float(value)

    return checked


def best_score(scorer: Scorer, golds: Sequence[str], answer: str | None, *, question: str = "") -> float:
    """Return the best score over the gold answers; no answer scores 0."""
    return 0.0 if answer is None else max((scorer(question, answer, gold) for gold in golds), default=0.0)
