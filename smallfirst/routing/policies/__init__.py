"""Policies: decide by the request alone where it goes before anything is drafted; one file a kind.

The first that matches names the stage that answers, without a guarantee; else the request goes through the cascade.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import pydantic

from smallfirst.errors import ConfigError
from smallfirst.extensions import Registry
from smallfirst.models.protocol import Request
from smallfirst.records import explain_errors
from smallfirst.routing.policies.policy import (
    CASCADE,
    CHALLENGER,
    GainScorer,
    Policy,
    PolicyDecision,
)

POLICIES: Registry[type[Policy]] = Registry(
    "smallfirst.policies",
    {
        "always": "smallfirst.routing.policies.always:AlwaysPolicy",
        "rule": "smallfirst.routing.policies.rule:RulePolicy",
        "split": "smallfirst.routing.policies.split:SplitPolicy",
        "gain": "smallfirst.routing.policies.gain:GainPolicy",
        "difficulty": "smallfirst.routing.policies.gain:DifficultyPolicy",
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
