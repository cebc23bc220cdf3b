"""The cascade on calibration rows: which stage answers each row at given thresholds, and what that shows of a limit.

| limit | loss of a row | rows | test |
|---|---|---|---|
| error | the accepted answer is wrong | accepted rows | exact binomial |
| error, with foreign requests | the same, or the request is foreign | accepted, own and foreign rows | three of them |
| accuracy_loss | large right minus routed right: -1, 0 or 1 | rows with gold and large's answer | exact trinomial |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from smallfirst.base.errors import DataError
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import is_mean_below, trinomial_upper_bound, upper_bound, wilson
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.routing.certificate.guarantee import LABEL, Guarantee

NEVER_ACCEPT = 1.01
"""A threshold that no confidence reaches."""
MIXTURE_LEVELS = (0.5, 0.1, 0.4)
"""Parts of the level for the error of own accepted rows, the share of own and that of foreign rows accepted."""


@dataclass(frozen=True)
class CascadeData:
    """The answers of every stage to n calibration rows."""

    confidence: np.ndarray
    """By stage and row, in [0, 1]; 0 where a model gives none."""
    right: np.ndarray
    """By stage and row, by `labels`."""
    cost_usd: np.ndarray
    """By stage and row, the large model last; the mean of the others on a row that it was not asked."""
    asked: np.ndarray
    large_right: np.ndarray
    """By row: the large model was right; false where it was not asked."""
    labels: Literal["gold", "large"] = "gold"
    """Who decides what is right."""
    unit: np.ndarray | None = None
    """By row, as `unit_names` returns it."""
    part: np.ndarray | None = None
    """By row: what the guarantee counts by itself, the last stage's answer or the value of a tag; None without."""
    foreign: np.ndarray = field(default_factory=lambda: np.zeros((1, 0)))
    """Confidences by stage and foreign row, which nothing was fitted on, in [0, 1]."""
    foreign_share: float = 0.0
    """Share of foreign requests up to which the guarantee is to hold, in [0, 1)."""

    @property
    def n(self) -> int:
        return int(self.confidence.shape[1])

    @property
    def n_stages(self) -> int:
        return int(self.confidence.shape[0])

    @property
    def n_foreign(self) -> int:
        return int(self.foreign.shape[1])

    @property
    def paired(self) -> np.ndarray:
        """By row: the large model was asked, and the right answer is known from another source."""
        return self.asked & (self.labels == "gold")

    def outcome(self, thresholds: Sequence[float]) -> CascadeOutcome:
        least = np.asarray(thresholds, dtype=float)[:, None]
        confident = self.confidence >= least
        stage = np.where(confident.any(axis=0), confident.argmax(axis=0), self.n_stages)
        return CascadeOutcome(self, stage, int((self.foreign >= least).any(axis=0).sum()))

    def take(self, rows: np.ndarray) -> CascadeData:
        names = ("confidence", "right", "cost_usd", "asked", "large_right", "unit", "part")
        tables = {name: table for name in names if (table := getattr(self, name)) is not None}
        return replace(self, **{name: table[..., rows] for name, table in tables.items()})


@dataclass(frozen=True)
class CascadeOutcome:
    """Which stage answers each row at given thresholds."""

    data: CascadeData
    stage: np.ndarray
    """By row: number of the stage that answers; the number of stages for the large model."""
    n_foreign_accepted: int = 0

    @cached_property
    def accepted(self) -> np.ndarray:
        return np.asarray(self.stage < self.data.n_stages)

    @cached_property
    def n_accepted(self) -> int:
        return int(self.accepted.sum())

    def select(self, table: np.ndarray) -> np.ndarray:
        return np.asarray(table[self.stage, np.arange(self.data.n)])

    @cached_property
    def right(self) -> np.ndarray:
        """By row: the answer is right, the large model's where it answers."""
        return self.select(np.vstack([self.data.right, self.data.large_right]))

    @cached_property
    def mean_cost_usd(self) -> float:
        """Of a row's answer and every draft before it."""
        return float(self.select(self.data.cost_usd.cumsum(axis=0)).mean()) if self.data.n else 0.0


