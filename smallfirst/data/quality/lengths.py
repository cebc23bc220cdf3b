"""Row lengths in tokens, by the base model's tokenizer or estimated from bytes, and every row over the limit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from smallfirst.data.dataset import Dataset, Example
from smallfirst.data.quality.findings import Finding, Severity, find_at, locate
from smallfirst.records import Record

BYTES_PER_TOKEN = 4
"""Of English text under vocabularies of 30,000 to 150,000 tokens, roughly."""


class TokenCounts(Record):
    """The length of every row in tokens."""

    counts: dict[str, tuple[int, ...]]
    """By split, in file order. Training rows with their answer; in other splits what is read to answer them."""
    limit: int
    """Most tokens a row may have (`max_seq_tokens`)."""
    counted_by: str
    """Whose tokenizer counted; empty: guessed from bytes."""


class LengthSummary(Record):
    """The distribution of one split's lengths, in tokens."""

    split: str
    n_rows: int
    median: int
    """Half of the rows are at most this long."""
    p95: int
    """19 of 20 rows are at most this long."""
    longest: int
    total: int
    n_over: int
    limit: int
    counted_by: str


def estimate_token_counts(splits: Mapping[str, Dataset], limit: int) -> TokenCounts:
    """Estimate the lengths from bytes, without a tokenizer."""
    counts = {
        name: tuple(_guess(example, answer=name == "train") for example in data.examples)
        for name, data in splits.items()
    }
    return TokenCounts(counts=counts, limit=limit, counted_by="")


def summarize_lengths(tokens: TokenCounts) -> tuple[LengthSummary, ...]:
    """Summarize each split that has rows. Percentiles are the nearest rank's: a length that a row has."""
    return tuple(
        LengthSummary(
            split=split,
            n_rows=len(counts),
            median=int(np.quantile(counts, 0.5, method="inverted_cdf")),
            p95=int(np.quantile(counts, 0.95, method="inverted_cdf")),
            longest=max(counts),
            total=sum(counts),
            n_over=sum(n > tokens.limit for n in counts),
            limit=tokens.limit,
            counted_by=tokens.counted_by,
        )
        for split, counts in tokens.counts.items()
        if counts
    )


def find_long_rows(splits: Mapping[str, Dataset], tokens: TokenCounts) -> Iterator[Finding]:
    """Yield a finding for each split with rows over the limit, every such row in its places."""
    for name, data in splits.items():
        if name not in tokens.counts:
            continue
        pairs = zip(data.examples, tokens.counts[name], strict=True)
        where = [locate(example, f"has {n:,}") for example, n in pairs if n > tokens.limit]
        level: Severity = "fix"
        if not tokens.counted_by:
            level, rule = "note", "guessed from bytes: fetch the base model and check again to know"
        elif name == "train":
            level, rule = "stop", "rows are never cut in silence: shorten them, drop them, or raise max_seq_tokens"
        else:
            rule = "the small model reads them with their middle cut out: shorten them, or raise max_seq_tokens"
        over = "over" if tokens.counted_by else "probably over"
        yield from find_at(level, f"{name} rows {over} {tokens.limit:,} tokens", rule, where)


def format_lengths(lengths: Sequence[LengthSummary]) -> list[str]:
    """Format the summaries for a terminal; no lines without any."""
    if not lengths:
        return []
    first = lengths[0]
    by = f"counted by {first.counted_by}" if first.counted_by else f"guessed: bytes / {BYTES_PER_TOKEN}"
    wide = max(len(found.split) for found in lengths)
    lines = [f"tokens a row ({by}; limit {first.limit:,})"]
    lines.append("  " + " " * wide + "".join(f"{word:>9}" for word in ("median", "p95", "longest", "over")))
    for found in lengths:
        figures = (found.median, found.p95, found.longest, found.n_over)
        lines.append(f"  {found.split:<{wide}}" + "".join(f"{n:>9,}" for n in figures))
    return lines


def _guess(example: Example, *, answer: bool) -> int:
    said = [message.content for message in example.messages]
    # A label is one token, whatever its name; other answers are written out.
    if answer and example.shape != "label":
        said.append(example.answer)
    return max(1, math.ceil(sum(len(text.encode()) for text in said) / BYTES_PER_TOKEN)) + 2
