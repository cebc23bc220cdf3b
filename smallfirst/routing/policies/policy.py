"""What every policy has: a kind, the stage it leads to, and a decision about one request; and how kinds are found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import pydantic

from smallfirst.errors import ConfigError
from smallfirst.extensions import Registry
from smallfirst.models.protocol import Request
from smallfirst.records import Record, explain_errors

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


POLICIES: Registry[type[Policy]] = Registry(
    "smallfirst.policies",
    {
        "always": "smallfirst.routing.policies.built_in:AlwaysPolicy",
        "rule": "smallfirst.routing.policies.built_in:RulePolicy",
        "split": "smallfirst.routing.policies.built_in:SplitPolicy",
        "gain": "smallfirst.routing.policies.built_in:GainPolicy",
        "difficulty": "smallfirst.routing.policies.built_in:DifficultyPolicy",
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
    policies: Sequence[Policy], request: Request, gain: GainScorer | None = None
) -> PolicyDecision | None:
    """Return the decision of the first policy that matches; None sends the request through the cascade."""
    for policy in policies:
        decision = policy.decide(request, gain)
        if decision is not None:
            return decision
    return None
