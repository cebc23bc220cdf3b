"""Check the rows before money is spent: contradictions, leaks between splits, thin classes, long rows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal

from smallfirst.base.progress import ProgressCallback, no_progress
from smallfirst.base.records import Record
from smallfirst.data.copies import FAMILY, WordNumbers, leaked_rows, min_clean_rows
from smallfirst.data.dataset import Dataset, Example, fold_text

Severity = Literal["stop", "fix", "note"]
SEVERITIES: tuple[Severity, ...] = ("stop", "fix", "note")
"""Gravest first."""
MAX_PLACES = 10_000
"""So many places of a finding are kept."""
FOLDED_NOTE = "case, spacing and punctuation aside"
COPIES_NOTE = f"{FOLDED_NOTE}, or 1 of 10 words, or made from each other"


class Finding(Record):
    """One thing seen in the data, its severity, and where."""

    level: Severity
    """stop: training or measuring on it is wrong; fix: better fixed first; note: good to know."""
    what: str
    rule: str
    """Why it matters and what to do."""
    where: tuple[str, ...] = ()
    """Its places, each as file:line and what is the matter there."""
    n: int


def make_finding(level: Severity, what: str, rule: str, where: Sequence[str] = (), n: int = 0) -> Finding:
    """Return a finding at these places; `n` is their number where not all are given."""
    return Finding(level=level, what=what, rule=rule, where=tuple(where[:MAX_PLACES]), n=n or len(where))


def find_at(level: Severity, what: str, rule: str, where: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding at these places, with their number behind its words; nothing without a place."""
    if where:
        yield make_finding(level, f"{what}: {len(where):,}", rule, where)


def severity_of(n: int, of: int, *, small: Severity, large: Severity, bar: float) -> Severity:
    """Return `large` if `n` is more than the share `bar` of `of`, else `small`."""
    return large if n > bar * max(of, 1) else small


def joined_by(labels: Iterable[str]) -> str:
    """Return the character that joins several labels in some of these, such as "|" in Login|Refund; empty if none does.

    Taken apart they are fewer, and short.
    """
    different = set(labels)
    for separator in "|;,":
        parts = {part.strip() for label in different for part in label.split(separator)}
        if "" not in parts and len(parts) < len(different) and max(map(len, parts)) <= MAX_LABEL:
            return separator
    return ""


# The check

MAX_LABEL = 80
"""Characters of a label, at most, where labels are told from texts."""
MIN_CLASS_ROWS = 5
"""Fewer rows of a label cannot be learned and measured at once."""
MAX_IMBALANCE = 10
"""Largest over smallest class from which the imbalance is worth saying."""

MAX_SHOWN = 10
"""So many places of a finding are shown on a terminal."""
BYTES_PER_TOKEN = 4
"""Of English text under vocabularies of 30,000 to 150,000 tokens, roughly."""
_LARGE = 0.05
_MANY_COPIES = 0.2
"""Share of copies above which the files were perhaps not split as meant."""
_REPEATS_RULE = {
    "train": "a repeated row only weighs more: keep one of each unless that is meant",
    "validation": "the certificate counts one row of each text: repeats show nothing more",
    "test": "intervals take rows for independent, so they are too narrow: keep one of each",
}


class TokenCounts(Record):
    """The length of every row in tokens."""

    counts: dict[str, tuple[int, ...]]
    """By split, in file order. Training rows with their answer; in other splits what is read to answer them."""
    limit: int
    """Most tokens a row may have (`max_seq_tokens`)."""
    counted_by: str
    """Whose tokenizer counted; empty: guessed from bytes."""


class CheckReport(Record):
    """All findings, gravest first, and how many rows and classes they rest on."""

    findings: tuple[Finding, ...]
    n_rows: dict[str, int]
    """Rows by split, in the order train, validation, test; only splits that were given."""
    class_counts: dict[str, int]
    """Train rows by label, fewest first; empty if the rows carry no labels."""

    @property
    def verdict(self) -> Literal["GO", "FIX", "NO"]:
        """NO if anything says stop, else FIX if anything should be fixed, else GO."""
        levels = {finding.level for finding in self.findings}
        return "NO" if "stop" in levels else "FIX" if "fix" in levels else "GO"

    def with_findings(self, more: Iterable[Finding]) -> CheckReport:
        return self.model_copy(update={"findings": _gravest_first([*self.findings, *more])})


