"""Data check before money is spent: contradictions, leaks between splits, thin classes, long rows.

Every finding says what was seen, the rule, and where, so that it can be mended at once. The price
is a few seconds for ten thousand rows; it compares words, so a leak in other words goes unseen.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from smallfirst.data.dataset import Dataset, Example, folded
from smallfirst.data.near import near_duplicates
from smallfirst.errors import ConfigError
from smallfirst.records import Record

MIN_CLASS_ROWS = 5
"""Fewer rows of a label cannot be learned and measured at once."""
IMBALANCE = 10
"""Largest over smallest class from which the imbalance is worth saying."""
MIN_CERTIFICATE_ROWS = 60
"""Fewer validation rows leave no room for a single error under a 5 % promise."""
PROMISE = 0.05
PLACES = 10

_ALIKE = "case, spacing and punctuation aside"
_SMALL, _LARGE = 0.01, 0.05


class Finding(Record):
    """One thing seen in the data, how grave it is, and where."""

    level: Literal["stop", "fix", "note"]
    """stop: training or measuring on it is wrong; fix: better mended first; note: good to know."""
    what: str
    """What was seen, with its count."""
    rule: str
    """Why it matters and what to do."""
    where: tuple[str, ...] = ()
    """The first places, at most 10, as file:line."""
    n: int
    """How often in all."""


class CheckReport(Record):
    """All findings, gravest first, and how many rows and classes they rest on."""

    findings: tuple[Finding, ...]
    """Gravest first."""
    n_rows: dict[str, int]
    """Rows by split, in the order train, validation, test; only splits that were given."""
    class_counts: dict[str, int]
    """Train rows by label, fewest first; empty if the rows carry no labels."""

    @property
    def verdict(self) -> Literal["GO", "FIX", "NO"]:
        """NO if anything says stop, else FIX if anything should be mended, else GO."""
        levels = {finding.level for finding in self.findings}
        return "NO" if "stop" in levels else "FIX" if "fix" in levels else "GO"


def check(
    train: Dataset,
    *,
    validation: Dataset | None = None,
    test: Dataset | None = None,
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int | None = None,
) -> CheckReport:
    """Everything found in the splits that were given.

    `count_tokens` is called with all that a row says (for label rows the text alone), and the
    row may have at most `max_tokens`. Raises ConfigError if only one of the two is given.
    """
    if (count_tokens is None) != (max_tokens is None):
        raise ConfigError("count_tokens and max_tokens go together: give both or neither")
    given = {"train": train, "validation": validation, "test": test}
    splits = {name: data for name, data in given.items() if data is not None}
    found = [*_emptiness(splits), *_contradictions(splits), *_repeats(train), *_shared(splits)]
    found += [*_classes(train), *_unseen_labels(splits), *_certificate(validation)]
    if count_tokens and max_tokens is not None:
        found += _lengths(splits, count_tokens, max_tokens)
    return CheckReport(
        findings=tuple(sorted(found, key=lambda f: ("stop", "fix", "note").index(f.level))),
        n_rows={name: len(data) for name, data in splits.items()},
        class_counts=_class_counts(train),
    )


def explain(report: CheckReport) -> str:
    """The report for a terminal: verdict and sizes, then each finding with its rule and places."""
    sizes = ", ".join(f"{n:,} {name}" for name, n in report.n_rows.items())
    classes = f", {len(report.class_counts)} labels" if report.class_counts else ""
    lines = [f"{report.verdict}  {sizes} rows{classes}"]
    for finding in report.findings:
        lines += [f"{finding.level:<5} {finding.what}", f"      {finding.rule}"]
        lines += [f"        {place}" for place in finding.where]
        if finding.where and finding.n > len(finding.where):
            lines.append(f"        … and {finding.n - len(finding.where):,} more")
    return "\n".join(lines if report.findings else [*lines, "nothing to mend"])


def _finding(level: str, what: str, rule: str, where: Sequence[str] = (), n: int = 0) -> Finding:
    return Finding.model_validate(
        {
            "level": level,
            "what": what,
            "rule": rule,
            "where": tuple(where[:PLACES]),
            "n": n or len(where),
        }
    )


def _place(example: Example) -> str:
    return f"{example.path or 'row'}:{example.line}"


def _level(n: int, of: int, *, small: str, large: str, bar: float) -> str:
    return large if n > bar * max(of, 1) else small


def _labelled(data: Dataset) -> list[Example]:
    return [example for example in data.examples if example.shape == "label"]


def _class_counts(data: Dataset) -> dict[str, int]:
    counts = Counter(example.answer for example in _labelled(data))
    return dict(sorted(counts.items(), key=lambda item: (item[1], item[0])))


def _by_text(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Rows by what they ask, folded. A system message is not part of it."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[folded(example.asked)].append(example)
    return groups


def _emptiness(splits: dict[str, Dataset]) -> Iterator[Finding]:
    for name, data in splits.items():
        if not data.examples:
            yield _finding("stop", f"no {name} rows", "give rows, or leave the split out", n=1)


def _contradictions(splits: dict[str, Dataset]) -> Iterator[Finding]:
    rows = [example for data in splits.values() for example in data.examples]
    for shape, what in (("label", "labels"), ("prompt", "responses")):
        groups = _by_text(example for example in rows if example.shape == shape)
        torn = [group for group in groups.values() if len({e.answer for e in group}) > 1]
        if not torn:
            continue
        where = [" and ".join(_shown_answer(e) for e in _one_each(group)) for group in torn]
        n_rows = sum(len(group) for group in torn)
        level = _level(n_rows, len(rows), small="fix", large="stop", bar=_LARGE)
        yield _finding(
            level if shape == "label" else "note",
            f"texts with different {what}: {len(torn):,} ({n_rows:,} rows; {_ALIKE})",
            "no model can get both right: settle on one answer for each text",
            where,
        )


def _one_each(group: Sequence[Example]) -> list[Example]:
    """The first row of each of the first three answers."""
    return list({example.answer: example for example in reversed(group)}.values())[::-1][:3]


def _shown_answer(example: Example) -> str:
    answer = " ".join(example.answer.split())
    return f'{_place(example)} "{answer[:40]}{"…" if len(answer) > 40 else ""}"'


def _repeats(train: Dataset) -> Iterator[Finding]:
    first: dict[tuple[str, str], Example] = {}
    where = []
    for example in train.examples:
        earlier = first.setdefault((folded(example.asked), example.answer), example)
        if earlier is not example:
            where.append(f"{_place(example)} repeats {_place(earlier)}")
    if where:
        yield _finding(
            _level(len(where), len(train), small="note", large="fix", bar=_LARGE),
            f"train rows that repeat an earlier one: {len(where):,} ({_ALIKE})",
            "a repeated row only weighs more: keep one of each unless that is meant",
            where,
        )


def _shared(splits: dict[str, Dataset]) -> Iterator[Finding]:
    """Texts of one split that stand, exactly or nearly, in an earlier one."""
    names = list(splits)
    for i, old in enumerate(names):
        for new in names[i + 1 :]:
            known, rows = splits[old].examples, splits[new].examples
            there = _by_text(known)
            pairs = [(row, there[key][0]) for row in rows if (key := folded(row.asked)) in there]
            if pairs:
                yield _finding(
                    _level(len(pairs), len(rows), small="fix", large="stop", bar=_SMALL),
                    f"{len(pairs):,} of {len(rows):,} {new} texts are also in {old} ({_ALIKE})",
                    f"an answer learned by heart measures nothing: take these rows out of {old}",
                    [f"{_place(row)} is {_place(earlier)}" for row, earlier in pairs],
                )
            near = near_duplicates([e.asked for e in known], [e.asked for e in rows])
            if near:
                yield _finding(
                    _level(len(near), len(rows), small="note", large="fix", bar=_LARGE),
                    f"{len(near):,} of {len(rows):,} {new} texts nearly repeat one in {old}",
                    "9 of 10 words are the same, so the score may flatter: look, and drop copies",
                    [f"{_place(rows[j])} is nearly {_place(known[k])}" for j, k in near],
                )


def _classes(train: Dataset) -> Iterator[Finding]:
    counts = _class_counts(train)
    if not counts:
        return
    if len(counts) == 1:
        rule = "a classifier needs at least two labels to tell apart"
        yield _finding("stop", f'one label only: "{next(iter(counts))}"', rule, n=1)
    if thin := [f'"{label}": {n}' for label, n in counts.items() if n < MIN_CLASS_ROWS]:
        rule = f"at least {MIN_CLASS_ROWS} rows a label: add rows, or merge labels"
        yield _finding("fix", f"labels with too few train rows: {len(thin):,}", rule, thin)
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[most] >= IMBALANCE * counts[fewest]:
        what = f'"{most}" has {counts[most]:,} train rows, "{fewest}" has {counts[fewest]:,}'
        yield _finding("note", what, "rare labels will be answered worst: look at each, not at the mean", n=1)
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        spellings[folded(label)].append(label)
    if twins := [" and ".join(f'"{x}"' for x in same) for same in spellings.values() if len(same) > 1]:
        what = f"labels spelt in several ways: {len(twins):,} ({_ALIKE})"
        yield _finding("fix", what, "each spelling counts as a label of its own: keep one", twins)


def _unseen_labels(splits: dict[str, Dataset]) -> Iterator[Finding]:
    known = _class_counts(splits["train"])
    for name, data in splits.items():
        unseen = {e.answer: e for e in reversed(_labelled(data)) if e.answer not in known}
        if name != "train" and unseen:
            yield _finding(
                "stop",
                f"{name} labels without a train row: {len(unseen):,}",
                "a label that was never shown cannot be answered: add train rows, or drop it",
                [_shown_answer(example) for example in reversed(unseen.values())],
            )


def _certificate(validation: Dataset | None) -> Iterator[Finding]:
    n = len(validation) if validation else 0
    if n < MIN_CERTIFICATE_ROWS:
        from smallfirst.stats import (
            rows_needed,
        )  # scipy: half a second that a failing load never pays

        yield _finding(
            "note",
            f"validation rows: {n}, too few to promise at most {PROMISE:.0%} errors",
            f"that takes at least {rows_needed(0.0, PROMISE)} labels with no error among them",
            n=n,
        )


def _lengths(splits: dict[str, Dataset], count_tokens: Callable[[str], int], max_tokens: int) -> Iterator[Finding]:
    for name, data in splits.items():
        where = []
        for example in data.examples:
            said = [m.content for m in example.messages]
            n = count_tokens("\n".join(said if example.shape == "label" else [*said, example.answer]))
            if n > max_tokens:
                where.append(f"{_place(example)} has {n:,}")
        if where:
            yield _finding(
                "stop",
                f"{name} rows over {max_tokens:,} tokens: {len(where):,}",
                "rows are never cut in silence: shorten them, drop them, or raise the limit",
                where,
            )
