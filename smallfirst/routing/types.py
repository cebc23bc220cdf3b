"""The parts a Router is made of: drafting stages, an out-of-domain detector, options, and the decision it makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from smallfirst.models.protocol import Completion, Model, Request, Route, RouteStep
from smallfirst.pricing.charge import Charge, total_usd
from smallfirst.records import Record
from smallfirst.routing.budget import Budget
from smallfirst.routing.policies.policy import GainScorer, Policy

OUT_OF_SCOPE = "out_of_scope"
"""Stage and model name of an answer to a request that nobody here can answer."""
REFUSAL = "This request is not one that this service answers."
"""What is said unless the task file says it otherwise."""


class OutOfScope(Record):
    """What is answered to a foreign request where there is no large model to ask."""

    answer: str = ""
    """The answer, such as a label of its own; left out: a refusal."""
    refuse: bool = False
    """True puts the text into OpenAI's field `refusal` and leaves `content` null, as is done without an answer."""

    @property
    def completion(self) -> Completion:
        """The answer as a Completion that cost nothing."""
        return Completion(
            text=self.answer or REFUSAL,
            refusal=self.refuse or not self.answer,
            answered_by=OUT_OF_SCOPE,
            latency_ms=0.0,
            cost_usd=0.0,
        )


class OodScore(NamedTuple):
    """How unlike the task's own requests a request is."""

    value: float
    """In [0, 1]; higher is less like them."""
    cost_usd: float
    latency_ms: float
    charges: tuple[Charge, ...] = ()
    """The lines of `cost_usd`, where they are known."""
    features: tuple[float, ...] = ()
    """What `Stage.acceptance` reads beside the confidence, each larger the less the request is like the task's."""


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

    def confidence(self, completion: Completion, others: Sequence[Completion] = ()) -> float:
        """Return the probability in [0, 1] that the draft is right, beside the answers of cheaper models."""


class Acceptance(Protocol):
    """One score from the confidence of a draft and what tells foreign requests from the task's own."""

    def confidence(self, draft: float, features: Sequence[float]) -> float:
        """Return the probability in [0, 1] that the request is the task's own and the draft right.

        It never falls with `draft`, in [0, 1], and never rises with a feature (`OodScore.features`).
        """


class Stage(NamedTuple):
    """One drafting model of the cascade."""

    name: str
    """`words`, `encoder`, `small`, …; as the certificate names it."""
    model: Model
    head: ConfidenceHead | None = None
    acceptance: Acceptance | None = None
    """Corrects the confidence for foreign requests; without it the certificate covers what the domain check passes."""

    def confidence(
        self, draft: Completion, others: Sequence[Completion] = (), features: Sequence[float] | None = None
    ) -> float | None:
        """Return the confidence in [0, 1] that the thresholds are compared with; None where nothing gives one.

        `others` are what the head compares the draft with, `features` those of the domain check.
        """
        found = self.head.confidence(draft, others) if self.head else draft.confidence
        if self.acceptance is None or features is None:
            return found
        return self.acceptance.confidence(found or 0.0, features)


class RouterOptions(NamedTuple):
    """Settings of a Router beside its models and its certificate."""

    policies: Sequence[Policy] = ()
    budget: Budget | None = None
    gain: GainScorer | None = None
    policy_stages: Sequence[Stage] = ()
    """Stages that only a policy leads to, such as a challenger."""
    expected_cost_usd: Mapping[str, float] = {}
    """Measured mean cost of an answer by stage, shown for a model that was not asked."""
    out_of_scope: OutOfScope = OutOfScope()
    """What is answered to a foreign request where nobody else can answer."""


def took_cascade(route: Route) -> bool:
    """Return True if the certificate's thresholds decided: no policy, no pause, no setting, and not out of domain."""
    return route.threshold is not None


def is_covered(trail: Iterable[RouteStep]) -> bool:
    """Return True if the certificate accepts the answer to which these steps led, also while nothing is promised."""
    return any(step.decision == "kept" and step.threshold is not None for step in trail)


class Decision(NamedTuple):
    """Who answers: an accepted draft, or a model still to be asked."""

    route: Route
    draft: Completion | None
    """The accepted draft, or the fallback if `model` fails; its cost and latency are those of the whole attempt."""
    model: Model | None
    """The model to ask; None if the draft is accepted."""
    charges: tuple[Charge, ...]
    """What was paid so far."""
    latency_ms: float
    changed: str = ""
    """The setting of the request that made the draft another one than was certified, so that it says nothing of the
    traffic; empty if none did."""

    @property
    def cost_usd(self) -> float:
        return total_usd(self.charges)