def check(
    train: Dataset,
    *,
    validation: Dataset | None = None,
    test: Dataset | None = None,
    tokens: TokenCounts | None = None,
    progress: ProgressCallback = no_progress,
) -> CheckReport:
    """Return everything found in the given splits; `tokens` are the lengths of their rows, if known."""
    given = {"train": train, "validation": validation, "test": test}
    splits = {name: data for name, data in given.items() if data is not None}
    words = WordNumbers()
    checks = [
        _emptiness(splits),
        _contradictions(splits),
        _repeats(splits),
        _straddling_groups(splits),
        _models_labels(splits),
        *(_copies(splits, old, new, words) for old, new in combinations(splits, 2)),
        _classes(train),
        _unseen_labels(splits),
        *([_long_rows(splits, tokens)] if tokens else ()),
    ]
    found = list[Finding]()
    for n_done, one in enumerate(checks):
        progress(n_done, len(checks))
        found += one
    return CheckReport(
        findings=_gravest_first(found),
        n_rows={name: len(data) for name, data in splits.items()},
        class_counts=_class_counts(train),
    )


def format_report(report: CheckReport) -> str:
    """Format the report for a terminal: verdict and sizes, each finding with its rule and places."""
    sizes = ", ".join(f"{n:,} {name}" for name, n in report.n_rows.items())
    classes = f", {len(report.class_counts)} labels" if report.class_counts else ""
    lines = [f"{report.verdict}  {sizes} rows{classes}"]
    for found in report.findings:
        lines += [f"{found.level:<5} {found.what}", f"      {found.rule}"]
        lines += [f"        {place}" for place in found.where[:MAX_SHOWN]]
        if found.where and found.n > MAX_SHOWN:
            lines.append(f"        … and {found.n - MAX_SHOWN:,} more (--json names all)")
    if not report.findings:
        lines.append("no findings")
    return "\n".join(lines)


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
        groups[example.folded].append(example)
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


def _torn(group: Sequence[Example]) -> str:
    first = list({example.answer: example for example in reversed(group)}.values())[::-1][:3]
    return " and ".join(_shown_answer(example) for example in first)


def _shown_answer(example: Example) -> str:
    answer = " ".join(example.answer.split())
    return f'{example.place} "{answer[:40]}{"…" if len(answer) > 40 else ""}"'


def _repeats(splits: Mapping[str, Dataset]) -> Iterator[Finding]:
    for name, data in splits.items():
        first: dict[tuple[str, str], Example] = {}
        where = []
        for example in data.examples:
            # To train on, another answer makes another row; a held-out text is one observation.
            answer = example.answer if name == "train" else ""
            earlier = first.setdefault((example.folded, answer), example)
            if earlier is not example:
                where.append(f"{example.place} repeats {earlier.place}")
        if where:
            level = severity_of(len(where), len(data), small="note", large="fix", bar=_LARGE)
            what = f"{name} rows that repeat an earlier one: {len(where):,} ({FOLDED_NOTE})"
            yield make_finding(level, what, _REPEATS_RULE[name], where)


def _straddling_groups(splits: Mapping[str, Dataset]) -> Iterator[Finding]:
    seen: dict[str, tuple[str, Example]] = {}
    for name, data in splits.items():
        where = []
        for example in data.examples:
            earlier, other = seen.setdefault(example.group, (name, example))
            if example.group and earlier != name and not example.group.startswith(FAMILY):
                where.append(f'{example.place} is of group "{example.group[:40]}", as {other.place} in {earlier}')
        level: Severity = "fix" if name == "validation" else "stop"
        rule = "keep each group in one split; without a file of this split, the training file is split by group"
        yield from find_at(level, f"{name} rows of a group of an earlier split", rule, where)


