"""What stands in front of the cascade: the filters that a certificate assumes, and what is not known about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from smallfirst.errors import StageMissing
from smallfirst.records import Record
from smallfirst.routing.policies.policy import Policy


class RequestFilters(Record):
    """The domain check and the policies through which a request reaches the cascade."""

    domain: Literal["", "scored"] = ""
    """What tells foreign requests apart: `scored`, part of the confidence; empty if there is nothing."""
    policies: tuple[dict[str, Any], ...] = ()
    """Policies in order, without random splits."""
    n_rows: int = 0
    """Calibration rows before the filters."""
    n_passed: int = 0
    """Calibration rows that reach the cascade, for which alone the certificate holds."""
    unknown: tuple[str, ...] = ()
    """What cannot be applied to calibration rows, a sentence each."""

    @property
    def limits(self) -> tuple[str, ...]:
        """The sentences that limit a certificate."""
        held = f"it holds for requests that pass the policies, as {self.n_passed} of {self.n_rows} calibration rows did"
        return (*((held,) if self.policies else ()), *self.unknown)

    def check_served(self, served: RequestFilters, task: str) -> None:
        """Raise StageMissing if requests are `served` through other filters than these."""
        if (served.domain, served.policies) == (self.domain, self.policies):
            return
        what = "domain check" if served.domain != self.domain else "policies"
        raise StageMissing(
            f"{task}: its certificate holds behind the {what} of its calibration, and another would be served",
            hint="smallfirst calibrate task.yaml, or restore routing.domain, routing.policies and the run's files",
        )


def random_split(policy: Policy) -> bool:
    """Return True if a policy takes a random share of the requests, so that the others stay like all."""
    return policy.kind == "split"


def filters_of(domain: Literal["", "scored"], policies: Sequence[Policy]) -> RequestFilters:
    """Return the filters of a served path, before any row was counted."""
    values = [policy.model_dump(mode="json") for policy in policies]
    unknown = [
        f"a split by {value['by']} sends {value['share']:.0%} to {value['to']}: the others are taken to be like all"
        for policy, value in zip(policies, values, strict=True)
        if random_split(policy)
    ]
    unknown += [
        f"a rule on tags ({', '.join(value['tags'])}) leads to {value['to']}: calibration rows carry no tags, so the "
        "other requests are taken to be like them"
        for value in values
        if value.get("tags")
    ]
    fixed = tuple(value for policy, value in zip(policies, values, strict=True) if not random_split(policy))
    return RequestFilters(domain=domain, policies=fixed, unknown=tuple(unknown))
