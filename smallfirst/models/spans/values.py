"""Forms of a value: where it may stand in a text, and how the words marked there become the value again.

`text` as it stands · `spaced` with single spaces for line breaks and other white space · `commas` with ", " for line
breaks · `lower`, `upper` spaced and in that case · `number` 1.234,50 € as 1234.5, words up to twelve included ·
`thousands` the same, with 2.150 as 2150 · `digits` a whole number as a text · `date`, `date_dmy` in figures or written
out as an ISO date, month or day first where 03/05/2024 leaves it open · `time`, `time_pm` half past 11 in the morning
as 11:30; where nothing says which half of the day, hours to nine are of its first or its second. What no form gives
back exactly still has a place in the text if it stands there without regard to white space, case and punctuation. The
answer to a question stands in its context verbatim, or after the folding by which answers are compared.
"""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from typing import Any

from smallfirst.data.pages import Span
from smallfirst.tasks.scorers import normalize_answer
from smallfirst.tasks.value_matching import Normalizer, normalize_value, spelling

_MONTH = r"[^\W\d_]{3,12}\.?"
_DATES = [
    re.compile(form)
    for form in (
        r"(?<!\d)\d{4}年 ?\d{1,2}月 ?\d{1,2}日",
        r"(?<!\d)\d{4}[-/.]\d{2}[-/.]\d{2}(?!\d)",
        r"(?<!\d)\d{1,2}([-/.])\d{1,2}\1(?:\d{4}|\d{2})(?!\d)",
        rf"(?<!\d)\d{{1,2}}(?:st|nd|rd|th|er|º|\.)?[ -](?:(?:of|de) )?{_MONTH}(?: de |[ -]|, ?)\d{{4}}(?!\d)",
        rf"\b{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:, ?| )\d{{4}}(?!\d)",
    )
]
_NUMBERS = [
    re.compile(form, re.ASCII)
    for form in (
        r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u202f'’.,]\d{3})+(?:[.,]\d+)?(?!\d)",
        r"(?<!\d)(?<!\d[.,])(?<!\s\.)(?<!^\.)\d+(?:[.,]\d+)?(?![.,]?\d)",
        r"(?<![\w.,])[-\N{MINUS SIGN}]?(?:\d+(?:[.,]\d+)?|\.\d+)(?![.,]?\d)",
        r"\((?:\d{1,3}(?:[.,]\d{3})+|\d+)(?:[.,]\d+)?\)",
    )
]
_FIGURES = re.compile(r"(?:(?<!\w)\.)?\d(?:.*\d)?", re.ASCII | re.DOTALL)
_WHOLE = re.compile(r"(?<!\d)(?<!\d[.,])(?:\d{1,3}(?:[.,]\d{3})+|\d+)(?:[.,]\d+)?(?![.,]?\d)", re.ASCII)
_THOUSANDS = re.compile(r"(?<=\d)\.(?=\d{3}(?!\d))")
TIME_FORMS = ("time", "time_pm")
NUMBER_FORMS = ("number", "thousands", "digits")
TEXT_FORMS = ("text", "spaced", "commas", "lower", "upper")
FORMS = ("date", "date_dmy", *TIME_FORMS, *NUMBER_FORMS, *TEXT_FORMS)
"""In which a value may stand in a text; what reads anything comes last."""
"""Forms of a value that is words of the text."""
_ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_HOUR = rf"(?P<hour>\d{{1,2}}|{'|'.join(NUMBER_WORDS[1:])})"
_DAYTIME = r"(?:,? ?(?:in the |at )?(?P<part>[ap]\.?m\b\.?|morning|afternoon|evening|night))"
_BEFORE = r"(?<![\w:.])(?:(?P<before>morning|afternoon|evening)(?: at)? )?"
_TIMES = [
    re.compile(form, re.ASCII | re.IGNORECASE)
    for form in (
        rf"{_BEFORE}(?P<minutes>half|quarter)[ -](?P<side>past|to)[ -]{_HOUR}\b{_DAYTIME}?",
        rf"{_BEFORE}{_HOUR}[:.](?P<minute>[0-5]\d)(?![\d:.]\d){_DAYTIME}?",
        rf"{_BEFORE}{_HOUR}(?: ?o'?clock)?{_DAYTIME}",
        rf"{_BEFORE}{_HOUR} ?o'?clock",
        rf"(?:(?<=\bat )|(?<=\bby )|(?<=\baround )|^){_HOUR}(?![\w:.]\w)",
        rf"(?P<before>morning|afternoon|evening) (?:at )?{_HOUR}(?![\w:.]\w)",
        r"\b(?P<named>noon|midnight)\b",
    )
]
_WORD = re.compile(rf"\b(?:{'|'.join(NUMBER_WORDS)})\b", re.IGNORECASE)


