"""Check the rows before money is spent: contradictions, leaks between splits, thin classes, long rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from smallfirst.data.dataset import Dataset, Example, fold_text
from smallfirst.data.quality import lengths, overlaps
from smallfirst.data.quality.findings import (
    FOLDED_NOTE,
    SEVERITIES,
    Finding,
    Location,
    Severity,
    file_and_line,
    find_at,
    locate,
    make_finding,
    severity_of,
)
from smallfirst.data.quality.lengths import LengthSummary, TokenCounts
from smallfirst.data.quality.overlaps import Overlap
from smallfirst.records import Record

MIN_CLASS_ROWS = 5
"""Fewer rows of a label cannot be learned and measured at once."""
MAX_IMBALANCE = 10
"""Largest over smallest class from which the imbalance is worth saying."""

_LARGE = 0.05
_REPEATS_RULE = {
    "train": "a repeated row only weighs more: keep one of each unless that is meant",
    "validation": "the certificate counts one row of each text: repeats show nothing more",
}


class CheckReport(Record):
    """All findings, gravest first, and how many rows and classes they rest on."""

    findings: tuple[Finding, ...]
    n_rows: dict[str, int]
    """Rows by split, in the order train, validation, test; only splits that were given."""
    class_counts: dict[str, int]
    """Train rows by label, fewest first; empty if the rows carry no labels."""
    overlaps: tuple[Overlap, ...] = ()
    """Texts of each split that stand in an earlier one, by what counts as the same."""
    lengths: tuple[LengthSummary, ...] = ()
    """Tokens a row by split; empty if they were not counted."""

    @property
    def verdict(self) -> Literal["GO", "FIX", "NO"]:
        """NO if anything says stop, else FIX if anything should be fixed, else GO."""
        levels = {finding.level for finding in self.findings}
        return "NO" if "stop" in levels else "FIX" if "fix" in levels else "GO"

    def with_findings(self, more: Iterable[Finding]) -> CheckReport:
        return self.model_copy(update={"findings": _gravest_first([*self.findings, *more])})


def check(
    train: Dataset, *, validation: Dataset | None = None, test: Dataset | None = None, tokens: TokenCounts | None = None
) -> CheckReport:
    """Return everything found in the given splits; `tokens` are the lengths of their rows, if known."""
    given = {"train": train, "validation": validation, "test": test}
    splits = {name: data for name, data in given.items() if data is not None}
    seen, shared = overlaps.find_overlaps(splits)
    found = [
        *_emptiness(splits),
        *_contradictions(splits),
        *_repeats(splits),
        *_straddling_groups(splits),
        *_models_labels(splits),
        *shared,
    ]
    found += [*_classes(train), *_unseen_labels(splits)]
    found += lengths.find_long_rows(splits, tokens) if tokens else []
    return CheckReport(
        findings=_gravest_first(found),
        n_rows={name: len(data) for name, data in splits.items()},
        class_counts=_class_counts(train),
        overlaps=tuple(seen),
        lengths=lengths.summarize_lengths(tokens) if tokens else (),
    )


def format_report(report: CheckReport) -> str:
    """Format the report for a terminal: verdict and sizes, each finding with its rule and places, overlaps, lengths."""
    sizes = ", ".join(f"{n:,} {name}" for name, n in report.n_rows.items())
    classes = f", {len(report.class_counts)} labels" if report.class_counts else ""
    lines = [f"{report.verdict}  {sizes} rows{classes}"]
    for found in report.findings:
        lines += [f"{found.level:<5} {found.what}", f"      {found.rule}"]
        lines += [f"        {place}" for place in found.where]
        if found.where and found.n > len(found.where):
            lines.append(f"        … and {found.n - len(found.where):,} more")
    if not report.findings:
        lines.append("no findings")
    return "\n".join([*lines, *overlaps.format_overlaps(report.overlaps), *lengths.format_lengths(report.lengths)])


def _gravest_first(found: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda f: SEVERITIES.index(f.level)))


def _labelled(data: Dataset) -> list[Example]:
    return [example for example in data.examples if example.shape == "label"]


def _class_counts(data: Dataset) -> dict[str, int]:
    counts = Counter(example.answer for example in _labelled(data))
    return dict(sorted(counts.items(), key=lambda item: (item[1], item[0])))


def _by_text(examples: Iterable[Example]) -> dict[str, list[Example]]:
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[fold_text(example.asked)].append(example)
    return groups


def _emptiness(splits: dict[str, Dataset]) -> Iterator[Finding]:
    for name, data in splits.items():
        if not data.examples:
            rule = "too few rows to split some off: add rows, or name a file that has some"
            yield make_finding("stop", f"no {name} rows", rule, n=1)


def _contradictions(splits: dict[str, Dataset]) -> Iterator[Finding]:
    rows = [example for data in splits.values() for example in data.examples]
    for shape, what in (("label", "labels"), ("prompt", "responses")):
        groups = _by_text(example for example in rows if example.shape == shape)
        torn = [group for group in groups.values() if len({e.answer for e in group}) > 1]
        if not torn:
            continue
        n_rows = sum(len(group) for group in torn)
        level = severity_of(n_rows, len(rows), small="fix", large="stop", bar=_LARGE)
        yield make_finding(
            level if shape == "label" else "note",
            f"texts with different {what}: {len(torn):,} ({n_rows:,} rows; {FOLDED_NOTE})",
            "no model can get both right: settle on one answer for each text",
            [_torn(group) for group in torn],
        )


def _torn(group: Sequence[Example]) -> Location:
    first = list({example.answer: example for example in reversed(group)}.values())[::-1][:3]
    words = " and ".join(_shown_answer(example) for example in first)
    return Location(first[0].path, first[0].line, words)


def _shown_answer(example: Example) -> str:
    answer = " ".join(example.answer.split())
    return f'{file_and_line(example)} "{answer[:40]}{"…" if len(answer) > 40 else ""}"'


def _repeats(splits: Mapping[str, Dataset]) -> Iterator[Finding]:
    for name, data in splits.items():
        first: dict[tuple[str, str], Example] = {}
        where = []
        for example in data.examples:
            # To train on, another answer makes another row; a held-out text is one observation.
            answer = example.answer if name == "train" else ""
            earlier = first.setdefault((fold_text(example.asked), answer), example)
            if earlier is not example:
                where.append(locate(example, f"repeats {file_and_line(earlier)}"))
        if where:
            yield make_finding(
                severity_of(len(where), len(data), small="note", large="fix", bar=_LARGE),
                f"{name} rows that repeat an earlier one: {len(where):,} ({FOLDED_NOTE})",
                _REPEATS_RULE.get(
                    name, "intervals take rows for independent, so they are too narrow: keep one of each"
                ),
                where,
            )


def _straddling_groups(splits: Mapping[str, Dataset]) -> Iterator[Finding]:
    seen: dict[str, tuple[str, Example]] = {}
    for name, data in splits.items():
        where = []
        for example in data.examples:
            earlier, other = seen.setdefault(example.group, (name, example))
            if example.group and earlier != name:
                where.append(
                    locate(example, f'is of group "{example.group[:40]}", as {file_and_line(other)} in {earlier}')
                )
        level: Severity = "fix" if name == "validation" else "stop"
        rule = "keep each group in one split; without a file of this split, the training file is split by group"
        yield from find_at(level, f"{name} rows of a group of an earlier split", rule, where)


def _models_labels(splits: Mapping[str, Dataset]) -> Iterator[Finding]:
    for name, data in splits.items():
        answered = [example for example in data.examples if example.source and name != "train"]
        where = [locate(example, f"was answered by {example.source}") for example in answered]
        rule = "figures on them say how far a model agrees with that model, not how far it is right"
        yield from find_at("fix", f"{name} rows that a model labelled", rule, where)


def _classes(train: Dataset) -> Iterator[Finding]:
    counts = _class_counts(train)
    if not counts:
        return
    if len(counts) == 1:
        rule = "a classifier needs at least two labels to tell apart"
        yield make_finding("stop", f'one label only: "{next(iter(counts))}"', rule, n=1)
    thin = [f'"{label}": {n}' for label, n in counts.items() if n < MIN_CLASS_ROWS]
    rule = f"at least {MIN_CLASS_ROWS} rows a label: add rows, or merge labels"
    yield from find_at("fix", "labels with too few train rows", rule, thin)
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[most] >= MAX_IMBALANCE * counts[fewest]:
        what = f'"{most}" has {counts[most]:,} train rows, "{fewest}" has {counts[fewest]:,}'
        yield make_finding("note", what, "rare labels will be answered worst: look at each, not at the mean", n=1)
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        spellings[fold_text(label)].append(label)
    if twins := [" and ".join(f'"{x}"' for x in same) for same in spellings.values() if len(same) > 1]:
        what = f"labels spelt in several ways: {len(twins):,} ({FOLDED_NOTE})"
        yield make_finding("fix", what, "each spelling counts as a label of its own: keep one", twins)


def _unseen_labels(splits: dict[str, Dataset]) -> Iterator[Finding]:
    known = _class_counts(splits["train"])
    for name, data in splits.items():
        unseen = {e.answer: e for e in reversed(_labelled(data)) if e.answer not in known}
        where = [Location(e.path, e.line, _shown_answer(e)) for e in reversed(unseen.values())]
        rule = "a label that was never shown cannot be answered: add train rows, or drop it"
        yield from find_at("stop", f"{name} labels without a train row", rule, where)
