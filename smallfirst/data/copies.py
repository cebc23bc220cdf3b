"""Copies among rows: near-duplicates, leaks between splits, and the rows that count as independent observations.

Nearly equal are texts whose word sets have a Jaccard similarity of at least 0.9. That is exact, yet only rows that
share a rare word (Chaudhuri, Ganti and Kaushik 2006) and a part of their words (Arasu, Ganti and Kaushik 2006) are
compared, in arrays. Words in over half of all texts do not count, or a prompt template would make all rows alike. A
language written without spaces is one word per clause.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain

import numpy as np

from smallfirst.base.records import Record, fingerprint
from smallfirst.data.dataset import Dataset, Example, fold_text

MIN_ROWS_FOR_BOILERPLATE = 50
"""Below this many texts, words in most of them are content, not a shared template."""
MAX_EQUAL = 8
"""Sets of so many words that are nearly equal are equal."""
MAX_PARTED = 3
"""Most words that sets differ in which are compared in parts."""
PAIRS_AT_ONCE, _SPLIT_AT_ONCE = 100_000, 10_000
MIN_CLEAN_ROWS = 50
"""Rows without a copy in the training rows that a test needs; half of its rows where it has fewer than 100."""


def clusters(texts: Sequence[str], groups: Sequence[str] | None = None) -> list[int]:
    """Return a cluster number for each row, the index of its first: equal (folded) or nearly equal texts have one.

    So have equal groups; a row of the empty group has none. Clusters that share a row are one.
    """
    from scipy.cluster.hierarchy import DisjointSet

    folded, found = [fold_text(text) for text in texts], DisjointSet(range(len(texts)))
    same, of_group = dict[str, int](), dict[str, int]()
    words, ends = WordNumbers().sets(folded)
    first = _first_of_set(words, ends)
    for i, group in enumerate(groups or ()):
        found.merge(i, of_group.setdefault(group, i) if group else i)
    for i, text in enumerate(folded):
        found.merge(i, same.setdefault(_bare(text), i))
        found.merge(i, first[i])
    for i, j in _similar(words, ends, first):
        found.merge(i, j)
    number: dict[int, int] = {}
    return [number.setdefault(found[i], i) for i in range(len(texts))]


def _first_of_set(words: np.ndarray, ends: np.ndarray) -> list[int]:
    """Return for each text the first one of the same words; itself where no word counts."""
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(_mixed(words + 1))))
    hashed = sums[ends[1:]] - sums[ends[:-1]]
    order = np.argsort(hashed, kind="stable")
    twin = np.diff(hashed[order]) == 0
    alike = np.unique(np.concatenate((order[1:][twin], order[:-1][twin])))
    first, found = dict[bytes, int](), list(range(len(hashed)))
    for i, a, b in zip(alike.tolist(), ends[alike].tolist(), ends[alike + 1].tolist(), strict=True):
        found[i] = first.setdefault(words[a:b].tobytes(), i) if a < b else i
    return found


class WordNumbers:
    """The words of texts by number. Rows that are compared several times are split into words once."""

    def __init__(self) -> None:
        self._number: dict[str, int] = defaultdict(lambda: len(self._number))
        self._known: dict[int, tuple[Dataset, np.ndarray, np.ndarray]] = {}

    def sets_of(self, *parts: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Return the word sets (`sets`) of what all rows ask, those of one part after the other."""
        for data in parts:
            if id(data) not in self._known:
                self._known[id(data)] = (data, *self._numbered([row.folded for row in data.examples]))
        _, ids, sizes = zip(*(self._known[id(data)] for data in parts), strict=True)
        return self._ranked(np.concatenate(ids), np.concatenate(sizes))

    def sets(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the words of all texts that count, by rank from the rarest, (n_words,), and where each text's end.

        The ends, (n_texts + 1,), begin with 0. Of each text they are in ascending order, each once.
        """
        return self._ranked(*self._numbered(texts))

    def _numbered(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the words, each once a text, and how many each text has."""
        found, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, len(texts), _SPLIT_AT_ONCE):
            split = [text.split() for text in texts[start : start + _SPLIT_AT_ONCE]]
            ids = np.fromiter(map(self._number.__getitem__, chain.from_iterable(split)), np.int64)
            row, n = np.repeat(np.arange(len(split)), [len(words) for words in split]), max(1, len(self._number))
            both = np.sort(row * n + ids)
            row, ids = np.divmod(both[np.diff(both, prepend=-1) > 0], n)
            found.append(ids)
            sizes.append(np.bincount(row, minlength=len(split)))
        return np.concatenate(found), np.concatenate(sizes)

    def _ranked(self, ids: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n, n_texts = max(1, len(self._number)), len(sizes)
        n_with = np.bincount(ids, minlength=n)
        rank = np.empty(n, np.int64)
        rank[np.argsort(n_with, kind="stable")] = np.arange(n)
        most = n_texts / 2 if n_texts >= MIN_ROWS_FOR_BOILERPLATE else n_texts
        counts = n_with[ids] <= most
        row, ids = np.divmod(np.sort(np.repeat(np.arange(n_texts), sizes)[counts] * n + rank[ids[counts]]), n)
        return ids, np.searchsorted(row, np.arange(n_texts + 1))


def _similar(
    words: np.ndarray, ends: np.ndarray, rows: Sequence[int], n_known: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of `rows`, the earlier one last, whose word sets have a Jaccard similarity of at least 0.9.

    With `n_known` only pairs of a row before that number and one from there on. Such sets, 19 |a △ b| ≤ |a| + |b|,
    share one of their n - ⌈0.9 n⌉ + 1 rarest words, and are equal in one of d + 1 parts if they differ in d words.
    Pairs that share both are compared.
    """
    size, chosen = np.diff(ends), np.unique(np.array(rows, np.int64))
    chosen = chosen[size[chosen] > MAX_EQUAL]
    if not len(chosen):
        return
    hashed = _mixed(words + 1)
    low, high = ((size + -(-9 * size // 10)) // 19, (size + 10 * size // 9) // 19)  # words that a pair may differ in
    keys, owners = list[np.ndarray](), list[np.ndarray]()
    for d in range(1, MAX_PARTED + 2):
        parted = d <= MAX_PARTED  # the rare words of longer texts are rare enough
        some = chosen[(high[chosen] >= d) & ((low[chosen] <= d) | (not parted))]
        for part in range(d + 1 if parted else 1):
            in_part = np.where((hashed % np.uint64(d + 1) == part) & parted, hashed, np.uint64(0))
            sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(in_part)))
            equal = sums[ends[some + 1]] - sums[ends[some]]
            for k in range(size[some].max(initial=0) // 10 + 1):
                has = size[some] // 10 >= k
                rarest = words[ends[some[has]] + k].astype(np.uint64)
                keys.append(_mixed(_mixed(equal[has] + np.uint64(8 * part + d)) + rarest))
                owners.append(some[has])
    key, owner = np.concatenate(keys), np.concatenate(owners)
    order = np.lexsort((owner, key))
    key, owner, first = key[order], owner[order], np.arange(len(order))
    for offset in range(1, len(order)):
        first = first[first < len(order) - offset]
        first = first[key[first] == key[first + offset]]
        if not len(first):
            return
        old, new = owner[first], owner[first + offset]
        if n_known is not None:
            across = (old < n_known) & (new >= n_known)
            old, new = old[across], new[across]
        for block in range(0, len(old), PAIRS_AT_ONCE):
            a, b = old[block : block + PAIRS_AT_ONCE], new[block : block + PAIRS_AT_ONCE]
            near = 19 * _n_different(words, ends, a, b) <= size[a] + size[b]
            yield from zip(b[near].tolist(), a[near].tolist(), strict=True)


def _n_different(words: np.ndarray, ends: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return for each pair of rows how many words are in one of them alone, (n_pairs,)."""
    both, pair = np.concatenate((a, b)), np.tile(np.arange(len(a)), 2)
    sizes = ends[both + 1] - ends[both]
    places = np.arange(sizes.sum()) + np.repeat(ends[both] - (np.cumsum(sizes) - sizes), sizes)
    found = np.sort(np.repeat(pair, sizes) * (words.max() + 1) + words[places])
    twice = found[1:][found[1:] == found[:-1]] // (words.max() + 1)
    different: np.ndarray = sizes[: len(a)] + sizes[len(a) :] - 2 * np.bincount(twice, minlength=len(a))
    return different


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Return 64 bits of each number that look drawn (splitmix64, Steele, Lea and Flood 2014)."""
    z = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# Leaks: test rows that are also training rows, but for case, punctuation and spacing, or in nine of ten words


FAMILY = "family of "
"""How the group of a row begins that seems to be made from others (`families`)."""


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
    leaks = leaked_rows(train, test, WordNumbers())
    return LeakReport(n_test=len(test), test_fingerprint=test.content_fingerprint, leaks=leaks)


def leaked_rows(train: Dataset, test: Dataset, numbers: WordNumbers) -> tuple[Leak, ...]:
    """Return what `find_leaks` finds, without the fingerprint of all test rows."""
    texts, n = [row.folded for row in (*train.examples, *test.examples)], len(train)
    words, ends = numbers.sets_of(train, test)
    first, same, near = _first_of_set(words, ends), dict[str, int](), dict[int, int]()
    for i, text in enumerate(texts[:n]):
        same.setdefault(_bare(text), i)
    for new, known in _similar(words, ends, first, n):
        near[new] = min(known, near.get(new, known))
    relatives = {row.group: i for i, row in enumerate(train.examples) if row.group.startswith(FAMILY)}
    leaks = []
    for row, text, like in zip(test.examples, texts[n:], first[n:], strict=True):
        found = same.get(_bare(text), like if like < n else near.get(like, relatives.get(row.group)))
        if found is not None:
            leaks.append(Leak(key=row.key, test=row.place, train=train.examples[found].place))
    return tuple(leaks)


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
    of_families: bool = False
    """Groups that were found, not given."""

    @property
    def in_words(self) -> str:
        """One sentence; empty if every row counts."""
        unit = (
            "family of rows made from each other, or text,"
            if self.of_families
            else "group"
            if self.grouped
            else "text, copies and near-copies together"
        )
        reasons = [
            (
                self.n_leaked,
                f"also stand in the training or selection rows{' or are made from them' * self.of_families}",
            ),
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
    leaked = {leak.key for leak in leaked_rows(known, data, WordNumbers())}
    groups = {example.group for example in known.examples if example.group}
    clean = [example for example in data.examples if not leaked or example.key not in leaked]
    own = [example for example in clean if example.group not in groups]
    if any(example.shape == "call" for example in own):  # whole conversations count, by the sums of their calls
        chosen = list(range(len(own)))
    else:
        chosen = independent_rows([e.asked for e in own], groups=[e.group for e in own])
    kept: tuple[Example, ...] = tuple(own[i] for i in chosen)
    found = CountedRows(
        n_rows=len(data),
        n_leaked=len(data) - len(clean),
        n_seen_groups=len(clean) - len(own),
        n_repeats=len(own) - len(kept),
        grouped=any(example.group for example in data.examples),
        of_families=any(example.group.startswith(FAMILY) for example in data.examples),
    )
    return data.subset(data.name, kept), found
