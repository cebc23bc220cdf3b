"""Copies among rows: near-duplicates, leaks between splits, and the rows that count as independent observations.

Nearly equal are texts whose word sets have a Jaccard similarity of at least 0.9. That is exact, yet only rows under the
same rare word are compared (prefix filtering, Chaudhuri, Ganti and Kaushik 2006). Words in over half of all texts do
not count, or a prompt template would make all rows alike. A language written without spaces is one word per clause.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property

from smallfirst.base.records import Record, fingerprint
from smallfirst.data.dataset import Dataset, Example, fold_text

MIN_ROWS_FOR_BOILERPLATE = 50
"""Below this many texts, words in most of them are content, not a shared template."""
MIN_CLEAN_ROWS = 50
"""Rows without a copy in the training rows that a test needs; half of its rows where it has fewer than 100."""


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
        for j in (same.setdefault(_bare(text), i), *index.near(words)):
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


# Leaks: test rows that are also training rows, but for case, punctuation and spacing, or in nine of ten words


class Leak(Record):
    """One test row and the training row it repeats."""

    key: str
    test: str
    """The test row as file:line."""
    train: str
    """The first training row that it repeats, as file:line."""


class LeakReport(Record):
    """All test rows found among the training rows."""

    n_test: int
    test_fingerprint: str
    leaks: tuple[Leak, ...] = ()

    @property
    def n_leaked(self) -> int:
        return len(self.leaks)

    @property
    def share(self) -> float:
        """Leaked test rows over all test rows, in [0, 1]; 0 without test rows."""
        return self.n_leaked / max(1, self.n_test)

    @cached_property
    def keys(self) -> frozenset[str]:
        """Content keys of the leaked test rows."""
        return frozenset(leak.key for leak in self.leaks)


def min_clean_rows(n_test: int) -> int:
    """Return how many of `n_test` rows must repeat no training row for the others to be judged without them."""
    return min(MIN_CLEAN_ROWS, (n_test + 1) // 2)


def find_leaks(train: Dataset, test: Dataset) -> LeakReport:
    """Return the test rows that ask what a training row asks, or nearly. Answers are not compared."""
    known, new = ([fold_text(row.asked) for row in data.examples] for data in (train, test))
    index, same = WordIndex(_ranks([*known, *new])), dict[str, int]()
    for i, text in enumerate(known):
        same.setdefault(_bare(text), i)
        index.add(index.words(text))
    leaks = []
    for row, text in zip(test.examples, new, strict=True):
        found = same.get(_bare(text))
        found = next(index.near(index.words(text)), None) if found is None else found
        if found is not None:
            leaks.append(Leak(key=row.key, test=row.place, train=train.examples[found].place))
    return LeakReport(n_test=len(test), test_fingerprint=test.content_fingerprint, leaks=tuple(leaks))


def _bare(folded: str) -> str:
    """Return a folded text without a space: "top-up" is "topup", and "what's" is "whats"."""
    return folded.replace(" ", "")


# Independent rows. An exact bound takes its rows for independent draws. Five copies of a text, or ten rows of one
# template or customer, are one observation; a row that was trained or chosen on is none.


class CountedRows(Record):
    """How many rows of a part count, and why the others do not."""

    n_rows: int
    """Rows before any was left out."""
    n_leaked: int = 0
    """Rows that also stand in the training or selection rows, folded or nearly."""
    n_seen_groups: int = 0
    """Other rows of a group that has training or selection rows."""
    n_repeats: int = 0
    """Other rows of a text, near-copy or group of which one row counts already."""
    grouped: bool = False

    @property
    def in_words(self) -> str:
        """One sentence; empty if every row counts."""
        unit = "group" if self.grouped else "text, copies and near-copies together"
        reasons = [
            (self.n_leaked, "also stand in the training or selection rows"),
            (self.n_seen_groups, "are of groups that were trained or chosen on"),
            (self.n_repeats, f"repeat another: one row counts for each {unit}"),
        ]
        given = [f"{n:,} {words}" for n, words in reasons if n]
        n_counted = self.n_rows - sum(n for n, _ in reasons)
        return f"{n_counted:,} of {self.n_rows:,} calibration rows count: {'; '.join(given)}" if given else ""


def independent_rows(texts: Sequence[str], *, groups: Sequence[str] | None = None) -> list[int]:
    """Return the indices, ascending, of one row of each cluster, drawn by a hash that depends on no answer.

    Valid for an exact binomial bound on a request drawn from the clusters.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, cluster in enumerate(clusters(texts, groups)):
        members[cluster].append(i)
    return sorted(min(rows, key=lambda i: fingerprint(["independent", texts[i], i])) for rows in members.values())


def count_rows(seen: Sequence[Dataset], data: Dataset) -> tuple[Dataset, CountedRows]:
    """Return the rows of `data` that count as independent of each other and of the rows `seen`, and the reasons."""
    known = Dataset(name="seen", examples=tuple(example for part in seen for example in part.examples))
    leaked, groups = find_leaks(known, data).keys, {example.group for example in known.examples if example.group}
    clean = [example for example in data.examples if example.key not in leaked]
    own = [example for example in clean if example.group not in groups]
    chosen = independent_rows([e.asked for e in own], groups=[e.group for e in own])
    kept: tuple[Example, ...] = tuple(own[i] for i in chosen)
    found = CountedRows(
        n_rows=len(data),
        n_leaked=len(data) - len(clean),
        n_seen_groups=len(clean) - len(own),
        n_repeats=len(own) - len(kept),
        grouped=any(example.group for example in data.examples),
    )
    return data.subset(data.name, kept), found
