"""E-mail addresses, and URLs that carry credentials."""

from __future__ import annotations

import re
from collections.abc import Iterator

_URL = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.\-]{0,30}(?::[A-Za-z0-9+.\-]{1,20})?://[^\s<>\"]++"
    r"|jdbc:oracle:[a-z]{2,5}:\w{1,60}/[^\s@/]{1,200}@[^\s<>\"]++"
)
_CREDENTIALS = re.compile(
    r"://[^/?#\s@]*+@|^jdbc:oracle"
    r"|://[^/\s@:]{1,100}:[^\s@]{1,200}@"
    r"|[?&#;](?:[\w\-]{0,20}[_\-])?(?:token|key|apikey|secret|password|passwd|pwd|pass|auth|sig|signature|session|credential|code)=[^&\s]"
    r"|hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/|api\.telegram\.org/bot[0-9]|webhook\.office\.com/webhook",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"(?<![\w.%+'\-])[\w.%+'\-\u0300-\u036f]++@[\w\-\u0300-\u036f]++(?:\.[\w\-\u0300-\u036f]++)++")
_QUOTED = re.compile(
    r"\"[^\"@\n]{1,64}\"@[\w\-]++(?:\.[\w\-]++)++|(?<![\w.%+'\-])[\w.%+'\-]++@\[[0-9A-Fa-f:.IPv]{3,45}\]"
)
_SPELLED = re.compile(
    r"(?<![\w.%+'\-])[\w.%+'\-]{2,64}+\s?[\[({<]\s?(?:at|arroba|ät|chiocciola|@)\s?[\])}>]\s?[\w\-]{1,63}"
    r"(?:\s?(?:\.|[\[({<]\s?(?:dot|punkt|punto|point|ponto)\s?[\])}>]|\bdot\b)\s?[\w\-]{1,63}){1,4}"
    r"|(?<![\w.%+'\-])[\w.%+'\-]{2,64}+\s(?:at|AT|arroba)\s[\w\-]{1,63}(?:\s(?:dot|DOT|punto|punkt)\s[\w\-]{2,63}){1,4}"
)
_SPELLED_WORDS = (
    "(at)",
    "[at]",
    "{at}",
    "<at>",
    "arroba",
    " dot ",
    " DOT ",
    "(AT)",
    "[AT]",
    "( at )",
    "[ at ]",
    "(@)",
    "[@]",
    " punkt ",
    " punto ",
)
_WITHOUT_SPACES = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af]")
"""Scripts in which an address is not set apart from the words around it."""


def url_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of URLs with a user, a password or a signature in them."""
    if "://" in text or "jdbc:" in text:
        yield from (match.span() for match in _URL.finditer(text) if _CREDENTIALS.search(match.group()))


def email_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of e-mail addresses, also of those that are spelled out or quoted."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield _trimmed(match)
        if '"@' in text or "@[" in text:
            yield from (match.span() for match in _QUOTED.finditer(text))
    if any(word in text for word in _SPELLED_WORDS):
        yield from (match.span() for match in _SPELLED.finditer(text))


def _trimmed(match: re.Match[str]) -> tuple[int, int]:
    """Return the span without the words before and after an address that is in Latin letters."""
    local, _, domain = match.group().partition("@")
    start, end = match.span()
    if not _WITHOUT_SPACES.search(match.group()):
        return start, end
    own = _WITHOUT_SPACES.split(local)[-1]
    if own:
        start += len(local) - len(own)
    first = _WITHOUT_SPACES.search(domain)
    if first and re.search(r"\.[A-Za-z]{2,}$", domain[: first.start()]):
        end = start + len(own or local) + 1 + first.start()
    return start, end
