"""Days in English words, against a stated day: "next Friday", "the 14th", "March 3rd" as ISO dates.

The stated day is what the instructions say ("Today is Friday, 2019-03-01"). A weekday is the next such day after it,
"this Friday" said on a Friday that day; "Friday next week" lies in the week that begins with the next Monday. A day or
month without a year is the next one that has not passed.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator

from smallfirst.models.spans.values import NUMBER_WORDS as _WORDS
from smallfirst.models.spans.values import reads
from smallfirst.tasks.value_matching import MONTHS, lowered

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth", "thirteenth", "fourteenth", "fifteenth",
)  # fmt: skip
_TODAY = re.compile(
    r"\b(?:today|now|current (?:date|day)|date|heute|aujourd|hoy|oggi|hoje|vandaag|dziś|dzisiaj|idag|i dag)\b[^.;\n]*$"
    r"|今日[^。\n]*$",
    re.IGNORECASE,
)
"""What names the day of a conversation, up to its date."""
_NEAR = re.compile(r"\b(day after tomorrow|tomorrow|today|tonight)\b")
_WEEKDAY = re.compile(rf"\b(?:(next|this|coming) )?(week )?({'|'.join(_DAYS)})\b( next week)?")
_IN = re.compile(rf"\bin (\d{{1,3}}|an?|{'|'.join(_WORDS[1:])}) (day|week)s?\b")
_MONTH = rf"\b(?P<month>{'|'.join(sorted(MONTHS, key=len, reverse=True))})\b\.?"
_NUMBER = rf"(?P<day>\d{{1,2}}|{'|'.join(_ORDINALS)})(?:st|nd|rd|th)?"
_OF_MONTH = (
    re.compile(rf"\b{_MONTH} (?:the )?{_NUMBER}\b(?!,? \d{{4}})"),
    re.compile(rf"\b(?:the )?{_NUMBER} (?:of )?{_MONTH}\b(?!,? \d{{4}})"),
)
_OF_THIS_MONTH = (
    re.compile(rf"\bthe (?P<day>{'|'.join(_ORDINALS)})\b"),
    re.compile(r"\b(?P<day>\d{1,2})(?:st|nd|rd|th)\b"),
)


def stated_day(text: str) -> dt.date | None:
    """Return the date that a text says today is, else its only date; None if it has none or several."""
    found = sorted(reads(text, "date"))
    said = [day for start, _, day in found if _TODAY.search(text[max(0, start - 60) : start])]
    days = said[:1] or sorted({day for *_, day in found})
    return dt.date.fromisoformat(days[0]) if len(days) == 1 else None


def days_in(text: str, today: dt.date | None) -> Iterator[tuple[int, int, str]]:
    """Yield start, end (excluded) and ISO date of every day that the text names; without `today` of whole dates."""
    yield from reads(text, "date")
    if today is not None:
        for start, end, day in (*_near(lowered(text), today), *_of_months(lowered(text), today)):
            yield start, end, day.isoformat()


def _near(low: str, today: dt.date) -> Iterator[tuple[int, int, dt.date]]:
    for found in _NEAR.finditer(low):
        yield *found.span(), today + dt.timedelta({"day after tomorrow": 2, "tomorrow": 1}.get(found[1], 0))
    for found in _IN.finditer(low):
        n = 1 if found[1] in ("a", "an") else _WORDS.index(found[1]) if found[1] in _WORDS else int(found[1])
        yield *found.span(), today + dt.timedelta(n * (7 if found[2] == "week" else 1))
    for found in _WEEKDAY.finditer(low):
        number = _DAYS.index(found[3])
        ahead = (number - today.weekday()) % 7
        if found[4] or (found[1] == "next" and found[2]):
            ahead = 7 - today.weekday() + number
        elif not ahead and found[1] != "this":
            ahead = 7
        yield *found.span(), today + dt.timedelta(ahead)


def _of_months(low: str, today: dt.date) -> Iterator[tuple[int, int, dt.date]]:
    taken = list[tuple[int, int]]()
    for pattern in (*_OF_MONTH, *_OF_THIS_MONTH):
        for found in pattern.finditer(low):
            named = found.groupdict().get("month")
            day = _next(today, _number(found["day"]), MONTHS[named] if named else None)
            if day and not any(a <= found.start() < b for a, b in taken):
                taken.append(found.span())
                yield *found.span(), day


def _number(words: str) -> int:
    return _ORDINALS.index(words) + 1 if words in _ORDINALS else int(words)


def _next(today: dt.date, day: int, month: int | None) -> dt.date | None:
    """Return the next such day that has not passed, of this month or the next one where none is named."""
    months = (
        [(today.year, month), (today.year + 1, month)]
        if month
        else [(today.year, today.month), (today.year + today.month // 12, today.month % 12 + 1)]
    )
    for year, number in months:
        try:
            found = dt.date(year, number, day)
        except ValueError:
            continue
        if found >= today:
            return found
    return None
