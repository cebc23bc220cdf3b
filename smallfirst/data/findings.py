"""Findings of a data check: each with its severity, the rule, and every place in the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from smallfirst.base.records import Record
from smallfirst.data.dataset import Example

Severity = Literal["stop", "fix", "note"]
SEVERITIES: tuple[Severity, ...] = ("stop", "fix", "note")
"""Gravest first."""
MAX_PLACES = 10_000
"""So many places of a finding are kept."""
FOLDED_NOTE = "case, spacing and punctuation aside"


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


def file_and_line(example: Example) -> str:
    """Return the row as file:line."""
    return f"{example.path or 'row'}:{example.line}"


def locate(example: Example, words: str) -> str:
    """Return the row's place with what is wrong with it."""
    return f"{file_and_line(example)} {words}"