def _models_labels(splits: Mapping[str, Dataset]) -> Iterator[Finding]:
    for name, data in splits.items():
        answered = [example for example in data.examples if example.source and name != "train"]
        where = [f"{example.place} was answered by {example.source}" for example in answered]
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
    if separator := joined_by(counts):
        what = f'labels that seem to be several, joined by "{separator}"'
        rule = "lists of labels are several labels a text: smallfirst init makes them from such a column"
        yield make_finding("note", what, rule, [f'"{label}": {n}' for label, n in counts.items() if separator in label])
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
        n_rows = sum(example.answer in unseen for example in _labelled(data))
        where = [_shown_answer(example) for example in reversed(unseen.values())]
        rule = f"no model learns a label without an example, so {n_rows:,} {name} rows count as errors: add train rows"
        yield from find_at("fix", f"{name} labels without a train row", rule, where)


def _copies(splits: Mapping[str, Dataset], old: str, new: str, words: WordNumbers) -> Iterator[Finding]:
    """Yield a finding if the split `new` asks what the split `old` asks."""
    rows, leaks = splits[new], leaked_rows(splits[old], splits[new], words)
    if leaks:
        level, rule = _judge_copies(len(rows) - len(leaks), len(rows), old, new)
        where = [f"{leak.test} is {leak.train}" for leak in leaks]
        what = f"{len(leaks):,} of {len(rows):,} {new} texts are also in {old} ({COPIES_NOTE})"
        yield make_finding(level, what, rule, where)


def _judge_copies(n_clean: int, n: int, old: str, new: str) -> tuple[Severity, str]:
    """Return how grave copies are, and the rule: they are left out where enough other rows are there."""
    if n_clean < min_clean_rows(n):
        rule = f"an answer learned by heart measures nothing, and only {n_clean:,} other rows are left"
        return "stop", f"{rule} (at least {min_clean_rows(n):,}): take these rows out of {old}"
    level = severity_of(n - n_clean, n, small="note", large="fix", bar=_MANY_COPIES)
    first = "so many are rarely meant: look how the rows were split" if level == "fix" else "short requests repeat"
    use = "count for the certificate" if new == "validation" else "are judged by the gate" if old == "train" else "do"
    return level, f"{first}; the other {n_clean:,} rows {use}"


# Lengths


def estimate_token_counts(splits: Mapping[str, Dataset], limit: int) -> TokenCounts:
    """Estimate the lengths from bytes, without a tokenizer."""

    def guess(example: Example, *, answer: bool) -> int:
        said = [message.content for message in example.messages]
        # A label is one token, whatever its name; other answers are written out.
        said += [example.answer] * (answer and example.shape != "label")
        return max(1, math.ceil(sum(len(text.encode()) for text in said) / BYTES_PER_TOKEN)) + 2

    counts = {name: tuple(guess(e, answer=name == "train") for e in data.examples) for name, data in splits.items()}
    return TokenCounts(counts=counts, limit=limit, counted_by="")


def _long_rows(splits: Mapping[str, Dataset], tokens: TokenCounts) -> Iterator[Finding]:
    """Yield a finding for each split with rows over the limit, every such row in its places."""
    for name in (name for name in splits if name in tokens.counts):
        pairs = zip(splits[name].examples, tokens.counts[name], strict=True)
        where = [f"{example.place} has {n:,}" for example, n in pairs if n > tokens.limit]
        level: Severity = "fix"
        if not tokens.counted_by:
            level, rule = "note", "guessed from bytes: fetch the base model and check again to know"
        elif name == "train":
            level, rule = "stop", "rows are never cut in silence: shorten them, drop them, or raise max_seq_tokens"
        else:
            rule = "the small model reads them with their middle cut out: shorten them, or raise max_seq_tokens"
        over = "over" if tokens.counted_by else "probably over"
        yield from find_at(level, f"{name} rows {over} {tokens.limit:,} tokens", rule, where)
