"""The parts a Router is made of: drafting stages, an out-of-domain detector, options, and the decision it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from smallfirst.models.protocol import Completion, Model, Request, Route
from smallfirst.routing.budget import Budget
from smallfirst.routing.policies.policy import DifficultyScorer, Policy


class OodScore(NamedTuple):
    """How unlike the task's own requests a request is."""

    value: float
    """In [0, 1]; higher is less like them."""
    cost_usd: float
    latency_ms: float


class OodDetector(Protocol):
    """Tell requests that belong to the task from all others."""

    async def score(self, request: Request) -> OodScore:
        """Return the out-of-domain score of a request; above `threshold` it does not belong to the task."""

    async def aclose(self) -> None: ...

    @property
    def threshold(self) -> float:
        """Largest score of a request that belongs to the task, in [0, 1]."""


class ConfidenceHead(Protocol):
    """Estimate the confidence of a draft from more than the model's own probability."""

    def confidence(self, completion: Completion, cheaper: Completion | None = None) -> float:
        """Return the probability in [0, 1] that the draft is right; `cheaper` is the draft of the stage before."""


class Stage(NamedTuple):
    """One drafting model of the cascade."""

    name: str
    """`words`, `encoder`, `small`, …; as the certificate names it."""
    model: Model
    head: ConfidenceHead | None = None


class RouterOptions(NamedTuple):
    """Settings of a Router beside its models and its certificate."""

    policies: Sequence[Policy] = ()
    budget: Budget | None = None
    difficulty: DifficultyScorer | None = None
    policy_stages: Sequence[Stage] = ()
    """Stages that only a policy leads to, such as a challenger."""
    signed_by: str = ""
    """Name and reason of the person who signed for serving uncertified drafts; empty if nobody did."""
    expected_cost_usd: Mapping[str, float] = {}
    """Measured mean cost of an answer by stage, shown for a model that was not asked."""


class Decision(NamedTuple):
    """Who answers: an accepted draft, or a model still to be asked."""

    route: Route
    draft: Completion | None
    """The accepted draft, or the fallback if `model` fails; its cost and latency are those of the whole attempt."""
    model: Model | None
    """The model to ask; None if the draft is accepted."""
    cost_usd: float
    latency_ms: float
