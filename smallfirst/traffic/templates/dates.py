"""Dates that a prompt was written on: a slot, though all requests at hand may be of one day."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta

from smallfirst.traffic.templates.template import Template

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = rf"(?:{'|'.join(_MONTHS)})[a-z]*\.?"
_DATE = re.compile(
    r"(?:\b(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?,? )?\b(?:"
    r"(?P<y1>\d{4})[-/.](?P<m1>\d\d?)[-/.](?P<d1>\d\d?)"
    r"|(?P<d2>\d\d?)[-/.](?P<m2>\d\d?)[-/.](?P<y2>\d{4})"
    rf"|(?P<d3>\d\d?)(?:st|nd|rd|th)?\.? (?P<m3>{_MONTH}),? (?P<y3>\d{{4}})"
    rf"|(?P<m4>{_MONTH}) (?P<d4>\d\d?)(?:st|nd|rd|th)?,? (?P<y4>\d{{4}}))(?!\d)",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"[T ,]*(?:at )?\d\d?:\d\d(?::\d\d(?:\.\d+)?)?(?: ?[ap]m)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?", re.IGNORECASE
)
_NEAR = timedelta(days=1)


def with_dates_open(template: Template, first: datetime, last: datetime) -> Template:
    """Return the template with a slot for each date in its constant text that lies within the time of its requests."""
    turns = []
    for turn in template.turns:
        pieces = [part for piece in turn.text.pieces for part in _parts(piece, first.date(), last.date())]
        turns.append(turn.model_copy(update={"text": turn.text.model_copy(update={"pieces": tuple(pieces)})}))
    return template.model_copy(update={"turns": tuple(turns)})


def _parts(piece: str, first: date, last: date) -> Iterator[str]:
    """Yield the text between the dates of this time in a piece."""
    at = 0
    for found in _DATE.finditer(piece):
        if any(first - _NEAR <= day <= last + _NEAR for day in _readings(found)):
            yield piece[at : found.start()]
            time = _TIME.match(piece, found.end())
            at = time.end() if time else found.end()
    yield piece[at:]


def _readings(found: re.Match[str]) -> Iterator[date]:
    """Yield the days that a date may mean: of 03/04/2026 there are two."""
    for i in "1234":
        if year := found[f"y{i}"]:
            month, day = found[f"m{i}"], int(found[f"d{i}"])
            number = int(month) if month.isdigit() else 1 + _MONTHS.index(month[:3].lower())
            for m, d in {(number, day), (day, number)} if month.isdigit() else {(number, day)}:
                try:
                    yield date(int(year), m, d)
                except ValueError:
                    continue
