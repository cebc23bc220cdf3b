"""When two values of a field are equal: as they stand, or after a named normalization; else as text without case."""

from __future__ import annotations

import datetime
import functools
import re
import unicodedata
from collections.abc import Hashable
from decimal import Decimal
from typing import Any, Literal

Normalizer = Literal["exact", "case", "words", "number", "money", "date", "date_dmy"]
"""`exact`: as it stands · `case`: case, white space and outer punctuation aside · `words`: all punctuation aside, too,
but for a point or comma between two digits · `number` · `money`: currency and amount · `date`: month first where
03/05/2024 leaves it open · `date_dmy`: day first there."""

_MOST_CHARACTERS = 64
"""Longest text that is tried as a number, an amount or a date."""
_OUTER = " .,;:!?…\"'`´“”„‚‘’«»()[]{}¿¡。、，；：！？"
_SPELLED = re.compile(r"[^\W_]|(?<=\d)[.,](?=\d)")
_SPACES = re.compile(r"[\s_'’]+")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d+)*|[.,]\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_PRICE = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<before>\D*?)\s*(?P<inner>[+-]?)(?P<amount>\d[\d\s.,'’_]*)(?P<after>\D*)", re.ASCII
)
CURRENCIES = {
    "$": "USD", "us$": "USD", "dollar": "USD", "dollars": "USD", "usd": "USD", "a$": "AUD", "au$": "AUD", "c$": "CAD",
    "ca$": "CAD", "hk$": "HKD", "nz$": "NZD", "s$": "SGD", "r$": "BRL", "€": "EUR", "euro": "EUR", "euros": "EUR",
    "£": "GBP", "pound": "GBP", "pounds": "GBP", "¥": "JPY", "yen": "JPY", "₹": "INR", "rs": "INR", "rs.": "INR",
    "₩": "KRW", "₽": "RUB", "₺": "TRY", "₫": "VND", "₪": "ILS", "₴": "UAH", "฿": "THB", "rm": "MYR", "zł": "PLN",
    "fr.": "CHF",
    "kr": "KR", "kr.": "KR",  # of several countries: the same as itself only
}  # fmt: skip
_MONTH_NAMES = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
MONTHS = {written: n for n, name in enumerate(_MONTH_NAMES, 1) for written in (name, name[:3])} | {"sept": 9}
_WEEKDAYS = r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs?)?|fri|sat(?:ur)?|sun)(?:day)?\.?,? +)?"
_DAY = r"(?:the )?(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_MONTH = r"(?P<month>[a-z]{3,9})\.?"
_YEAR = r"(?P<year>\d{4}|'?\d{2})"
LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "pl", "sv", "da", "nb", "fi", "cs", "ro", "hu", "tr", "ru", "uk")
"""Beside English, in which the names of months are read."""
_FOREIGN = re.compile(r"(?:[^\W\d_]+,? )*\d{1,2}(?:er|[.º])? ?(?:de )?[^\W\d_]{3,12}\.?(?: de|,)? \d{4}")
_ARTICLE = re.compile(r"\b(?:den|le|el|il|dia) (?=\d)|(?<=\d)(?:er|º)(?= )")
_ISO = re.compile(
    r"(?P<year>\d{4})(?P<between>[-/.]?)(?P<month>\d{2})(?P=between)(?P<day>\d{2})"
    r"(?:[t ]\d{2}:\d{2}[\d:.]*(?:z|[+-]\d{2}:?\d{2})?)?",
    re.ASCII,
)
_JAPANESE = re.compile(r"(\d{4})年 ?(\d{1,2})月 ?(\d{1,2})日")
_FIGURES = re.compile(
    r"(?P<first>\d{1,2})(?P<between>[-/.])(?P<second>\d{1,2})(?P=between)(?P<year>\d{4}|\d{2})", re.ASCII
)
_WRITTEN = [
    re.compile(_WEEKDAYS + form, re.ASCII)
    for form in (
        rf"{_DAY}[ -](?:of )?{_MONTH}(?:[ -]|, ?){_YEAR}",
        rf"{_MONTH} {_DAY}(?:, ?| ){_YEAR}",
        rf"{_DAY}[ -](?:of )?{_MONTH}",
        rf"{_MONTH}[ -]?{_DAY}",
        rf"{_MONTH}(?:,? |-)(?P<year>\d{{4}})",
    )
]


def normalize_value(value: Any, how: Normalizer = "exact") -> Hashable:
    """Return what represents a scalar in comparisons; JSON types never compare equal, text is NFC and trimmed."""
    if value is None or isinstance(value, bool):
        return ("bare", value)
    if isinstance(value, int | float):
        amount = Decimal(value) if isinstance(value, int) else Decimal(repr(value))
        return ("money", "", amount) if how == "money" else ("number", amount)
    text = unicodedata.normalize("NFC", str(value)).strip()
    if how == "exact":
        return ("text", text)
    read: tuple[Hashable, ...] | None = None
    if len(text) <= _MOST_CHARACTERS:
        if how == "number":
            read = None if (number := _amount(text)) is None else (number,)
        elif how == "money":
            read = _money(text)
        elif how not in ("case", "words"):
            read = _date(text, day_first=how == "date_dmy")
    if how == "words":
        return ("text", spelling(text)[0] or text)
    return ("text", _folded(text)) if read is None else (how.removesuffix("_dmy"), *read)


