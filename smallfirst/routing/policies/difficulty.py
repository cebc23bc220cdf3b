"""`difficulty`: send requests that are too hard for the small model to another stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from smallfirst.models.protocol import Request
from smallfirst.routing.policies.policy import DifficultyScorer, Policy, PolicyDecision


class DifficultyPolicy(Policy):
    """Send requests that a learned difficulty model finds too hard for the small model to one stage."""

    kind: Literal["difficulty"]
    to: str = "large"
    """Stage that answers."""
    below: float = Field(gt=0, lt=1)
    """Probability that the small model answers rightly, below which it is not asked, in (0, 1)."""

    def decide(self, request: Request, difficulty: DifficultyScorer | None = None) -> PolicyDecision | None:
        if difficulty is None:
            return None
        score = float(difficulty.score([request.text])[0])
        return PolicyDecision(self.to, self.kind, "too hard", score, self.below) if score < self.below else None