def cascade_data(
    drafts: Sequence[Evaluation],
    large: Evaluation | None = None,
    labels: Literal["gold", "large"] = "gold",
    guarantee: Guarantee | None = None,
    foreign: Sequence[Sequence[float]] = (),
) -> CascadeData:
    """Return the cascade of `drafts`, cheapest first, on the last one's rows, as the guarantee counts it.

    Raise DataError if a draft lacks rows, or a row the tag that the guarantee groups by.
    """
    rows, guarantee = drafts[-1].rows, guarantee or Guarantee()
    for draft in drafts:
        if missing := sum(row.key not in draft.by_key for row in rows):
            raise DataError(
                f"{draft.candidate} was not measured on {missing} of the {len(rows)} calibration rows of "
                f"{drafts[-1].candidate}",
                hint="smallfirst evaluate task.yaml",
            )
    by_large = [large.by_key.get(row.key) if large else None for row in rows]
    asked = np.array([row is not None for row in by_large], dtype=bool)
    large_cost = np.array([row.cost_usd if row else 0.0 for row in by_large])
    if asked.any():
        large_cost[~asked] = large_cost[asked].mean()

    def table(of: Callable[[EvaluatedRow], object], kind: type[object]) -> np.ndarray:
        found = [[of(draft.by_key[row.key]) for row in rows] for draft in drafts]
        return np.array(found, dtype=kind).reshape(len(drafts), -1)

    return CascadeData(
        confidence=table(lambda row: row.confidence or 0.0, float),
        right=table(lambda row: row.correct, bool),
        cost_usd=np.vstack([table(lambda row: row.cost_usd, float), large_cost]),
        asked=asked,
        large_right=np.array([row is not None and (row.correct or labels != "gold") for row in by_large], dtype=bool),
        labels=labels,
        unit=unit_names(rows),
        part=_parts(rows, guarantee.per_group) if guarantee.per_group else None,
        foreign=np.array(foreign or [()] * len(drafts), dtype=float),
        foreign_share=guarantee.max_foreign_share,
    )


def unit_names(rows: Sequence[EvaluatedRow]) -> np.ndarray | None:
    """Return by row the group that it belongs to, empty for none; None where no row has one."""
    return np.array([row.group for row in rows], dtype=object) if any(row.group for row in rows) else None


def _parts(rows: Sequence[EvaluatedRow], name: str) -> np.ndarray:
    found = [row.answer if name == LABEL else row.tags.get(name, "") for row in rows]
    if name != LABEL and (missing := found.count("")):
        raise DataError(
            f"routing.guarantee.per_group: {missing} of {len(rows)} calibration rows have no {name}",
            hint=f"name the column in data.columns.tags: [{name}] and run smallfirst evaluate task.yaml",
        )
    return np.array(found, dtype=object)


class RiskResult(Record):
    """What n rows show about one limit of the guarantee."""

    risk: str
    """`error` or `accuracy_loss`."""
    limit: float
    value: float
    bound: float
    """Upper bound on the measured value, at the level of this limit."""
    n: int


def measure_risk(risk: str, outcome: CascadeOutcome, limit: float, level: float) -> RiskResult:
    """Return what an outcome shows at `level` about one limit, of `error` or `accuracy_loss`."""
    data, n = outcome.data, outcome.n_accepted
    if risk == "error":
        losses = int((outcome.accepted & ~outcome.right).sum())
        value, bound = losses / max(1, n), upper_bound(losses, n, confidence=1 - level)
        if share := data.foreign_share:
            value, bound = mixture(losses, n, data.n, (outcome.n_foreign_accepted, data.n_foreign), share, level)
    else:
        losses, gains, n = _accuracy_losses(outcome)
        value, bound = (losses - gains) / max(1, n), trinomial_upper_bound(losses, gains, n, confidence=1 - level)
    return RiskResult(risk=risk, limit=limit, value=value, bound=bound, n=n)


