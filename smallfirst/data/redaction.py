"""Replace personal data and secrets in texts by placeholders before they are written down.

Not found are names, postal addresses and account numbers other than IBANs. Time is linear in the length of a text.
"""

from __future__ import annotations

import html
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from smallfirst.data import detectors

KINDS = ("url", "key", "password", "cookie", "email", "iban", "card", "national_id", "birth_date", "ip", "phone")
"""Of finds that overlap, the first of these kinds names the whole."""
_CLUSTER = re.compile(r"[0-9](?:[\s.\-_/·,()+]{0,3}[0-9]){6,}+")
"""Seven or more figures, around which cards, IBANs and telephone numbers are looked for."""
_DIGIT = re.compile("[0-9]")
NAMES = ("name", "key")
"""Under these names stands the name of what stands under `value`: `{"name": "PASSWORD", "value": "…"}`."""
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+\-]?[0-9]+)?|[{}\[\]]')
_JSON_NAME = re.compile(r'"([^"\\]{1,80})"\s{0,3}:')
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
        form = normal_form(text)
        spans = [(*form.original(start, end), kind) for start, end, kind in _find(form.text)]
        if not spans:
            break
        found.update(kind for _, _, kind in spans)
        text = _replaced(text, [(start, end, f"[{kind.upper()}]") for start, end, kind in spans])
    return RedactedText(text, dict(found))


def _may_hold(text: str) -> bool:
    """Return False for JSON without escapes and telling names in which nothing is found as in a text."""
    names = set(_JSON_NAME.findall(text))
    return "\\" in text or "value" in names or any(map(labelled_kind, names)) or bool(_find(normal_form(text).text))


def _redact_json(text: str) -> RedactedText:
    """Redact keys and values in place; what is no find stays byte for byte."""
    label = named = ""
    found: Counter[str] = Counter()
    changes: list[tuple[int, int, str]] = []
    for match in _JSON_TOKEN.finditer(text):
        token = match.group()
        if token in "{}[]":
            label = label if token in "{[" else ""
            continue
        is_key = token[0] == '"' and text[match.end() :][:20].lstrip()[:1] == ":"
        value = json.loads(token) if token[0] == '"' else token
        name = "" if is_key else label
        if not _PLAIN.fullmatch(value) or labelled_kind(name):
            inside = redact(value, name)
            if inside.counts:
                found.update(inside.counts)
                changes.append((*match.span(), json.dumps(inside.text, ensure_ascii=token.isascii())))
        if is_key:
            label = named if value == "value" else value
        elif label in NAMES:
            named = value
    return RedactedText(_replaced(text, changes), dict(found))


def _replaced(text: str, changes: list[tuple[int, int, str]]) -> str:
    """Return the text with other words at these places, which are given from the left."""
    parts, done = [], 0
    for start, end, words in changes:
        parts += [text[done:start], words]
        done = end
    return "".join([*parts, text[done:]])


def _find(text: str) -> list[tuple[int, int, str]]:
    """Return where in a text what kind is found, from the left; finds that overlap are one."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a capital that becomes two small letters
        lowered = "".join(c.lower()[0] for c in text)
    found = [(*span, "url") for span in detectors.find_urls(text)]
    found += [(*span, "key") for span in detectors.find_keys(text)]
    found += detectors.find_labelled(text, lowered)
    found += [(*span, "email") for span in detectors.find_emails(text, lowered)]
    if _DIGIT.search(text):
        found += [(*span, "national_id") for span in detectors.find_persons(text)]
        found += [(*span, "ip") for span in detectors.find_ips(text)]
        windows = [(max(0, m.start() - 16), min(len(text), m.end() + 8)) for m in _CLUSTER.finditer(text)]
        for window in detectors.merged_spans(windows):
            found += [(*span, "iban") for span in detectors.find_ibans(text, *window)]
            found += [(*span, "card") for span in detectors.find_cards(text, *window)]
            found += [(*span, "phone") for span in detectors.find_phones(text, *window)]
    joined: list[tuple[int, int, str]] = []
    for start, end, kind in sorted(found):
        if joined and start < joined[-1][1]:
            before = joined.pop()
            joined.append((before[0], max(end, before[1]), min(kind, before[2], key=KINDS.index)))
        else:
            joined.append((start, end, kind))
    return joined


# JSON: a name tells what its value is

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_\-.\s]+")
_WORDS = [(word, kind) for kind, words in detectors.WORDS.items() for word in words]
_KINDS = {word.lower().replace("-", " ").strip("_:. "): kind for word, kind in _WORDS}
_KINDS |= {word.replace(" ", ""): kind for word, kind in _WORDS if " " in word}
_KINDS |= {"cookie": "cookie", "cookies": "cookie", "birthdate": "birth_date", "key": "", "bearer": ""}


@lru_cache(maxsize=4096)
def labelled_kind(name: str) -> str:
    """Return the kind of value that a name in JSON stands for (`dbPassword`: password); empty if of none."""
    words = [word for word in _CAMEL.sub(" ", name.rstrip("0123456789")).lower().split(" ") if word]
    if len(words) > 1 and words[-1] in ("number", "no", "num", "nr"):
        return _kind_of(words) or _kind_of(words[:-1])
    return _kind_of(words)


def _kind_of(words: Sequence[str]) -> str:
    ends = (" ".join(words[i:]) for i in range(max(0, len(words) - 5), len(words)))
    return next((kind for end in ends if (kind := _KINDS.get(end))), "")


def is_labelled(name: str, value: str) -> str:
    """Return the kind of a whole value that stands under a name in JSON; empty if it is no secret."""
    kind, text = labelled_kind(name), value.strip()
    n_digits = sum(c.isdigit() for c in text)
    if not kind or len(text) > 4000:
        return ""
    if kind in ("password", "key"):
        return kind if detectors.is_secret(kind, name, text) and (kind == "key" or len(text) <= 128) else ""
    if kind == "cookie":
        return kind if "=" in text else ""
    if kind == "birth_date":
        return kind if detectors.ANY_DATE.search(text) and len(text) <= 40 else ""
    fewest = {"code": 3, "national_id": 5, "phone": 6, "card": 12}[kind]
    if n_digits < fewest or len(text) > 40 or (kind != "national_id" and any(c.isalpha() for c in text)):
        return ""
    return "password" if kind == "code" else kind


# The normal form: escapes undone, figures of any script as 0 to 9, plain dashes, nothing that nobody sees

_ESCAPE = re.compile(
    r"(?<!\\)\\++(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[nrt\"'/])"  # of JSON, Python and JavaScript, also escaped twice
    r"|%(?:40|2[bBfF]|3[aAdD])"  # @ + / : = in an address
    r"|&(?:\#[0-9]{2,5}|\#[xX][0-9a-fA-F]{2,4}|commat|amp|quot|period|lt|gt);"
)
_ESCAPE_SIGNS = ("\\", "%4", "%2", "%3", "&")
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}
_UNSEEN = {0xAD, 0x034F, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFEFF}
"""Soft hyphens, joiners, marks of direction."""


class NormalForm(NamedTuple):
    """The form in which a text is searched."""

    text: str
    starts: Sequence[int] = ()
    """For each character, where what it stands for begins in the original, and at last its length; empty: the same."""

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return the span of the original that a span stands for."""
        return (self.starts[start], self.starts[end]) if self.starts else (start, end)