@functools.lru_cache(maxsize=4096)
def spelling(text: str) -> tuple[str, tuple[int, ...]]:
    """Return letters and digits without case, with points and commas between two digits, and the place of each."""
    found = []
    for match in _SPELLED.finditer(text):
        character, i = match[0], match.start()
        if character.isascii():
            found.append((character.lower(), i))
        else:
            found += [(folded, i) for folded in character.casefold() if folded.isalnum()]
    return "".join(folded for folded, _ in found), tuple(i for _, i in found)


def lowered(text: str) -> str:
    """Return the text in lower case, every character at its place: İ alone becomes two in `str.lower`."""
    return text.replace("İ", "i").lower()


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFC", " ".join(text.casefold().split()))
    return folded.strip(_OUTER) or folded  # a value that is all punctuation is still one


def _amount(text: str) -> Decimal | None:
    """Return the number written; of `.` and `,` the last is the decimal mark, but 1,234 and a repeated one group."""
    text = _SPACES.sub("", _signed(text))
    if not _NUMBER.fullmatch(text):
        return None
    points, commas = text.count("."), text.count(",")
    if points and commas:
        mark = "." if text.rindex(".") > text.rindex(",") else ","
        if text.count(mark) > 1:
            return None
        text = text.replace("," if mark == "." else ".", "").replace(mark, ".")
    elif points > 1 or commas > 1:
        text = text.replace(".", "").replace(",", "")
    elif commas:
        grouped = re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", text)
        text = text.replace(",", "" if grouped else ".")
    return Decimal(text)


def _signed(text: str) -> str:
    """Return the text with a hyphen for a minus sign, and for the parentheses of an amount below zero."""
    text = text.replace("\N{MINUS SIGN}", "-")
    return f"-{text[1:-1]}" if text[:1] + text[-1:] == "()" else text


def _money(text: str) -> tuple[str, Decimal] | None:
    found = _PRICE.fullmatch(_signed(text))
    if found is None or (found["sign"] and found["inner"]):
        return None
    currencies = {_currency(name) for name in (found["before"], found["after"].strip()) if name} or {""}
    currency = currencies.pop()
    amount = _amount(found["sign"] + found["inner"] + found["amount"].strip())
    return None if currencies or currency is None or amount is None else (currency, amount)


def _currency(name: str) -> str | None:
    """Return the ISO 4217 code of a sign, code or word; None if it is none."""
    name = name.casefold()
    if name in CURRENCIES:
        return CURRENCIES[name]
    return name.upper() if re.fullmatch(r"[a-z]{3}", name) else None


def _date(text: str, *, day_first: bool) -> tuple[int, int, int] | None:
    """Return year, month and day; 0 for what is not written."""
    text = " ".join(text.casefold().split()).strip(_OUTER)
    if found := _ISO.fullmatch(text):
        return _checked(int(found["year"]), int(found["month"]), int(found["day"]))
    if found := _JAPANESE.fullmatch(text):
        return _checked(*map(int, found.groups()))
    if found := _FIGURES.fullmatch(text):
        first, second = int(found["first"]), int(found["second"])
        by_order = [(first, second), (second, first)]
        # Points are written between day and month, in this order, wherever they are in use.
        if day_first or found["between"] == ".":
            by_order.reverse()
        year = _full_year(found["year"])
        return _checked(year, *by_order[0]) or _checked(year, *by_order[1])
    for form in _WRITTEN:
        found = form.fullmatch(text)
        if found and (month := MONTHS.get(found["month"])):
            parts = found.groupdict()
            year = _full_year(parts["year"].lstrip("'")) if parts.get("year") else 0
            return _checked(year, month, int(parts["day"]) if "day" in parts else 0)
    return _foreign_date(text) if _FOREIGN.fullmatch(text) else None


@functools.lru_cache(maxsize=4096)
def _foreign_date(text: str) -> tuple[int, int, int] | None:
    """Return the whole date in another language than English; 0.4 to 1 ms a text."""
    import dateparser

    settings = {"PARSERS": ["absolute-time"], "REQUIRE_PARTS": ["day", "month", "year"], "DATE_ORDER": "DMY"}
    found = dateparser.parse(_ARTICLE.sub("", text), languages=list(LANGUAGES), settings=settings)
    return found and (found.year, found.month, found.day)


def _full_year(text: str) -> int:
    """Read two digits as 1969 to 2068, as POSIX does."""
    year = int(text)
    return year if len(text) == 4 else year + (1900 if year >= 69 else 2000)


def _checked(year: int, month: int, day: int) -> tuple[int, int, int] | None:
    try:
        datetime.date(year or 2000, month, day or 1)
    except ValueError:
        return None
    return year, month, day
