"""Texts of one split that are also in an earlier one, counted four ways from strict to loose (the gate's leaks)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from smallfirst.data.dataset import Dataset, fold_text
from smallfirst.data.quality.findings import (
    FOLDED_NOTE,
    Finding,
    Location,
    Severity,
    file_and_line,
    locate,
    make_finding,
    severity_of,
)
from smallfirst.data.quality.leaks import Leak, find_leaks, min_clean_rows
from smallfirst.records import Record

_MANY = 0.2
"""Share of copies above which the files were perhaps not split as meant."""
OVERLAP_KINDS = ("exact", "case", "folded", "nearly")
"""Strict to loose."""


class Overlap(Record):
    """How many rows of one split ask what rows of an earlier one ask. Answers are not compared."""

    new: str
    """The split whose rows are counted."""
    old: str
    """The earlier split, or several: `train or validation`."""
    n_rows: int
    exact: int
    """Letter for letter."""
    case: int
    """Upper and lower case aside."""
    folded: int
    """Case, spacing and punctuation aside: a run of either parts two words."""
    nearly: int
    """Word breaks aside as well ("top-up" is "topup"), or nine of ten words the same; the gate's leaks."""


SeenKeys = dict[str, frozenset[str]]
"""Content keys of the rows seen before, by kind; each kind holds the one before."""


def find_overlaps(splits: Mapping[str, Dataset]) -> tuple[list[Overlap], list[Finding]]:
    """Return counts and findings for every two splits, and the counts of each split against all before it."""
    overlaps: list[Overlap] = []
    found: list[Finding] = []
    names = list(splits)
    for i, new in enumerate(names):
        seen = {old: _pair(splits[old], splits[new], (old, new), found) for old in names[:i]}
        overlaps += [_overlap([keys], splits[new], new, old) for old, keys in seen.items()]
        if len(seen) > 1:
            overlaps.append(_overlap([*seen.values()], splits[new], new, " or ".join(seen)))
    return overlaps, found


def format_overlaps(overlaps: Sequence[Overlap]) -> list[str]:
    """Format the counts for a terminal; no lines if no text was seen twice."""
    if not any(overlap.nearly for overlap in overlaps):
        return []
    names = [f"  {o.new} in {o.old}" for o in overlaps]
    wide = max(map(len, names))
    lines = ["texts that stand in an earlier split, by what counts as the same (each figure holds the one before)"]
    lines.append(" " * wide + "".join(f"{kind:>9}" for kind in OVERLAP_KINDS) + "       of")
    for name, o in zip(names, overlaps, strict=True):
        lines.append(f"{name:<{wide}}" + "".join(f"{n:>9,}" for n in (o.exact, o.case, o.folded, o.nearly, o.n_rows)))
    return lines


def _overlap(seen: Sequence[SeenKeys], rows: Dataset, new: str, old: str) -> Overlap:
    counts = {
        kind: sum(any(row.key in known[kind] for known in seen) for row in rows.examples) for kind in OVERLAP_KINDS
    }
    return Overlap(new=new, old=old, n_rows=len(rows), **counts)


def _pair(known: Dataset, rows: Dataset, names: tuple[str, str], found: list[Finding]) -> SeenKeys:
    """Return the rows of the second split seen in the first; append the findings to `found`."""
    old, new = names
    leaks = find_leaks(known, rows)
    cased = {example.asked.casefold() for example in known.examples}
    first = {fold_text(example.asked): example for example in reversed(known.examples)}
    twins = [(row, first[key]) for row in rows.examples if (key := fold_text(row.asked)) in first]
    exact = frozenset(leak.key for leak in leaks.exact)
    case = exact | {row.key for row in rows.examples if row.asked.casefold() in cased}
    same = case | {row.key for row, _ in twins}
    level, rule = _judge(len(rows) - leaks.n_leaked, len(rows), names)
    if twins:
        words = f", {len(leaks.exact):,} of them letter for letter" if leaks.exact else ""
        found.append(
            make_finding(
                level,
                f"{len(twins):,} of {len(rows):,} {new} texts are also in {old} ({FOLDED_NOTE}){words}",
                rule,
                [locate(row, f"is {file_and_line(earlier)}") for row, earlier in twins],
            )
        )
    near = [leak for leak in (*leaks.folded, *leaks.near) if leak.key not in same]
    if near:
        found.append(
            make_finding(
                level,
                f"{len(near):,} of {len(rows):,} {new} texts nearly repeat one in {old}",
                f"they differ in word breaks or in 1 of 10 words; {rule}",
                [_nearly(leak) for leak in near],
            )
        )
    return {"exact": exact, "case": case, "folded": same, "nearly": same | leaks.keys}


def _judge(n_clean: int, n: int, names: tuple[str, str]) -> tuple[Severity, str]:
    """Return how grave copies are, and the rule: they are left out where enough other rows are there."""
    old, new = names
    if n_clean < min_clean_rows(n):
        rule = f"an answer learned by heart measures nothing, and only {n_clean:,} other rows are left"
        return "stop", f"{rule} (at least {min_clean_rows(n):,}): take these rows out of {old}"
    level = severity_of(n - n_clean, n, small="note", large="fix", bar=_MANY)
    first = "so many are rarely meant: look how the rows were split" if level == "fix" else "short requests repeat"
    use = "count for the certificate" if new == "validation" else "are judged by the gate" if old == "train" else "do"
    return level, f"{first}; the other {n_clean:,} rows {use}"


def _nearly(leak: Leak) -> Location:
    path, _, line = leak.test.rpartition(":")
    return Location(path, int(line), f"{leak.test} is nearly {leak.train}")