def occurrences(text: str, value: Any, form: str, how: Normalizer = "exact") -> list[tuple[int, int]]:
    """Return start and end (excluded) of every place where the text holds `value` in this form, in order.

    `how` says which values count as equal.
    """
    wanted = normalize_value(value, how)
    if form not in TEXT_FORMS:
        return [(start, end) for start, end, read in reads(text, form) if normalize_value(read, how) == wanted]
    if not isinstance(value, str) or not value.strip():
        return []
    if (form, how) == ("text", "exact"):
        places = [place.span(1) for place in re.finditer(f"(?=({re.escape(value.strip())}))", text)]  # they may overlap
    else:
        places = spelled_places(text, value)
    return [(a, b) for a, b in places if normalize_value(read_value(text[a:b], form), how) == wanted]


def read_value(words: str, form: str) -> Any:
    """Return the value that marked words stand for: a text, a number or None where they have not this form."""
    words = words.strip()
    if form == "text":
        return words or None
    if form in TEXT_FORMS:
        joined = " ".join((re.sub(r"[\s,]*\n", ", ", words) if form == "commas" else words).split())
        return (joined.lower() if form == "lower" else joined.upper() if form == "upper" else joined) or None
    if form in TIME_FORMS:
        return _time(words, afternoon=form == "time_pm")
    if form in NUMBER_FORMS:
        number = _number(_THOUSANDS.sub("", words) if form == "thousands" else words)
        return number if form != "digits" else str(number) if isinstance(number, int) else None
    read: Any = normalize_value(words, "date_dmy" if form == "date_dmy" else "date")
    if read[0] != "date" or 0 in read[1:]:
        return None
    return "{:04}-{:02}-{:02}".format(*read[1:])


