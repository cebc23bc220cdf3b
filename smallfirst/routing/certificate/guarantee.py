"""The guarantee: the limits that the routed path must be shown to keep; they share the significance level."""

from __future__ import annotations

from typing import Literal

import pydantic

from smallfirst.base.records import Record

LABEL = "label"
"""The `per_group` of the predicted label."""


class Guarantee(Record):
    """What the certificate must show before answers may stay small."""

    max_error: float | None = pydantic.Field(default=0.05, gt=0, lt=1)
    """Largest share of accepted answers that may be wrong (alpha), in (0, 1); null sets no limit on errors."""
    max_accuracy_loss: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """The routed path's accuracy may be at most this much below the large model's; 0.01 is one point."""
    max_wrong_fields: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """Largest share of the kept fields of JSON answers that may be wrong, in (0, 1); a field is kept by its own
    confidence. Without other limits (`max_error: null`) an answer stays small if every field is kept."""
    per_group: str = ""
    """Applies `max_error` to each group by itself, and covers only groups for which it can be shown: `label` for the
    predicted label, else the name of a column of `data.columns.tags`, which requests send as a tag (`metadata`)."""
    max_foreign_share: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of foreign requests up to which `max_error` holds, in [0, 1): an accepted foreign request counts as wrong.
    0 promises for the task's own requests alone."""
    unit: Literal["text", "group"] | None = None
    """What counts once where rows are no random requests: `text` for one row a text however often it is asked, as
    `discover` drafts them; `group` for one a group. A run sets it where it leaves repeats out. The promise says so."""
    confidence: float = pydantic.Field(default=0.95, gt=0.5, lt=1)
    """Confidence level of the guarantee as a whole, in (0.5, 1)."""

    @pydantic.model_validator(mode="after")
    def _has_a_limit(self) -> Guarantee:
        if not self.limits and self.max_wrong_fields is None:
            raise ValueError("a guarantee needs a limit: max_error, max_accuracy_loss or max_wrong_fields")
        if self.per_group and not self.limits_errors_alone:
            raise ValueError(f"per_group applies max_error to each {self.per_group} and allows no other limit")
        if self.max_foreign_share and (self.max_error is None or self.per_group):
            raise ValueError("max_foreign_share widens max_error, over all labels together: set it, without per_group")
        return self

    @property
    def limits(self) -> dict[str, float]:
        limits = {"error": self.max_error, "accuracy_loss": self.max_accuracy_loss}
        return {risk: limit for risk, limit in limits.items() if limit is not None}

    @property
    def n_limits(self) -> int:
        """Limits that share the error probability, each alike."""
        return len(self.limits) + (self.max_wrong_fields is not None)

    @property
    def limits_errors_alone(self) -> bool:
        return set(self.limits) == {"error"} and self.n_limits == 1

    def at_share(self, share: float) -> Guarantee:
        """Return the guarantee as it is tested at `share` of its error probability, in (0, 1]."""
        return self.model_copy(update={"confidence": 1 - share * (1 - self.confidence)})

    @property
    def in_words(self) -> str:
        limits = [describe_limit(risk, limit) for risk, limit in self.limits.items()]
        if self.max_wrong_fields is not None:
            limits.append(f"at most {100 * self.max_wrong_fields:g} % of kept fields wrong")
        said = ", ".join(limits)
        if self.per_group:
            said += f" of each guaranteed {self.per_group}"
        if self.max_foreign_share:
            said += f" while at most {100 * self.max_foreign_share:g} % of requests are foreign"
        if self.unit:
            said += f", each {self.unit} counted once"
        return f"{said} ({100 * self.confidence:g} %)"


def describe_limit(risk: str, limit: float) -> str:
    """Describe one limit in words."""
    if risk == "error":
        return f"at most {100 * limit:g} % of kept answers wrong"
    return f"at most {100 * limit:g} point{'' if limit == 0.01 else 's'} less accurate than the large model"
