"""Families: rows made from each other by rewording, a template or a generator, which are right and wrong together.

Of independent rows the distances d to the nearest others grow evenly: k log(d[k+1] / d[k]) has the same exponential
distribution at every rank k (Facco et al. 2017). A family makes a jump behind its last member. Where every row of a
group has just the others before its greatest jump, the group is closed. Of samples of three public sets of requests
at most 7 % of the rows were in closed groups, of rows made from them 39 % or more: so a set is looked at as a whole
first, and only where it has families they are told. Questions that name each disease in one wording count as made.
Words say it, by how rare they are; a rewording that shares none is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from smallfirst.base.progress import one_line
from smallfirst.data.check import Finding, make_finding
from smallfirst.data.copies import FAMILY, independent_rows
from smallfirst.data.dataset import Dataset

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MIN_SHARE = 0.25
"""Rows in closed groups, of all, from which a set has families; chosen on training rows of public sets."""
MIN_ROWS, MAX_ROWS = 200, 20_000
"""Different texts; of fewer or more no families are looked for."""
_MAX_CHARACTERS = 2_000
MOST_RELATIVES = 100
"""Of larger families the members count as rows of several."""
MAX_WORK = 150_000_000
"""Products of words of two rows: the words of most rows are left out where there would be more."""
_NEAR = 0.97
_LEAST = 0.02
"""Distances below are equal."""


def with_families(parts: Sequence[Dataset]) -> tuple[list[Dataset], list[Finding]]:
    """Return the rows, those of a family without a group in one of that name, and a finding if there are families."""
    rows = [example for data in parts for example in data.examples]
    own = [i for i, row in enumerate(rows) if not row.group and row.shape != "call"]
    folded = [rows[i].folded for i in own]
    texts = dict[int, dict[str, int]]()
    for i, text, number in zip(own, folded, find_families(folded), strict=True):
        texts.setdefault(number, {}).setdefault(text, i)
    families = [list(found.values()) for found in texts.values() if len(found) > 1]
    if not families:
        return list(parts), []
    name = {rows[i].folded: f"{FAMILY}{rows[members[0]].place}" for members in families for i in members}
    changed = iter(
        row.model_copy(update={"group": name[row.folded]})
        if not row.group and row.shape != "call" and row.folded in name
        else row
        for row in rows
    )
    named = [data.subset(data.name, tuple(next(changed) for _ in data.examples)) for data in parts]
    n_rows = sum(map(len, families))
    what = f"rows that seem to be made from each other: {n_rows:,} of {len(own):,} are {len(families):,} families"
    rule = (
        "by rewording, a template or a generator: a family stays in one part and counts once in calibration and test; "
        "where a column says what each row was made from, name it (data.columns.group), then smallfirst check task.yaml"
    )
    where = [" and ".join(_shown(rows[i].place, rows[i].text) for i in members[:2]) for members in families]
    return named, [make_finding("fix", what, rule, where)]


def one_of_each(data: Dataset) -> tuple[Dataset, Dataset]:
    """Return the rows with one of each family, and the others."""
    groups = [row.group if row.group.startswith(FAMILY) else f"row {i}" for i, row in enumerate(data.examples)]
    texts = [row.key if row.group.startswith(FAMILY) else f"{i}" for i, row in enumerate(data.examples)]
    kept = set(independent_rows(texts, groups=groups))
    parts = (tuple(row for i, row in enumerate(data.examples) if (i in kept) == own) for own in (True, False))
    first, rest = parts
    return data.subset(data.name, first), data.subset("relatives", rest)


def _shown(place: str, text: str) -> str:
    return f'{place} "{one_line(text, 50)}"'


def find_families(texts: Sequence[str]) -> list[int]:
    """Return the number of each text's family, that of its first text; a text without relatives has its own index.

    Texts are folded; equal ones are one text. Every number is a text's own where the set has no families.
    """
    own = {text: i for i, text in reversed(list(enumerate(texts)))}
    at = np.array(sorted(own.values()), dtype=np.int64)
    first = np.arange(len(texts))
    if MIN_ROWS <= len(at) <= MAX_ROWS:
        numbers = _numbers([texts[i][:_MAX_CHARACTERS] for i in at.tolist()])
        lowest = np.full(numbers.max() + 1, len(texts))
        np.minimum.at(lowest, numbers, at)
        first[at] = lowest[numbers]
    return [int(first[own[text]]) for text in texts]


def _numbers(texts: Sequence[str]) -> np.ndarray:
    """Return a number for each of different texts; those of a family have the same."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    words = _words(texts)
    distance, others = _nearest(words)
    n, n_near = distance.shape
    rank = np.arange(n_near)
    jumps = np.arange(1, n_near) * np.diff(np.log(distance), axis=1)
    size = jumps.argmax(1) + 2
    inside = rank < size[:, None] - 1
    drawn = np.asarray(np.random.default_rng(0).integers(1, 2**63, n, dtype=np.uint64))
    members = np.cumsum(drawn[others], axis=1)[np.arange(n), size - 2] + drawn
    closed = ((members[others] == members[:, None]) | ~inside).all(axis=1)
    if closed.mean() < MIN_SHARE:
        return np.arange(n)
    most = int(np.quantile(size[closed], 0.99))
    # A row whose jump is unclear has the relatives that are as near, by its surroundings, as those in closed groups.
    inside = rank < jumps[:, :most].argmax(1)[:, None] + 1
    around = distance[:, min(n_near - 1, 3 * most)]
    relative = distance / np.sqrt(around[:, None] * around[others])
    near = np.quantile(relative[closed[:, None] & inside], _NEAR)
    linked = (inside | (relative <= near)) & (rank < most)
    pairs = coo_matrix((linked.ravel(), (np.repeat(np.arange(n), n_near), others.ravel())), shape=(n, n)).tocsr()
    found: np.ndarray = connected_components(pairs.multiply(pairs.T), directed=False)[1]
    for number in np.flatnonzero(np.bincount(found) > most).tolist():
        at = np.flatnonzero(found == number)
        found[at] = found.max() + 1 + _parts(words[at], most)
    return found


