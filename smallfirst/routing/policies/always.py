"""`always`: send every request to one stage."""

from __future__ import annotations

from typing import Literal

from smallfirst.models.protocol import Request
from smallfirst.routing.policies.policy import GainScorer, Policy, PolicyDecision


class AlwaysPolicy(Policy):
    """Send every request to one stage."""

    kind: Literal["always"]

    def decide(self, request: Request, gain: GainScorer | None = None) -> PolicyDecision:
        return PolicyDecision(self.to, self.kind, "every request goes there")
