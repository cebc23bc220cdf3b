"""`gain`: send requests on which a larger model is likelier right than the small one to another stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from smallfirst.models.protocol import Request
from smallfirst.routing.policies.policy import GainScorer, Policy, PolicyDecision


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

    def decide(self, request: Request, gain: GainScorer | None = None) -> PolicyDecision | None:
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

    def decide(self, request: Request, gain: GainScorer | None = None) -> PolicyDecision | None:
        if gain is None:
            return None
        score = float(gain.probabilities([request.text])["small"][0])
        return PolicyDecision(self.to, self.kind, "too hard", score, self.below) if score < self.below else None
