"""Replace personal data and secrets in texts by placeholders before they are written down.

Detected are keys and tokens of APIs, private keys, passwords, cookies, e-mail addresses, telephone numbers, IBANs,
payment cards, numbers of persons at states and tax offices, dates of birth, IP addresses and URLs that carry
credentials: in any script and width, escaped or not, in JSON and in JSON within JSON. Not names, postal addresses and
other account numbers. Time is linear in the length of a text.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from smallfirst.data.detectors.emails import email_spans, url_spans
from smallfirst.data.detectors.keys import key_spans
from smallfirst.data.detectors.labelled import is_labelled, labelled_kind, labelled_spans
from smallfirst.data.detectors.normal_form import normal_form
from smallfirst.data.detectors.numbers import (
    card_spans,
    iban_spans,
    ip_spans,
    lettered_id_spans,
    national_id_spans,
    number_windows,
    phone_spans,
)

PII_KINDS = (
    "url", "key", "password", "cookie", "email", "iban", "card", "national_id", "birth_date", "ip", "phone",
)  # fmt: skip
"""Of finds that overlap, the first of these kinds names the whole."""
_RANK = {kind: i for i, kind in enumerate(PII_KINDS)}
_IN_WINDOWS = {"iban": iban_spans, "card": card_spans, "national_id": national_id_spans, "phone": phone_spans}
_DIGIT = re.compile("[0-9]")
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+\-]?[0-9]+)?|[{}\[\]]')
NAMES = ("name", "key")
"""Under these names stands the name of what stands under `value`: `{"name": "PASSWORD", "value": "…"}`."""
_NAME = re.compile(r'"([^"\\]{1,80})"\s{0,3}:')
_PLAIN = re.compile(r"[A-Za-z_ ]{0,24}|[0-9.]{1,6}")
"""Too little to be a secret without a name."""
_MOST_PASSES = 4


class RedactedText(NamedTuple):
    """A text without its personal data."""

    text: str
    """With placeholders: `[EMAIL]`, `[PHONE]`, …; all else is as it was."""
    counts: dict[str, int]
    """Finds by kind; kinds without one are left out."""


def redact(text: str, label: str = "") -> RedactedText:
    """Return the text with a placeholder for each find; redacting the result again changes nothing.

    `label` is the name in JSON under which the text stands: all of a password is one. A text that is JSON stays JSON: a
    number that is a find becomes text.
    """
    if label and (kind := is_labelled(label, normal_form(text).text)):
        return RedactedText(f"[{kind.upper()}]", {kind: 1})
    if text[:1] in ("{", "[") and text.rstrip()[-1:] in ("}", "]"):
        with suppress(ValueError, RecursionError):
            json.loads(text)
            return _redact_json(text) if _may_hold(text) else RedactedText(text, {})
    found: Counter[str] = Counter()
    for _ in range(_MOST_PASSES):  # what is gone may have hidden something
        spans = _spans(text)
        if not spans:
            break
        found.update(kind for _, _, kind in spans)
        text = _replaced(text, spans)
    return RedactedText(text, dict(found))


def format_counts(counts: Mapping[str, int]) -> str:
    """Return `3 email, 1 phone` in the order of PII_KINDS; `nothing` for no find."""
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in PII_KINDS if counts.get(kind)) or "nothing"


def _may_hold(text: str) -> bool:
    """Return False for JSON without escapes and telling names in which nothing is found as in a text."""
    names = set(_NAME.findall(text))
    return "\\" in text or "value" in names or any(map(labelled_kind, names)) or bool(_spans(text))


def _redact_json(text: str) -> RedactedText:
    """Redact keys and values in place; what is no find stays byte for byte."""
    parts, done, label, named = [], 0, "", ""
    found: Counter[str] = Counter()
    for match in _JSON_TOKEN.finditer(text):
        token = match.group()
        if token in "{}[]":
            label = label if token in "{[" else ""
            continue
        is_key = token[0] == '"' and text[match.end() :][:20].lstrip()[:1] == ":"
        value = json.loads(token) if token[0] == '"' else token
        name = "" if is_key else label
        inside = RedactedText(value, {}) if _PLAIN.fullmatch(value) and not labelled_kind(name) else redact(value, name)
        if is_key:
            label = named if value == "value" else value
        elif label in NAMES:
            named = value
        if inside.counts:
            found.update(inside.counts)
            parts += [text[done : match.start()], json.dumps(inside.text, ensure_ascii=token.isascii())]
            done = match.end()
    return RedactedText("".join([*parts, text[done:]]), dict(found))


def _spans(text: str) -> list[tuple[int, int, str]]:
    """Return what is found in a text, from the left, without overlaps."""
    form = normal_form(text)
    plain = form.text
    found = [(*span, "url") for span in url_spans(plain)]
    found += [(*span, "key") for span in key_spans(plain)]
    found += labelled_spans(plain)
    found += [(*span, "email") for span in email_spans(plain)]
    if _DIGIT.search(plain):
        found += [(*span, "national_id") for span in lettered_id_spans(plain)]
        found += [(*span, "ip") for span in ip_spans(plain)]
        for window in number_windows(plain):
            found += [(*span, kind) for kind, spans in _IN_WINDOWS.items() for span in spans(plain, *window)]
    if not found:
        return []
    return [(*form.original(start, end), kind) for start, end, kind in _joined(found)]


def _joined(found: list[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Yield spans from the left; those that overlap become one, of the kind that comes first."""
    found.sort()
    start, end, kind = found[0]
    for next_start, next_end, next_kind in found[1:]:
        if next_start >= end:
            yield start, end, kind
            start, end, kind = next_start, next_end, next_kind
        else:
            end, kind = max(end, next_end), min(kind, next_kind, key=_RANK.__getitem__)
    yield start, end, kind


def _replaced(text: str, spans: list[tuple[int, int, str]]) -> str:
    parts, done = [], 0
    for start, end, kind in spans:
        parts += [text[done:start], f"[{kind.upper()}]"]
        done = end
    return "".join([*parts, text[done:]])


# Logs: an exception may quote the request or the answer that it could not handle

_FORMAT = logging.Formatter()


class RedactingFilter(logging.Filter):
    """Redacts messages and tracebacks, and lets every record pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = redact(record.getMessage())
        if said.counts:
            record.msg, record.args = said.text, ()
        if record.exc_info and record.exc_info[0]:
            record.exc_text = redact(record.exc_text or _FORMAT.formatException(record.exc_info)).text
        return True


def redact_logs() -> None:
    """Redact what this process writes through the handlers that it has now, and where it has none."""
    for handler in (*logging.root.handlers, logging.lastResort):
        if handler and not any(isinstance(one, RedactingFilter) for one in handler.filters):
            handler.addFilter(RedactingFilter())
