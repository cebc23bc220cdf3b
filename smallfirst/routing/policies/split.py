"""`split`: send a share of the requests to one stage, for a canary or an A/B test."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field

from smallfirst.models.protocol import Request
from smallfirst.routing.policies.policy import GainScorer, Policy, PolicyDecision


class SplitPolicy(Policy):
    """Send a share of the requests to one stage. Sticky: equal values of the tag get the same side."""

    kind: Literal["split"]
    share: float = Field(ge=0, le=1)
    """Share of the values of `by` that goes there, in [0, 1]."""
    by: str = "user"
    """The tag whose value is hashed, such as `user`; without such a tag the messages are."""
    salt: str = ""
    """Splits of different salt are independent; splits of equal salt give equal sides."""

    def decide(self, request: Request, gain: GainScorer | None = None) -> PolicyDecision | None:
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
