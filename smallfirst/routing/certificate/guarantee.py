"""The promise: what the user wants to be able to say about the routed path, in the user's own units.

Every limit is optional, and each costs rows: the confidence is shared out among the limits, so two of them need more
calibration rows than one.
"""

from __future__ import annotations

import pydantic

from smallfirst.records import Record

MAX_LATE_SHARE = 0.05
"""Share of requests that may be slower than a p95 limit, by its name."""


class Guarantee(Record):
    """What the certificate must show before answers may stay small."""

    at_most_wrong: float | None = pydantic.Field(default=0.05, gt=0, lt=1)
    """Largest share of kept answers that may be wrong (alpha), in (0, 1); null promises nothing about it."""
    at_most_below_large: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """The routed path's accuracy may be at most this much below the large model's; 0.01 is one point."""
    at_most_usd_per_1k: float | None = pydantic.Field(default=None, gt=0)
    """Largest mean cost of 1,000 requests in USD, drafts that were thrown away included."""
    p95_under_ms: float | None = pydantic.Field(default=None, gt=0)
    """95 % of requests take less time than this many milliseconds."""
    at_most_escalated: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """Largest share of requests that may go to the large model."""
    per_class: bool = False
    """True promises `at_most_wrong` label by label, and only for labels of which it can be shown."""
    confidence: float = pydantic.Field(default=0.95, gt=0.5, lt=1)
    """Confidence level of the promise as a whole, in (0.5, 1)."""

    @pydantic.model_validator(mode="after")
    def _something_is_promised(self) -> Guarantee:
        if not self.limits:
            raise ValueError("a promise needs a limit: at_most_wrong, at_most_below_large, at_most_usd_per_1k, …")
        if self.per_class and set(self.limits) != {"wrong"}:
            raise ValueError("per_class promises at_most_wrong by label and can have no other limit beside it")
        return self

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by the short name of their risk."""
        named = {
            "wrong": self.at_most_wrong,
            "regret": self.at_most_below_large,
            "cost": self.at_most_usd_per_1k,
            "late": self.p95_under_ms,
            "escalated": self.at_most_escalated,
        }
        return {name: limit for name, limit in named.items() if limit is not None}

    @property
    def in_words(self) -> str:
        """The whole promise in one line."""
        said = [describe_limit(name, limit) for name, limit in self.limits.items()]
        label = " of each promised label" if self.per_class else ""
        return f"{', '.join(said)}{label} ({100 * self.confidence:g} %)"


def describe_limit(name: str, limit: float) -> str:
    """One limit in words."""
    points = f"{100 * limit:g} point{'' if limit == 0.01 else 's'}"
    return {
        "wrong": f"at most {100 * limit:g} % of kept answers wrong",
        "regret": f"at most {points} less accurate than the large model",
        "cost": f"at most ${limit:g} per 1,000 requests",
        "late": f"95 % of requests under {limit:g} ms",
        "escalated": f"at most {100 * limit:g} % of requests sent to the large model",
    }[name]
