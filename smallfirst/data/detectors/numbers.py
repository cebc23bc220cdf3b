"""Payment cards, IBANs and addresses on the internet, told by their sums and forms."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

_GAP = r"[\s.\-_/·,]{0,3}"
_CLUSTER = re.compile(r"[0-9](?:[\s.\-_/·,()+]{0,3}[0-9]){6,}+")
_DIGITS = re.compile(rf"[0-9](?:{_GAP}[0-9])*+")
_GROUP = re.compile("[0-9]++")
_MOST, _FEWEST = 19, 12
_USUAL = {
    (4, 4, 4, 4),
    (4, 6, 5),
    (4, 6, 4),
    (4, 4, 4, 4, 3),
    (4, 4, 4, 4, 2),
    (4, 4, 4, 1),
    (8, 8),
    (6, 10),
    (4, 4, 8),
}
_ISSUED = re.compile(
    r"4(?:.{12}|.{15}|.{18})"  # Visa
    r"|(?:5[1-5]|2(?:22[1-9]|2[3-9].|[3-6]..|7[01].|720)).{12,14}"  # Mastercard
    r"|3[47].{13}|3(?:0[0-5]|6.|8.|9.).{11,16}|35(?:2[89]|[3-8].).{12,15}"  # American Express, Diners Club, JCB
    r"|(?:6011|64[4-9].|65..|60..|62..|81..|82..|220[0-4]|9792).{12,15}"  # Discover, RuPay, UnionPay, Mir, Troy
    r"|(?:50|5[6-9]|6[0-9])(?:.{14}|.{16,17})"  # Maestro
)
"""First figures and lengths by issuer (ISO/IEC 7812, as the issuers publish them)."""
_ISSUED_SHORT = re.compile(r"(?:50|5[6-9]|6[0-9]).{10,13}")
"""Maestro's short numbers, which an article's number may be as well: only after a word for a card."""
_CARD_WORD = re.compile(
    r"card|karte|carte|tarjeta|carta|kaart|kart|cartão|cartao|visa|amex|debit|credit|kredit|maestro|\bcc\b|\bpan\b"
    r"|карт|カード|卡|카드|بطاق|कार्ड",
    re.IGNORECASE,
)
_NEAR = 60
"""Characters before a number in which a word tells what it is."""
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[ .\-]?[0-9]{2}(?=[\s.\-]{0,2}[A-Za-z0-9])")
_IBAN_LENGTHS = {
    length: countries.split()
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL OM SO", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
}  # fmt: skip
_LENGTH = {country: length for length, countries in _IBAN_LENGTHS.items() for country in countries}
"""Characters of an IBAN by country (the registry of ISO 13616)."""
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\.?[0-9A-Za-z_])")
_DOTTED = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_VERSION = re.compile(r"(?:version|release|firmware|build|driver|\bEC)\D{0,3}$", re.IGNORECASE)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")


def number_windows(text: str) -> list[tuple[int, int]]:
    """Return where seven or more figures stand together, with room for letters around, from the left."""
    found: list[tuple[int, int]] = []
    for match in _CLUSTER.finditer(text):
        start, end = max(0, match.start() - 16), min(len(text), match.end() + 8)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def card_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of figures with the beginning, length, groups and sum of a card, from the left, longest first."""
    for match in _DIGITS.finditer(text, start, end):
        if match.end() - match.start() < _FEWEST:
            continue
        groups = [group.span() for group in _GROUP.finditer(text, *match.span())]
        i = 0
        while i < len(groups):
            j = _last_of_card(text, groups, i)
            if j is not None:
                yield groups[i][0], groups[j][1]
            i = i + 1 if j is None else j + 1


def _last_of_card(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """Return the last group of a card number that begins with group `first`; None if there is none."""
    digits, fitting, widths = "", None, []
    start = groups[first][0]
    if (first and text[start - 1] == ",") or text[max(start - 2, 0) : start] == "0.":  # an amount, a list
        return None
    for j in range(first, len(groups)):
        begin, end = groups[j]
        if len(digits) + end - begin > _MOST:
            break
        digits += text[begin:end]
        widths.append(end - begin)
        short = _ISSUED_SHORT.fullmatch(digits) is not None
        if len(digits) < _FEWEST or not (short or _ISSUED.fullmatch(digits)) or not luhn(digits):
            continue
        usual = not short and (len(widths) == 1 or tuple(widths) in _USUAL)
        if usual or _CARD_WORD.search(text, max(0, start - _NEAR), start):
            fitting = j
    return fitting


def luhn(digits: str) -> bool:
    """Return True if the sum of the digits, every second one from the right doubled, ends in 0 (ISO/IEC 7812)."""
    doubled = (sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(doubled)) % 10 == 0


def iban_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of IBANs, in capitals or not, with any gaps, of their country's length and the right sum."""
    done = 0
    for match in _IBAN_START.finditer(text, start, end):
        length = _LENGTH.get(match.group()[:2].upper(), 0)
        if match.start() < done or not length:
            continue
        plain, at, gap = "", match.start(), 0
        while at < len(text) and len(plain) < length and gap < 4:
            character = text[at]
            gap = 0 if character.isalnum() else gap + 1
            if not (character.isalnum() and character.isascii()) and not (character in ".-" or character.isspace()):
                break
            plain += character.upper() if character.isalnum() else ""
            at += 1
        if len(plain) == length and not text[at : at + 1].isalnum() and _mod97(plain[4:] + plain[:4]) == 1:
            done = at
            yield match.start(), at


def _mod97(text: str) -> int:
    return int("".join(str(int(c, 36)) for c in text)) % 97


def ip_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of addresses of IPv4 and IPv6."""
    if text.count(".") >= 3 and _DOTTED.search(text):
        for match in _IPV4.finditer(text):
            if not _VERSION.search(text, max(0, match.start() - 12), match.start()):
                yield match.span()
    if "::" in text or text.count(":") >= 7:
        yield from (match.span() for match in _IPV6.finditer(text) if _is_ipv6(match.group()))


def _is_ipv6(text: str) -> bool:
    if sum(c != ":" for c in text) < 2:  # "::" and "a::" are punctuation more often than addresses
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
