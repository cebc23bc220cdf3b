"""Rows that count as independent observations: one a text, near-copy or group, and none that was learnt from.

An exact bound takes its rows for independent draws. Five copies of a text, or ten rows of one template or customer, are
one observation; a row that was trained or chosen on is none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from smallfirst.data.dataset import Dataset, Example
from smallfirst.data.quality.leaks import find_leaks
from smallfirst.data.quality.near_duplicates import clusters
from smallfirst.records import Record, fingerprint


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
    def n_counted(self) -> int:
        return self.n_rows - self.n_leaked - self.n_seen_groups - self.n_repeats

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
        return f"{self.n_counted:,} of {self.n_rows:,} calibration rows count: {'; '.join(given)}" if given else ""


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
