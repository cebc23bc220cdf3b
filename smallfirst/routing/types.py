"""What a Router is made of: stages that draft, the domain in front of them, the rules around them, and a decision.

Protocols and plain tuples only, so that a stage can be anything that answers and a head anything that reads confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from smallfirst.models.protocol import Completion, Model, Request, Route
from smallfirst.routing.policies import Budget, DifficultyScorer, Policy


class OodScore(NamedTuple):
    """How unlike the task's own requests a request is."""

    value: float
    """In [0, 1]."""
    cost_usd: float
    """What it cost to find out."""
    latency_ms: float
    """How long it took."""


class OodDetector(Protocol):
    """Tells requests that belong to the task from all others."""

    async def doubt(self, request: Request) -> OodScore:
        """The request's doubt; above `limit` it is taken for something else."""

    async def aclose(self) -> None:
        """Free what it holds."""

    @property
    def limit(self) -> float:
        """The most doubt a request of the task may raise."""


class ConfidenceHead(Protocol):
    """Reads the confidence of a draft off more than the model's own probability."""

    def confidence(self, completion: Completion, cheaper: Completion | None = None) -> float:
        """Probability in [0, 1] that the draft is right; `cheaper` is the draft of the stage before."""


class Stage(NamedTuple):
    """A model of the cascade."""

    name: str
    """`words`, `encoder`, `small`, …; as the certificate names it."""
    model: Model
    """Who drafts."""
    head: ConfidenceHead | None = None
    """Reads the confidence of its drafts; None takes the model's own."""


class RouterOptions(NamedTuple):
    """What stands around the cascade."""

    before: Sequence[Policy] = ()
    """Asked in order before anything is drafted."""
    budget: Budget | None = None
    """What escalation may cost."""
    difficulty: DifficultyScorer | None = None
    """The learned difficulty that `difficulty` policies ask."""
    beside: Sequence[Stage] = ()
    """Stages that only a policy leads to, such as a challenger."""
    signed: str = ""
    """Who signed for drafts that no certificate covers, and why; empty where nobody did."""
    expected_cost_usd: dict[str, float] = {}
    """Measured mean cost of an answer by stage, to tell what a choice that was not made would have cost."""


class Decision(NamedTuple):
    """Who answers: a draft that stands, or a model still to be asked."""

    route: Route
    """The way so far."""
    draft: Completion | None
    """The draft that stands, or would if nobody else answered; its cost and latency are those of the whole way."""
    ask: Model | None
    """The model to ask; None if the draft stands."""
    cost_usd: float
    """What the way has cost so far."""
    latency_ms: float
    """How long it has taken."""
