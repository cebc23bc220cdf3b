"""What every policy has: a kind, the stage it leads to, and a decision about one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from smallfirst.models.protocol import Request
from smallfirst.records import Record

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


class GainScorer(Protocol):
    """Estimate from a text alone which models are right."""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Return for each text how much likelier the large model is right than the small one, in [-1, 1]."""

    def probabilities(self, texts: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return by model the probability in [0, 1] that it is right on each text; `small` is among them."""

    def threshold(self, share: float) -> float:
        """Return the gain that a share of the requests, in [0, 1], exceeds."""


class Policy(Record):
    """Settings of one policy in task.yaml. A subclass narrows `kind` to its name in the registry."""

    uses_gain: ClassVar[bool] = False
    """True if it decides by what is learned of the models' outcomes."""

    kind: str
    """Name of the kind in the registry."""
    to: str
    """Stage that answers."""

    def decide(self, request: Request, gain: GainScorer | None = None) -> PolicyDecision | None:
        """Return where the request goes, or None if the policy does not match it."""
        raise NotImplementedError


def is_conversation(request: Request) -> bool:
    """Return True if the request has more than one message, system messages not counted."""
    return sum(message.role != "system" for message in request.messages) > 1