def is_shown(risk: str, outcome: CascadeOutcome, limit: float, level: float) -> bool:
    """Return True if an outcome shows a limit at `level`."""
    if risk == "accuracy_loss":  # a test is sooner done than a bound
        losses, gains, n = _accuracy_losses(outcome)
        return n > 0 and is_mean_below(limit, losses, gains, n, level=level)
    return outcome.n_accepted > 0 and measure_risk(risk, outcome, limit, level).bound <= limit


def _accuracy_losses(outcome: CascadeOutcome) -> tuple[int, int, int]:
    """Return on how many rows only the large model is right, on how many only the routed answer, and of how many."""
    both = outcome.data.paired
    large, routed = outcome.data.large_right[both], outcome.right[both]
    return int((large & ~routed).sum()), int((routed & ~large).sum()), int(both.sum())


def mixture(losses: int, n: int, own: int, foreign: tuple[int, int], share: float, level: float) -> tuple[float, float]:
    """Return the error, and its bound, while a share `share` in (0, 1) of requests is foreign, each of which is wrong.

    `losses` of n accepted rows among `own` ones; `foreign`: accepted ones, and all. With accepted shares A of own and F
    of foreign requests and an error e of own accepted answers, accepted answers are wrong at ((1 - share) e A + share
    F) / ((1 - share) A + share F), which grows with e, F and the share and falls with A: exact binomial bounds on the
    three, which divide the level, bound it for every smaller share as well.
    """

    def mixed(error: float, accepted: float, accepted_foreign: float) -> float:
        kept, others = (1 - share) * accepted, share * accepted_foreign
        return (error * kept + others) / (kept + others) if kept + others else 1.0

    of_error, of_own, of_foreign = (1 - part * level for part in MIXTURE_LEVELS)
    least = 1 - upper_bound(own - n, own, confidence=of_own)
    most = upper_bound(*foreign, confidence=of_foreign)
    measured = mixed(*(k / max(1, m) for k, m in ((losses, n), (n, own), foreign)))
    return measured, mixed(upper_bound(losses, n, confidence=of_error), least, most)


def max_outside(share: float, own: tuple[int, int], foreign: tuple[int, int], *, confidence: float = 0.95) -> float:
    """Return the most of all requests that a check can call foreign while at most `share` are, in [0, 1].

    `own` and `foreign`: rows of the kind that it calls so, and their number; two exact bounds divide the level.
    """
    of_own, of_foreign = (upper_bound(*counts, confidence=(1 + confidence) / 2) for counts in (own, foreign))
    return max(of_own, (1 - share) * of_own + share * of_foreign)


def audit_limits(
    outcome: CascadeOutcome, accepted: np.ndarray, guarantee: Guarantee, error_bound: float
) -> dict[str, dict[str, float]]:
    """Return by risk and judge how many audited answers may be called wrong before the limit counts as broken.

    A person may call wrong what the guarantee allows (`error_bound` where it limits no errors); the large model also
    what is right where it is wrong itself. A kept answer loses accuracy only where the large model is right, so the
    limit on that leaves room for all that it had wrong. A limit that would be 1 or more shows nothing and is left out.
    """
    data, both = outcome.data, accepted & outcome.data.paired
    large_wrong, level = ~data.large_right & both, guarantee.confidence

    def most(rows: np.ndarray, level: float) -> float:
        return upper_bound(int(rows.sum()), int(both.sum()), confidence=level)

    only_small, error = large_wrong & outcome.right, guarantee.max_error or error_bound
    found = {"error": {"person": error, "large": error + (0.0 if data.labels == "large" else most(only_small, level))}}
    if guarantee.max_accuracy_loss is not None:
        level = (1 + level) / 2
        kept = guarantee.max_accuracy_loss / max(1e-9, wilson(outcome.n_accepted, data.n).low)
        by_person = kept + most(large_wrong, level)
        found["accuracy_loss"] = {"person": by_person, "large": by_person + most(only_small, level)}
    return {risk: {judge: most for judge, most in by.items() if most < 1} for risk, by in found.items()}
