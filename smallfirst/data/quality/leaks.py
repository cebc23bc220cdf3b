"""Leaks: test rows that are also training rows, letter for letter, folded, or in nine of ten words."""

from __future__ import annotations

from functools import cached_property

from smallfirst.data.dataset import Dataset, Example, fold_text
from smallfirst.data.quality.findings import file_and_line
from smallfirst.data.quality.near_duplicates import near_duplicates
from smallfirst.records import Record

MIN_CLEAN_ROWS = 50
"""Rows without a copy in the training rows that a test needs; half of its rows where it has fewer than 100."""


class Leak(Record):
    """One test row and the training row it repeats."""

    key: str
    test: str
    """The test row as file:line."""
    train: str
    """The first training row that it repeats, as file:line."""


class LeakReport(Record):
    """All test rows found among the training rows, each under the closest kind."""

    n_test: int
    test_fingerprint: str
    exact: tuple[Leak, ...] = ()
    """Asked letter for letter in training."""
    folded: tuple[Leak, ...] = ()
    """The same but for case, punctuation and spacing."""
    near: tuple[Leak, ...] = ()
    """Nine of ten words are the same."""

    @property
    def n_leaked(self) -> int:
        return len(self.exact) + len(self.folded) + len(self.near)

    @property
    def share(self) -> float:
        """Leaked test rows over all test rows, in [0, 1]; 0 without test rows."""
        return self.n_leaked / max(1, self.n_test)

    @cached_property
    def keys(self) -> frozenset[str]:
        """Content keys of the leaked test rows."""
        return frozenset(leak.key for leak in (*self.exact, *self.folded, *self.near))


def min_clean_rows(n_test: int) -> int:
    """Return how many of `n_test` rows must repeat no training row for the others to be judged without them."""
    return min(MIN_CLEAN_ROWS, (n_test + 1) // 2)


def find_leaks(train: Dataset, test: Dataset) -> LeakReport:
    """Return the test rows that ask what a training row asks: exactly, folded, or nearly. Answers are not compared."""
    letter: dict[str, Example] = {}
    alike: dict[str, Example] = {}
    for row in train.examples:
        letter.setdefault(row.asked, row)
        alike.setdefault(_bare(row.asked), row)
    exact, same, others = [], [], []
    for row in test.examples:
        if (earlier := letter.get(row.asked)) is not None:
            exact.append(_leak(row, earlier))
        elif (earlier := alike.get(_bare(row.asked))) is not None:
            same.append(_leak(row, earlier))
        else:
            others.append(row)
    pairs = near_duplicates([row.asked for row in train.examples], [row.asked for row in others])
    return LeakReport(
        n_test=len(test),
        test_fingerprint=test.content_fingerprint,
        exact=tuple(exact),
        folded=tuple(same),
        near=tuple(_leak(others[new], train.examples[known]) for new, known in pairs),
    )


def _bare(text: str) -> str:
    """Return the folded text without a space: "top-up" is "topup", and "what's" is "whats"."""
    return fold_text(text).replace(" ", "")


def _leak(row: Example, earlier: Example) -> Leak:
    return Leak(key=row.key, test=file_and_line(row), train=file_and_line(earlier))