def whole_number(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the place widened to the whole number where it begins or ends in the middle of one."""
    for number in _WHOLE.finditer(text):
        if number.start() < start < number.end() or number.start() < end < number.end():
            start, end = min(start, number.start()), max(end, number.end())
    return start, end


def spelled_places(text: str, value: str) -> list[tuple[int, int]]:
    """Return start and end (excluded) of every place with the letters and digits of `value`, in order.

    Case, white space and punctuation do not count, but for a point or comma between two digits. The places begin and
    end with whole words, and with the value's own punctuation where the text has it.
    """
    wanted, (letters, at) = spelling(value)[0], spelling(text)
    own = value.strip()
    before = re.match(r"[^\w]*", own)[0]  # type: ignore[index]
    behind = re.search(r"[^\w]*$", own)[0]  # type: ignore[index]
    found, first = list[tuple[int, int]](), letters.find(wanted) if wanted else -1
    while first >= 0:
        start, end = at[first], at[first + len(wanted) - 1] + 1
        if not (_is_within_word(text, start) or _is_within_word(text, end)):
            start -= len(before) if text[:start].endswith(before) else 0
            found.append((start, end + (len(behind) if text.startswith(behind, end) else 0)))
        first = letters.find(wanted, first + 1)
    return found


def _is_within_word(text: str, at: int) -> bool:
    """Return True if the characters on both sides belong to a word; scripts without case may have no spaces."""
    sides = text[max(0, at - 1) : at + 1]
    return 0 < at < len(text) and all(c.isdigit() or c.lower() != c.upper() for c in sides)


@functools.lru_cache(maxsize=4096)
def reads(text: str, form: str) -> list[tuple[int, int, Any]]:
    """Return start, end and value of all that the text holds in a form; a row's fields look for theirs in turn."""
    patterns = [*_NUMBERS, _WORD] if form in NUMBER_FORMS else _TIMES if form in TIME_FORMS else _DATES
    found = sorted({place.span() for pattern in patterns for place in pattern.finditer(text)})
    read = [(start, end, read_value(text[start:end], form)) for start, end in found]
    read = [one for one in read if one[2] is not None]
    if form in TIME_FORMS:  # "half past 2" is not at 2
        read = [one for one in read if not any(a <= one[0] and one[1] <= b and (a, b) != one[:2] for a, b, _ in read)]
    return read


def _time(words: str, *, afternoon: bool) -> str | None:
    """Return the time of day as HH:MM; `afternoon` decides about hours up to twelve where nothing else does."""
    read = next((found for form in _TIMES if (found := form.fullmatch(words))), None)
    if read is None:
        return None
    said = {name: (value or "").lower().replace(".", "") for name, value in read.groupdict().items()}
    if named := said.get("named"):
        return "12:00" if named == "noon" else "00:00"
    hour = NUMBER_WORDS.index(said["hour"]) if said["hour"] in NUMBER_WORDS else int(said["hour"])
    part = said.get("part") or said.get("before")
    if not part and afternoon and 0 < hour < 10 and not said["hour"].startswith("0"):
        part = "pm"
    if part and hour <= 12:
        is_first_half = part in ("am", "morning") or (part == "night" and (hour < 6 or hour == 12))
        hour = hour % 12 + (0 if is_first_half else 12)
    minute = {"half": 30, "quarter": 15}.get(said.get("minutes", ""), int(said.get("minute") or 0))
    if said.get("side") == "to":
        hour, minute = hour - 1, 60 - minute
    return f"{hour:02}:{minute:02}" if 0 <= hour < 24 else None


def _number(words: str) -> int | float | None:
    if words.lower() in NUMBER_WORDS:
        return NUMBER_WORDS.index(words.lower())
    found = _FIGURES.search(words)
    if not found or any(character.isalpha() for character in found[0]):
        return None
    is_below = found.start() == 1 and words[0] in "-\N{MINUS SIGN}"
    is_below |= words[0] + words[-1] == "()" and not re.search(r"[^\W\d]", words)
    read: Any = normalize_value("-" * is_below + found[0].replace("\u202f", " "), "number")
    amount = read[1]
    if not isinstance(amount, Decimal):
        return None
    return int(amount) if amount == amount.to_integral_value() and "." not in str(amount) else float(amount)


def answer_places(answer: str, text: str) -> list[Span]:
    """Return every place of `answer` in `text`: as whole words verbatim, else in any case, else word by word folded.

    Folded as `normalize_answer` does, so that what is found there scores 1. Empty if it stands nowhere.
    """
    wanted = answer.strip()
    if not wanted:
        return []
    for flags in (re.NOFLAG, re.IGNORECASE):
        whole = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)", flags)
        if found := [Span(*match.span()) for match in whole.finditer(text)]:
            return found
    return _folded_places(wanted, text)


def _folded_places(answer: str, text: str) -> list[Span]:
    wanted = [word for word, _ in _folded_words(answer)]
    words = _folded_words(text)
    starts = range(len(words) - len(wanted) + 1) if wanted else ()
    return [
        Span(words[i][1].start, words[i + len(wanted) - 1][1].end)
        for i in starts
        if all(words[i + k][0] == word for k, word in enumerate(wanted))
    ]


def _folded_words(text: str) -> list[tuple[str, Span]]:
    """Return the words without punctuation and articles, each with its place less the punctuation at its ends."""
    found = []
    for match in re.finditer(r"\S+", text):
        inner = re.search(r"\w(?:.*\w)?", match[0])
        if inner and (folded := normalize_answer(match[0])) not in _ARTICLES:
            found.append((folded, Span(match.start() + inner.start(), match.start() + inner.end())))
    return found
