"""Telephone numbers, checked by Google's rules for each country (`phonenumbers`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import phonenumbers

_STEP = r"[ .\-/()]{0,2}"
_NOT_INSIDE = r"(?<![\w+])(?<![0-9][.,\-/])"
_ABROAD = re.compile(rf"{_NOT_INSIDE}\(?(?:\+|00|011[ \-]?)[ ]?(?:[1-9](?:{_STEP}[0-9]){{6,14}})(?![0-9])")
_HOME = re.compile(
    rf"{_NOT_INSIDE}(?:\(0[1-9][0-9]{{0,4}}\)(?:{_STEP}[0-9]){{5,10}}|0[1-9][0-9]{{1,4}}(?:{_STEP}[0-9]){{4,10}}"
    rf"|0[1-9][ .\-][0-9]{{8}}|0[1-9](?:[ .\-][0-9]{{2}}){{4}})(?![0-9])"
)
"""With the 0 that many countries put before the number of a town."""
_AMERICA = re.compile(
    rf"{_NOT_INSIDE}(?:1[ .\-])?(?:\([0-9]{{3}}\) ?|[0-9]{{3}}[ .\-])[0-9]{{3}}[ .\-][0-9]{{4}}(?![\w]|[.\-][0-9])"
)
_GROUPED = re.compile(
    rf"{_NOT_INSIDE}(?:\([1-9][0-9]\) ?[0-9]{{4,5}}[ \-]?[0-9]{{4}}"
    r"|8[ \-]?\(?[3-9][0-9]{2}\)?[ \-]?[0-9]{3}[ \-]?[0-9]{2}[ \-]?[0-9]{2}"
    r"|[1-9][0-9]{1,4}(?:([ .\-])[0-9]{2,5})(?:\1[0-9]{2,4}){0,3})(?![\w]|[.,\-/][0-9])"
)
"""In groups, without that 0."""
_WITH_ZERO = (
    "DE", "GB", "FR", "IT", "NL", "BE", "CH", "AT", "AU", "JP", "SE", "IE", "ZA", "KR", "TR", "NZ", "RO", "ID",
)  # fmt: skip
_WITHOUT_ZERO = ("ES", "IN", "PL", "PT", "CN", "BR", "IT", "RU", "CZ", "MX")
_WIDTHS = {(3, 3, 3), (3, 2, 2, 2), (5, 5), (3, 4, 4), (2, 5, 4), (2, 4, 4), (3, 3, 4), (2, 3, 2, 2), (1, 3, 3, 2, 2)}
"""Figures of the groups in which numbers without a 0 are written."""
_GROUPS = re.compile("[0-9]+")


_REFERENCE = re.compile(
    r"(?:order|invoice|ticket|case|ref|reference|item|id|article|artikel|sku|policy|police|account|konto|parcel|tracking|isbn|commande"
    r"|facture|pedido|factura|ordine|fattura|bestellung|rechnung|auftrag|vorgang|kunden|customer|contract|vertrag|serial|version|[#/=])"
    r"[\W_]{0,3}(?:(?:no|nr|number|nummer|num|n|id|is|ist|code)[\W_]{0,3}){0,2}(?:[A-Z]{1,3}-?)?$",
    re.IGNORECASE,
)
"""What stands before a number of something else."""
_ROW = re.compile(r"[ \t,;|]{1,3}[+\-]?[0-9]")
_ROW_BEFORE = re.compile(r"[0-9][ \t,;|]{1,3}$")


def is_reference(text: str, start: int) -> bool:
    """Return True if the words before a number say that it is one of an order, an account, …."""
    return _REFERENCE.search(text, max(0, start - 30), start) is not None


def phone_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of telephone numbers that are written as such; a bare row of figures needs its name before it."""
    yield from (m.span() for m in _ABROAD.finditer(text, start, end) if is_possible(m.group()))
    for match in _HOME.finditer(text, start, end):
        if _stands_alone(match) and is_valid(match.group(), _WITH_ZERO):
            yield match.span()
    yield from (m.span() for m in _AMERICA.finditer(text, start, end))
    yield from (m.span() for m in _GROUPED.finditer(text, start, end) if _stands_alone(m) and _is_grouped(m.group()))


def _stands_alone(match: re.Match[str]) -> bool:
    """Return False for one number of a row or table, and for one that has another name."""
    text, (start, end) = match.string, match.span()
    number = match.group()
    widths = [len(group) for group in _GROUPS.findall(number)]
    if sum(widths) < (7 if "(" in number else 9):
        return False
    if len(widths) > 6 or widths.count(1) > 1 or ("." in number and " " in number):
        return False
    in_row = _ROW.match(text, end) or _ROW_BEFORE.search(text, max(0, start - 4), start)
    return not in_row and not is_reference(text, start)


@lru_cache(maxsize=1024)
def is_possible(number: str) -> bool:
    """Return True for a number with a country's code that has a length of this country."""
    digits = re.sub(r"[^0-9]", "", number)
    digits = digits if "+" in number else digits[3:] if digits.startswith("011") else digits[2:]
    try:
        return bool(phonenumbers.is_possible_number(phonenumbers.parse("+" + digits)))
    except phonenumbers.NumberParseException:
        return False


@lru_cache(maxsize=1024)
def is_valid(number: str, countries: tuple[str, ...]) -> bool:
    """Return True for a number that one of the countries has given out, or may give out."""
    for country in countries:
        try:
            parsed = phonenumbers.parse(number, country)
        except phonenumbers.NumberParseException:
            return False
        if phonenumbers.is_valid_number(parsed):
            return True
    return False


@lru_cache(maxsize=1024)
def _is_grouped(number: str) -> bool:
    """Return True for a mobile number in the groups of its country; amounts and years are grouped as well."""
    widths = [len(group) for group in _GROUPS.findall(number)]
    if tuple(widths) not in _WIDTHS or (set(widths) == {3} and number.endswith("000")):
        return False
    for country in _WITHOUT_ZERO:
        try:
            parsed = phonenumbers.parse(number, country)
        except phonenumbers.NumberParseException:
            return False
        if phonenumbers.is_valid_number(parsed):
            kind = phonenumbers.number_type(parsed)
            if (
                kind in (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE)
                or "(" in number
            ):
                return True
    return False
