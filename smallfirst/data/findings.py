"""Findings of a data check: each with its severity, the rule, and every place in the files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pydantic

from smallfirst.data.dataset import Example
from smallfirst.files import write_atomically
from smallfirst.records import Record

Severity = Literal["stop", "fix", "note"]
SEVERITIES: tuple[Severity, ...] = ("stop", "fix", "note")
"""Gravest first."""
MAX_SHOWN = 10
"""So many places of a finding are shown."""
FOLDED_NOTE = "case, spacing and punctuation aside"


class Location(NamedTuple):
    """A row that a finding is about."""

    path: str
    """File; empty if the row came from none."""
    line: int
    """Line in it, from 1."""
    words: str
    """Place and what is the matter with it."""


class Finding(Record):
    """One thing seen in the data, its severity, and where."""

    level: Severity
    """stop: training or measuring on it is wrong; fix: better fixed first; note: good to know."""
    what: str
    rule: str
    """Why it matters and what to do."""
    where: tuple[str, ...] = ()
    """The first places, at most 10, as file:line."""
    n: int
    places: tuple[Location, ...] = pydantic.Field(default=(), exclude=True, repr=False)
    """All rows it is about; not part of the JSON, `write_locations` writes them."""


def make_finding(level: Severity, what: str, rule: str, where: Sequence[Location | str] = (), n: int = 0) -> Finding:
    """Return a finding at these places; `n` is their number where not all are given."""
    words = tuple(place if isinstance(place, str) else place.words for place in where)
    places = tuple(place for place in where if isinstance(place, Location))
    return Finding(level=level, what=what, rule=rule, where=words[:MAX_SHOWN], n=n or len(words), places=places)


def find_at(level: Severity, what: str, rule: str, where: Sequence[Location | str]) -> Iterator[Finding]:
    """Yield a finding at these places, with their number behind its words; nothing without a place."""
    if where:
        yield make_finding(level, f"{what}: {len(where):,}", rule, where)


def severity_of(n: int, of: int, *, small: Severity, large: Severity, bar: float) -> Severity:
    """Return `large` if `n` is more than the share `bar` of `of`, else `small`."""
    return large if n > bar * max(of, 1) else small


def file_and_line(example: Example) -> str:
    """Return the row as file:line."""
    return f"{example.path or 'row'}:{example.line}"


def locate(example: Example, words: str) -> Location:
    """Return the row's location with what is wrong with it."""
    return Location(example.path, example.line, f"{file_and_line(example)} {words}")


def write_locations(findings: Iterable[Finding], path: Path) -> int:
    """Write one JSON object a row to `path`, the gravest findings' first; return the number of rows."""
    rows = [
        {"level": found.level, "path": place.path, "line": place.line, "says": place.words, "finding": found.what}
        for found in findings
        for place in found.places
    ]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return len(rows)
