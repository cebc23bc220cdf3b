"""The passages of a long text that are read: those in which, by their words, a field's value is likeliest.

Each field has a logistic regression on hashed words and pairs of words, figures folded to 0. It learns from where the
values of training rows stand; of several places each counts as much as it is likely, by what was learnt in the round
before. At a thousandth of an
encoder's time a word it reads everything, and the encoder the best passages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import softmax
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from smallfirst.data.dataset import Example, Message
from smallfirst.data.pages import PAGE_BREAK, Span, page_place, passages
from smallfirst.models.protocol import ValuePlace
from smallfirst.models.spans.plan import AnswerPlan, align, learn_plan, parse_row
from smallfirst.tasks.extract import Extract

EXCERPT_WORDS = 300
"""A text of up to so many words is read as a whole; of a longer one so many, of its best passages."""
N_FEATURES = 2**15
MAX_DOCUMENTS = 150
"""From which is learned."""
MIN_LONG = 0.02
"""Share of a task's texts that are long, from which passages are chosen."""
_ROUNDS = 3
INVERSE_REGULARIZATION = 10.0
_FIGURE = re.compile(r"\d")


class Excerpt(NamedTuple):
    """Passages of a text, in its order."""

    text: str
    source: str
    """The text that they are from."""
    pieces: tuple[tuple[int, Span], ...] = ()
    """Of each piece where it begins in the source, and where it stands here; empty: this is the whole source."""

    def place(self, start: int, end: int) -> ValuePlace | None:
        """Return the place in the source of these characters, less outer spaces; None for two pieces or pages."""
        words = self.text[start:end]
        start += len(words) - len(words.lstrip())
        words = words.strip()
        for at, own in self.pieces or ((0, Span(0, len(self.text))),):
            if own.start <= start and start + len(words) <= own.end and words and PAGE_BREAK not in words:
                first = at + start - own.start
                page, offset = page_place(self.source, first)
                last = first + len(words)
                return ValuePlace(message=0, role="user", start=first, end=last, page=page, offset=offset, words=words)
        return None


class PassageRanker:
    """Chooses passages by weights (fields, N_FEATURES + 1), float32, the last one being the bias."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    @classmethod
    def fit(cls, texts: Sequence[str], placed: Sequence[Sequence[tuple[int, Sequence[Span]]]], n: int) -> PassageRanker:
        """Learn `n` fields from texts with, for each value that stands there, its field and its possible places."""
        found = cls(np.zeros((n, N_FEATURES + 1), dtype=np.float32))
        of_text = [passages(text) for text in texts]
        features = found.features([text[a:b] for text, own in zip(texts, of_text, strict=True) for a, b in own])
        firsts = np.cumsum([0, *map(len, of_text)]).tolist()
        for _ in range(_ROUNDS):
            odds, share = found.scores(features), np.zeros((features.shape[0], n))
            for first, own, values in zip(firsts, of_text, placed, strict=False):
                for field, places in values:
                    held = {first + i for i, (a, b) in enumerate(own) for c, d in places if a < d and c < b}
                    if at := sorted(held):
                        share[at, field] = np.maximum(share[at, field], softmax(odds[at, field]))
            found = cls(np.stack([_regression(features, own) for own in share.T]) if n else found.weights)
        return found

    def features(self, texts: Sequence[str]) -> Any:
        """Return a sparse matrix (texts, N_FEATURES)."""
        return self._vectorizer.transform(texts)

    def scores(self, features: Any) -> np.ndarray:
        """Return log-odds (passages, fields) in nats."""
        odds: np.ndarray = features @ self.weights[:, :-1].T + self.weights[:, -1]
        return odds

    def excerpt(self, text: str) -> Excerpt:
        """Return each field's likeliest passages in turn, and the first one, up to EXCERPT_WORDS words."""
        own = passages(text)
        sizes = [len(text[a:b].split()) for a, b in own]
        if sum(sizes) <= EXCERPT_WORDS:
            return Excerpt(text, text)
        odds = self.scores(self.features([text[a:b] for a, b in own]))
        if not odds.shape[1]:  # nothing tells which: the beginning
            odds = -np.arange(len(own))[:, None]
        chosen, n_words = {0}, sizes[0]
        for i in np.argsort(-odds, axis=0, kind="stable").ravel().tolist():
            if i not in chosen and n_words + sizes[i] <= EXCERPT_WORDS:
                chosen.add(i)
                n_words += sizes[i]
        return _joined(text, [own[i] for i in sorted(chosen)])

    @cached_property
    def _vectorizer(self) -> Any:
        return HashingVectorizer(
            n_features=N_FEATURES,
            ngram_range=(1, 2),
            preprocessor=lambda text: _FIGURE.sub("0", text.lower()),
            token_pattern=r"\w+|[^\w\s]",
            alternate_sign=False,
            dtype=np.float32,
        )


class ReadRows(NamedTuple):
    """What a tagger learns from."""

    plan: AnswerPlan
    ranker: PassageRanker | None
    """None where texts are short."""
    examples: tuple[Example, ...]
    """The rows with what is read of each."""


def learn_reading(task: Extract, examples: Sequence[Example]) -> ReadRows:
    """Return what is read of a task's texts and how answers are made of it."""
    ranker, read = _learn_passages(task, examples)
    return ReadRows(learn_plan(task, read), ranker, read)


def _learn_passages(task: Extract, examples: Sequence[Example]) -> tuple[PassageRanker | None, tuple[Example, ...]]:
    n_long = sum(len(example.text.split()) > EXCERPT_WORDS for example in examples)
    if n_long < max(1, MIN_LONG * len(examples)):
        return None, tuple(examples)
    sample = examples[:: math.ceil(len(examples) / MAX_DOCUMENTS)]
    plan, rows = learn_plan(task, sample), [parse_row(example) for example in sample]
    placed = [[(one.field, one.places) for one in align(task, plan, row)] for row in rows]
    ranker = PassageRanker.fit([row.text for row in rows], placed, len(plan.spans))

    def shortened(example: Example) -> Example:
        asked = Message(role="user", content=ranker.excerpt(example.text).text)
        return example.model_copy(update={"messages": (*example.messages[:-1], asked)})

    return ranker, tuple(map(shortened, examples))


def _regression(features: Any, share: np.ndarray) -> np.ndarray:
    """Return weights and bias for passages that hold a value with these probabilities (passages,)."""
    at = np.flatnonzero(share)
    if not len(at):
        return np.zeros(features.shape[1] + 1, dtype=np.float32)
    model = LogisticRegression(solver="liblinear", C=INVERSE_REGULARIZATION)
    gold = np.repeat([0, 1], [len(share), len(at)])
    model.fit(sparse.vstack([features, features[at]]), gold, sample_weight=np.concatenate([1 - share, share[at]]))
    return np.append(model.coef_[0], model.intercept_).astype(np.float32)


def _joined(text: str, own: Sequence[Span]) -> Excerpt:
    """Return the passages as one text; those that follow each other on a page stay together."""
    parts, pieces = list[str](), list[tuple[int, Span]]()
    for start, end in own:
        if pieces and pieces[-1][0] + pieces[-1][1].end - pieces[-1][1].start == start:
            at, last = pieces[-1]
            pieces[-1] = (at, Span(last.start, last.end + end - start))
            parts[-1] += text[start:end]
            continue
        first = pieces[-1][1].end + 1 if pieces else 0
        pieces.append((start, Span(first, first + end - start)))
        parts.append(text[start:end])
    return Excerpt("\n".join(parts), text, tuple(pieces))
