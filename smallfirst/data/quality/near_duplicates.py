"""Near-duplicates between two lists of texts: word sets with a Jaccard similarity of at least 0.9.

Exact, yet only rows under the same rare word are compared (prefix filtering, Chaudhuri, Ganti and Kaushik 2006). A
language written without spaces is one word per clause.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from smallfirst.data.dataset import fold_text

MIN_ROWS_FOR_BOILERPLATE = 50
"""Below this many texts, words in most of them are content, not a shared template."""

_BITS = 1024


class _Words:
    """A set of words by rank, with a bit pattern that rejects unlike sets cheaply."""

    def __init__(self, ranks: frozenset[int]) -> None:
        self.ranks = ranks
        self.bits = 0
        for rank in ranks:
            self.bits |= 1 << rank % _BITS

    def rarest(self) -> Sequence[int]:
        """Return so many words that a similar set must share one of them: n - ⌈0.9 n⌉ + 1."""
        n = len(self.ranks)
        return sorted(self.ranks)[: n // 10 + 1] if n else ()

    def resembles(self, other: _Words) -> bool:
        """Return True if the Jaccard similarity is at least 0.9, which is 19 |a △ b| ≤ |a| + |b|."""
        size = len(self.ranks) + len(other.ranks)
        if 19 * (self.bits ^ other.bits).bit_count() > size:  # each such bit is at least one word
            return False
        return 19 * len(self.ranks ^ other.ranks) <= size


def near_duplicates(known: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Return the indices (new, known) of each text of `new` that nearly repeats, but does not equal, one of `known`.

    Words in over half of all texts do not count, or a prompt template would make all rows alike.
    """
    old_texts, new_texts = [fold_text(text) for text in known], [fold_text(text) for text in new]
    rank = _ranks([*old_texts, *new_texts])
    index = WordIndex(rank)
    for text in old_texts:
        index.add(text)
    pairs, same = [], set(old_texts)
    for j, text in enumerate(new_texts):
        words = index.words(text)
        candidates = () if text in same else index.candidates(words)
        match = next((i for i in candidates if words.resembles(index.rows[i])), None)
        if match is not None:
            pairs.append((j, match))
    return pairs


def near_clusters(texts: Sequence[str], joined: Iterable[tuple[int, int]] = ()) -> list[int]:
    """Return a cluster number for each text, the index of its first: texts that equal or nearly repeat each other.

    `joined` are pairs of indices that are together anyway. Clusters that share a text are one.
    """
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        low, high = sorted((root(i), root(j)))
        parent[high] = low

    folded, first = [fold_text(text) for text in texts], dict[str, int]()
    for pair in joined:
        join(*pair)
    index = WordIndex(_ranks(folded))
    for i, text in enumerate(folded):
        join(i, first.setdefault(text.replace(" ", ""), i))
        words = index.add(text)
        for j in index.candidates(words):
            if root(i) != root(j) and words.resembles(index.rows[j]):
                join(i, j)
    return [root(i) for i in range(len(texts))]


class WordIndex:
    """Word sets of texts, found again by their rarest words."""

    def __init__(self, rank: dict[str, int]) -> None:
        self.rows: list[_Words] = []
        self._rank = rank
        self._by_word: dict[int, list[int]] = defaultdict(list)
        self._first: dict[frozenset[int], int] = {}

    def words(self, text: str) -> _Words:
        return _Words(frozenset(self._rank[w] for w in text.split() if w in self._rank))

    def add(self, text: str) -> _Words:
        i, words = len(self.rows), self.words(text)
        self.rows.append(words)
        if self._first.setdefault(words.ranks, i) == i:  # one row of each word set is enough to find it
            for word in words.rarest():
                self._by_word[word].append(i)
        return words

    def candidates(self, words: _Words) -> Iterable[int]:
        return dict.fromkeys(i for w in words.rarest() for i in self._by_word.get(w, ()))


def _ranks(texts: Sequence[str]) -> dict[str, int]:
    """Return the rank of every word that counts, the rarest having rank 0."""
    n_with = Counter(word for text in texts for word in set(text.split()))
    most = len(texts) / 2 if len(texts) >= MIN_ROWS_FOR_BOILERPLATE else len(texts)
    ordered = sorted(n_with, key=lambda word: (n_with[word], word))
    return {word: rank for rank, word in enumerate(ordered) if n_with[word] <= most}
