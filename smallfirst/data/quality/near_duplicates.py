"""Near-duplicates between two lists of texts: word sets with a Jaccard similarity of at least 0.9.

Exact, yet only rows under the same rare word are compared (prefix filtering, Chaudhuri, Ganti and Kaushik 2006). A
language written without spaces is one word per clause.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from smallfirst.data.dataset import fold_text

MIN_ROWS_FOR_BOILERPLATE = 50
"""Below this many texts, words in most of them are content, not a shared template."""


def near_duplicates(known: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Return the indices (new, known) of each text of `new` that nearly repeats, but does not equal, one of `known`.

    Words in over half of all texts do not count, or a prompt template would make all rows alike.
    """
    old_texts, new_texts = [fold_text(text) for text in known], [fold_text(text) for text in new]
    rank = _ranks([*old_texts, *new_texts])
    index = WordIndex(rank)
    for text in old_texts:
        index.add(index.words(text))
    same = set(old_texts)
    found = {j: next(index.near(index.words(text)), None) for j, text in enumerate(new_texts) if text not in same}
    return [(j, i) for j, i in found.items() if i is not None]


def clusters(texts: Sequence[str], groups: Sequence[str] | None = None) -> list[int]:
    """Return a cluster number for each row, the index of its first: equal (folded) or nearly equal texts have one.

    So have equal groups; a row of the empty group has none. Clusters that share a row are one.
    """
    from scipy.cluster.hierarchy import DisjointSet

    folded, same, found = [fold_text(text) for text in texts], dict[str, int](), DisjointSet(range(len(texts)))
    of_group: dict[str, int] = {}
    for i, group in enumerate(groups or ()):
        found.merge(i, of_group.setdefault(group, i) if group else i)
    index = WordIndex(_ranks(folded))
    for i, text in enumerate(folded):
        words = index.words(text)
        for j in (same.setdefault(text.replace(" ", ""), i), *index.near(words)):
            found.merge(i, j)
        index.add(words)
    first: dict[int, int] = {}
    return [first.setdefault(found[i], i) for i in range(len(texts))]


class WordIndex:
    """Word sets of texts, by the ranks of their words, found again by their rarest words."""

    def __init__(self, rank: dict[str, int]) -> None:
        self._rank = rank
        self._rows: list[frozenset[int]] = []
        self._by_word: dict[int, list[int]] = defaultdict(list)
        self._first: dict[frozenset[int], int] = {}

    def words(self, text: str) -> frozenset[int]:
        return frozenset(self._rank[word] for word in text.split() if word in self._rank)

    def add(self, words: frozenset[int]) -> None:
        i = len(self._rows)
        self._rows.append(words)
        if self._first.setdefault(words, i) == i:  # one row of each word set is enough to find it
            for word in _rarest(words):
                self._by_word[word].append(i)

    def near(self, words: frozenset[int]) -> Iterator[int]:
        """Yield the rows of a Jaccard similarity of at least 0.9, which is 19 |a △ b| ≤ |a| + |b|."""
        for i in dict.fromkeys(i for word in _rarest(words) for i in self._by_word.get(word, ())):
            if 19 * len(words ^ self._rows[i]) <= len(words) + len(self._rows[i]):
                yield i


def _rarest(words: frozenset[int]) -> Sequence[int]:
    """Return so many words that a similar set must share one of them: n - ⌈0.9 n⌉ + 1."""
    return sorted(words)[: len(words) // 10 + 1]


def _ranks(texts: Sequence[str]) -> dict[str, int]:
    """Return the rank of every word that counts, the rarest having rank 0."""
    n_with = Counter(word for text in texts for word in set(text.split()))
    most = len(texts) / 2 if len(texts) >= MIN_ROWS_FOR_BOILERPLATE else len(texts)
    ordered = sorted(n_with, key=lambda word: (n_with[word], word))
    return {word: rank for rank, word in enumerate(ordered) if n_with[word] <= most}