def _words(texts: Sequence[str]) -> csr_matrix:
    """Return the words of each text, by how rare they are, as rows of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"(?u)\w+", sublinear_tf=True, dtype=np.float32).fit_transform(texts).tocsr()
    n_with = np.bincount(words.indices, minlength=words.shape[1]).astype(np.int64)
    order = np.argsort(n_with, kind="stable")
    rare = order[np.cumsum(n_with[order] ** 2) <= MAX_WORK]
    return words[:, np.sort(rare)]


def _nearest(words: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of each row's nearest others, in ascending order, and their indices."""
    n = words.shape[0]
    n_near = min(MOST_RELATIVES, n // 4)
    distance, others = np.empty((n, n_near), np.float32), np.empty((n, n_near), np.int64)
    columns = words.T.tocsr()
    for start in range(0, n, 500):
        likeness = (words[start : start + 500] @ columns).toarray()
        rows = np.arange(len(likeness))
        likeness[rows, start + rows] = -1
        nearest = np.argpartition(-likeness, n_near, axis=1)[:, :n_near]
        values = np.take_along_axis(likeness, nearest, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        others[start : start + 500] = np.take_along_axis(nearest, order, 1)
        distance[start : start + 500] = 1 - np.take_along_axis(values, order, 1)
    return np.maximum(distance, _LEAST), others


def _parts(words: csr_matrix, most: int) -> np.ndarray:
    """Return a number for each of rows that are linked by others: parts of at most `most`, by average linkage."""
    from scipy.cluster.hierarchy import average

    n = words.shape[0]
    apart = 1 - (words @ words.T).toarray()
    members = {i: [i] for i in range(n)}
    for k, (a, b, _, size) in enumerate(average(np.maximum(apart[np.triu_indices(n, 1)], 0))):
        if int(a) in members and int(b) in members and size <= most:
            members[n + k] = members.pop(int(a)) + members.pop(int(b))
    found = np.empty(n, dtype=np.int64)
    for number, at in enumerate(members.values()):
        found[at] = number
    return found
