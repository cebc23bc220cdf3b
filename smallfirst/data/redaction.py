"""Replace personal data in texts by placeholders before they are written down.

Detected are e-mail addresses, phone numbers, IBANs, payment cards (Luhn's sum), IP addresses and URLs that carry
credentials, in linear time; not names, postal addresses, other account numbers, and bare national phone numbers.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

PII_KINDS = ("url", "email", "iban", "card", "ip", "phone")
"""In the order in which they are looked for: what a URL holds is no e-mail address any more."""

_URL = re.compile(r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.\-]{0,30}://[^\s<>\"]++")
_CREDENTIALS = re.compile(
    r"://[^/?#\s@]*+@"
    r"|[?&#;](?:[\w\-]{0,20}[_\-])?(?:token|key|apikey|secret|password|passwd|pwd|pass|auth|sig|signature|session)=[^&\s]",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"(?<![\w.%+'\-])[\w.%+'\-]++@[\w\-]++(?:\.[\w\-]++)++")
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?=[ \u00a0\-]?[A-Za-z0-9])")
_IBAN_REST = re.compile(r"(?:[ \u00a0\-]?[A-Za-z0-9]){11,30}")
_DIGITS = re.compile(r"[0-9]++(?:[ \u00a0\-][0-9]++)*+")
_GROUP = re.compile("[0-9]+")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\.?[0-9A-Za-z_])")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_STEP = r"[ \u00a0.\-/()]{0,2}"
_NOT_INSIDE = r"(?<![\w+])(?<![0-9][.,\-/])"
_PHONE = re.compile(
    rf"{_NOT_INSIDE}(?:\+|00)[1-9](?:{_STEP}[0-9]){{6,13}}(?![0-9])"  # +49 30 1234567
    rf"|{_NOT_INSIDE}\(?0[1-9][0-9]{{1,4}}\)?(?:{_STEP}[0-9]){{4,10}}(?![0-9])"  # (030) 1234567
    rf"|{_NOT_INSIDE}0[1-9](?:[ .\-][0-9]{{2}}){{4}}(?![0-9])"  # 06 12 34 56 78
    rf"|{_NOT_INSIDE}(?:1[ .\-])?(?:\([0-9]{{3}}\) ?|[0-9]{{3}}[ .\-])[0-9]{{3}}[ .\-][0-9]{{4}}(?![\w]|[.\-][0-9])"
)
_CALLED = re.compile(
    r"\b(?:tel|telefon|telephone|phone|mobile|mobil|cell|handy|fax|whatsapp)\b([^0-9\n]{0,20})"
    rf"([0-9](?:{_STEP}[0-9]){{5,13}})(?![0-9])",
    re.IGNORECASE,
)
_MOST_CARD_DIGITS, _FEWEST_CARD_DIGITS = 19, 13


class RedactedText(NamedTuple):
    """A text without its personal data."""

    text: str
    """With placeholders: `[EMAIL]`, `[PHONE]`, …"""
    counts: dict[str, int]
    """Finds by kind; kinds without one are left out."""


def redact(text: str) -> RedactedText:
    """Return the text with a placeholder for each find; redacting the result again changes nothing."""
    found: Counter[str] = Counter()

    def placeholder(kind: str) -> str:
        found[kind] += 1
        return f"[{kind.upper()}]"

    def sub(pattern: re.Pattern[str], kind: str, holds: Callable[[str], bool]) -> None:
        nonlocal text
        text = pattern.sub(lambda m: placeholder(kind) if holds(m.group()) else m.group(), text)

    sub(_URL, "url", lambda url: _CREDENTIALS.search(url) is not None)
    sub(_EMAIL, "email", lambda _: True)
    text = _without(text, _iban_spans(text), lambda: placeholder("iban"))
    text = _without(text, _card_spans(text), lambda: placeholder("card"))
    sub(_IPV4, "ip", lambda _: True)
    sub(_IPV6, "ip", _is_ipv6)
    text = _CALLED.sub(lambda m: m.group()[: m.start(2) - m.start()] + placeholder("phone"), text)
    sub(_PHONE, "phone", lambda number: True)
    return RedactedText(text, dict(found))


def redact_json(text: str) -> RedactedText:
    """Redact every value in JSON, not its keys; a number that is a find becomes text. Raise ValueError if not JSON."""
    found: Counter[str] = Counter()

    def cleaned(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cleaned(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [cleaned(inner) for inner in value]
        if isinstance(value, bool) or not isinstance(value, str | int):
            return value
        inside = redact(str(value))
        found.update(inside.counts)
        return inside.text if inside.counts else value

    return RedactedText(json.dumps(cleaned(json.loads(text)), ensure_ascii=False, separators=(", ", ": ")), dict(found))


def format_counts(counts: Mapping[str, int]) -> str:
    """Return `3 email, 1 phone` in the order of PII_KINDS; `nothing` for no find."""
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in PII_KINDS if counts.get(kind)) or "nothing"


def _without(text: str, spans: Iterator[tuple[int, int]], said: Callable[[], str]) -> str:
    parts, done = [], 0
    for start, end in spans:
        parts += [text[done:start], said()]
        done = end
    return "".join([*parts, text[done:]])


def _iban_spans(text: str) -> Iterator[tuple[int, int]]:
    done = 0
    for match in _IBAN_START.finditer(text):
        rest = _IBAN_REST.match(text, match.end())
        if rest is None or match.start() < done:
            continue
        length = _iban_length(text[match.start() : rest.end()])
        if length:
            done = match.start() + length
            yield match.start(), done


def _iban_length(run: str) -> int:
    """Return the length of the longest prefix that ends with a group and has the right sum (ISO 13616); else 0."""
    for end in range(len(run), 14, -1):
        if not run[end - 1].isalnum() or run[end : end + 1].isalnum():
            continue
        plain = re.sub(r"[^A-Za-z0-9]", "", run[:end]).upper()
        if 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1:
            return end
    return 0


def _card_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of digit groups that have the length and sum of a card number, from the left, longest first."""
    for match in _DIGITS.finditer(text):
        groups = [group.span() for group in _GROUP.finditer(text, *match.span())]
        i = 0
        while i < len(groups):
            j = _last_of_card(text, groups, i)
            if j is not None:
                yield groups[i][0], groups[j][1]
            i = i + 1 if j is None else j + 1


def _last_of_card(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """Return the last group of a card number that begins with group `first`; None if there is none."""
    digits, fitting = "", None
    for j in range(first, len(groups)):
        start, end = groups[j]
        if end - start < 2 or len(digits) + end - start > _MOST_CARD_DIGITS:
            break
        digits += text[start:end]
        if len(digits) >= _FEWEST_CARD_DIGITS and digits[0] in "23456" and _luhn(digits):
            fitting = j
    return fitting


def _luhn(digits: str) -> bool:
    """Return True if the sum of the digits, every second one from the right doubled, ends in 0 (ISO/IEC 7812)."""
    doubled = (sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(doubled)) % 10 == 0


def _is_ipv6(text: str) -> bool:
    if sum(c != ":" for c in text) < 2:  # "::" and "a::" are punctuation more often than addresses
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