def normal_form(text: str) -> NormalForm:
    """Return the form in which a text is searched."""
    escapes = list(_ESCAPE.finditer(text)) if any(sign in text for sign in _ESCAPE_SIGNS) else []
    changed = {} if text.isascii() else {ord(c): plain for c in set(text) if (plain := _plain(c)) != c}
    if not escapes and all(len(plain) == 1 for plain in changed.values()):
        return NormalForm(text.translate(changed) if changed else text)
    pieces: list[tuple[str, int]] = []
    done = 0
    for match in escapes:
        pieces += zip(text[done : match.start()], range(done, match.start()), strict=True)
        pieces.append((_unescaped(match.group()), match.start()))
        done = match.end()
    pieces += zip(text[done:], range(done, len(text)), strict=True)
    plain_pieces = [("".join(map(_plain, piece)), at) for piece, at in pieces]
    starts = [at for piece, at in plain_pieces for _ in piece]
    return NormalForm("".join(piece for piece, _ in plain_pieces), (*starts, len(text)))


def _unescaped(escape: str) -> str:
    if escape[0] == "&":
        return html.unescape(escape)
    if escape[0] == "%":
        return chr(int(escape[1:], 16))
    name = escape.lstrip("\\")
    return chr(int(name[1:], 16)) if name[0] in "ux" else _LETTERS.get(name, name)


@lru_cache(maxsize=8192)
def _plain(character: str) -> str:
    if character < "\x80":
        return character
    if ord(character) in _UNSEEN:
        return ""
    figure = unicodedata.decimal(character, None)
    if figure is not None:
        return str(figure)
    kind = unicodedata.category(character)
    if kind == "Pd" or character == "\u2212":
        return "-"
    return " " if kind == "Zs" else unicodedata.normalize("NFKC", character)


# Bodies of requests and responses

_MEDIA = re.compile(r"(?:data:[\w/+.;=\-]*,)?[A-Za-z0-9+/_\-\r\n]{1000,}={0,2}")
"""Base64, with or without the head of a data URL; words have spaces."""
_MOST_NUMBERS = 64
_FEWEST_TOLD = 10**8
"""A smaller number is told by its name alone: `{"pin": 4821}`."""
_CACHED_CHARACTERS = 20_000


def redact_body(body: Any, label: str = "") -> Any:
    """Return a body as JSON values with placeholders: `[EMAIL]` in texts, `[5,000 characters of data]` for media.

    Keys are redacted as values are, by the name under which they stand (`label`); a whole number that is a find becomes
    text, and what is no Unicode `?`. Of keys that become equal the last is kept. A second pass changes nothing.
    """
    if isinstance(body, str):
        return _redacted(body, label) if len(body) <= _CACHED_CHARACTERS else _kept_text(body, label)
    if isinstance(body, dict):
        named = next((body[name] for name in NAMES if isinstance(body.get(name), str)), "value")
        return {_redacted(k, ""): redact_body(value, named if k == "value" else k) for k, value in body.items()}
    if isinstance(body, list):
        if len(body) > _MOST_NUMBERS and all(isinstance(item, float) for item in body):
            return f"[{len(body):,} numbers]"
        return [redact_body(item, label) for item in body]
    if isinstance(body, int) and not isinstance(body, bool) and (abs(body) >= _FEWEST_TOLD or labelled_kind(label)):
        text = str(body)
        kept = _redacted(text, label)
        return body if kept == text else kept
    return body


def _kept_text(text: str, label: str) -> str:
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair, which JSON can hold, is no text
    if len(text) >= 1000 and _MEDIA.fullmatch(text):
        return f"[{len(text):,} characters of data]"
    return redact(text, label if labelled_kind(label) else "").text


_redacted = lru_cache(maxsize=2048)(_kept_text)  # instructions repeat with every request


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
