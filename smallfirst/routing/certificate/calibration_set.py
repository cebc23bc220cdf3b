"""The rows that certify: every stage's answers to them, which of these thresholds keep, and what that shows of a limit.

| limit | loss of a row | rows | test |
|---|---|---|---|
| error | the accepted answer is wrong | accepted rows | exact binomial |
| error, with foreign requests | the same, or the request is foreign | accepted, own and foreign rows | three of them |
| accuracy_loss | large right minus routed right: -1, 0 or 1 | rows with gold and large's answer | exact trinomial |

Paraphrases of a case, invoices of one layout and the fields of an answer are right and wrong together: they are one
observation, a unit; a row without a group is one by itself. The claim is about a request of a group drawn like these
groups, each counting alike. Of whole answers one row a unit counts, drawn whatever is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.base.records import Record, fingerprint
from smallfirst.base.stats.intervals import is_mean_below, trinomial_upper_bound, upper_bound, wilson
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.models.confidence import IsotonicCurve
from smallfirst.routing.certificate.certificate import LABEL, Guarantee, RiskResult, calibrated_fields
from smallfirst.routing.certificate.looks import text_fingerprints
from smallfirst.routing.languages import detect_language
from smallfirst.tasks.call import function_of

MEASURED = {"cost_usd", "latency_ms"}
"""Fields of a row that are measured anew with equal answers."""
MIXTURE_LEVELS = (0.5, 0.1, 0.4)
"""Parts of the level for the error of own accepted rows, the share of own and that of foreign rows accepted."""
_SEED = 0


@dataclass(frozen=True)
class FieldTable:
    """The fields of the last stage's n answers."""

    confidence: np.ndarray
    """By row and field, in [0, 1]; NaN where the model gives none."""
    wrong: np.ndarray
    names: tuple[str, ...]
    unit: np.ndarray
    """Number of each row's unit, from 0."""

    @classmethod
    def of(cls, rows: Sequence[EvaluatedRow]) -> FieldTable:
        """Return the fields of the rows. Raise ConfigError if the rows say nothing about fields."""
        if any(row.wrong_fields is None for row in rows) or not any(row.field_confidence for row in rows):
            raise ConfigError(
                "routing.guarantee.max_wrong_fields: these answers have no fields with a confidence",
                hint="it is for tasks of kind extract whose small model writes JSON; run smallfirst evaluate task.yaml",
            )
        known, wrong = [calibrated_fields(row.field_confidence, {}) for row in rows], [row.wrong_fields for row in rows]
        names = tuple(dict.fromkeys(name for row in (*known, *wrong) for name in row or ()))
        return cls(
            confidence=np.array([[row.get(name, np.nan) for name in names] for row in known]),
            wrong=np.array([[name in (row or ()) for name in names] for row in wrong]),
            names=names,
            unit=unit_numbers([row.group for row in rows]),
        )

    def calibrated(self, curves: Mapping[str, IsotonicCurve]) -> FieldTable:
        """Return the fields with the confidences that the curves make of theirs, 0 where there is none."""
        columns = [
            curves[name].at_each(column) if name in curves else column
            for name, column in zip(self.names, self.confidence.T, strict=True)
        ]
        return replace(self, confidence=np.nan_to_num(np.stack(columns, axis=1)))


@dataclass(frozen=True)
class CalibrationSet:
    """The answers of every stage to n calibration rows, as they are served, and who says which are right."""

    confidence: np.ndarray
    """By stage, cheapest first, and row, in [0, 1]; 0 where a model gives none."""
    right: np.ndarray
    """By stage and row."""
    cost_usd: np.ndarray
    """By stage and row, the large model last; the mean of the others on a row that it was not asked."""
    asked: np.ndarray
    large_right: np.ndarray
    """By row: the large model was right; false where it was not asked."""
    judged_by: Literal["gold", "large"] = "gold"
    """Whose answers say what is right."""
    unit: np.ndarray | None = None
    """By row the group that it belongs to, empty for none; None where no row has one."""
    place: np.ndarray | None = None
    """By row where it stands in its group; None where groups count by one row."""
    most_of_group: int = 1
    """Kept answers of a group that count, the first ones."""
    part: np.ndarray | None = None
    """By row what the guarantee counts by itself: the last stage's answer, the function that it calls (empty for one
    without a limit of its own) or the value of a tag; None without."""
    fields: FieldTable | None = None
    """None where no limit is on fields."""
    foreign: np.ndarray = field(default_factory=lambda: np.zeros((1, 0)))
    """Confidences by stage and foreign row, which nothing was fitted on, in [0, 1]."""
    foreign_share: float = 0.0
    """Share of foreign requests up to which the guarantee is to hold, in [0, 1)."""
    selection: CalibrationSet | None = None
    """The stages' answers to rows that certify nothing: they choose where a search begins. None: a fixed rule does."""
    texts: frozenset[str] = frozenset()
    """What names the rows by their texts (`looks.text_fingerprints`)."""
    stages: tuple[str, ...] = ("small",)
    fingerprint: str = ""
    """Of the rows."""

    @classmethod
    def of(
        cls,
        drafts: Sequence[Evaluation],
        large: Evaluation | None = None,
        *,
        judged_by: Literal["gold", "large"] = "gold",
        guarantee: Guarantee | None = None,
        foreign: Sequence[Sequence[float]] = (),
        selection: Sequence[Evaluation] = (),
        choosing: bool = False,
    ) -> CalibrationSet:
        """Return the cascade of `drafts`, cheapest first, on the last one's rows, as the guarantee counts it.

        `large` may cover a part of the rows. The order of rows does not matter. Raise DataError if a draft lacks rows,
        or a row the tag that the guarantee groups by, unless the rows are for `choosing` alone; ConfigError for a
        guarantee by group about several stages, or by field about answers without fields.
        """
        guarantee, last = guarantee or Guarantee(), drafts[-1]
        rows = sorted(last.rows, key=lambda row: row.model_dump_json(exclude=MEASURED))
        for draft in drafts:
            if missing := sum(row.key not in draft.by_key for row in rows):
                raise DataError(
                    f"{draft.candidate} was not measured on {missing} of the {len(rows)} calibration rows of "
                    f"{last.candidate}",
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

        right_large = [row is not None and (row.correct or judged_by != "gold") for row in by_large]
        groups = [row.group for row in rows]
        plain = guarantee.model_copy(update={"max_foreign_share": 0.0})
        return cls(
            confidence=table(lambda row: row.confidence or 0.0, float),
            right=table(lambda row: row.correct, bool),
            cost_usd=np.vstack([table(lambda row: row.cost_usd, float), large_cost]),
            asked=asked,
            large_right=np.array(right_large, dtype=bool),
            judged_by=judged_by,
            unit=np.array(groups, dtype=object) if any(groups) else None,
            place=np.array([len(row.text) for row in rows]) if guarantee.most_of_group else None,
            most_of_group=guarantee.most_of_group or 1,
            part=_parts(rows, guarantee, len(drafts), may_lack=choosing),
            fields=FieldTable.of(rows) if guarantee.max_wrong_fields and rows else None,
            foreign=np.array(sorted(zip(*foreign, strict=True)), dtype=float).T.reshape(len(drafts), -1),
            foreign_share=guarantee.max_foreign_share,
            selection=cls.of(selection, guarantee=plain, choosing=True) if selection else None,
            texts=frozenset(text_fingerprints(row.text for row in rows)),
            stages=tuple(draft.candidate for draft in drafts),
            fingerprint=last.dataset_fingerprint,
        )

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
        return self.asked & (self.judged_by == "gold")

    def outcome(self, thresholds: Sequence[float]) -> CascadeOutcome:
        least = np.asarray(thresholds, dtype=float)[:, None]
        confident = self.confidence >= least
        stage = np.where(confident.any(axis=0), confident.argmax(axis=0), self.n_stages)
        return CascadeOutcome(self, stage, int((self.foreign >= least).any(axis=0).sum()))

    def take(self, rows: np.ndarray) -> CalibrationSet:
        """Return these rows of the tables by row, with all else as it is."""
        names = ("confidence", "right", "cost_usd", "asked", "large_right", "unit", "place", "part")
        tables = {name: table for name in names if (table := getattr(self, name)) is not None}
        return replace(self, **{name: table[..., rows] for name, table in tables.items()})

    def one_row_a_unit(self) -> CalibrationSet:
        return (
            self
            if self.unit is None or self.place is not None
            else self.take(one_row_a_unit(unit_numbers(self.unit.tolist())))
        )


def trial_fingerprint(*inputs: object) -> str:
    """Return what tells a certificate from another: all that `certify` proves something with, to the last digit."""
    return fingerprint(_plain(inputs))


def _plain(value: Any) -> Any:
    """Return plain JSON. Costs are left out: one at most chooses among thresholds that are shown together."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if is_dataclass(value):
        names = [one.name for one in fields(value) if one.name not in ("cost_usd", "fingerprint")]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Record):
        return value.model_dump(mode="json")
    if isinstance(value, frozenset):
        return sorted(value)
    return [*map(_plain, value)] if isinstance(value, tuple) else value


def _parts(rows: Sequence[EvaluatedRow], guarantee: Guarantee, n_stages: int, *, may_lack: bool) -> np.ndarray | None:
    """Return the group of each row (rows,), None for one in a language that is none of the guarantee's."""
    name, own = guarantee.per_group, guarantee.max_error_of
    if own:
        return np.array([called if (called := function_of(row.answer)) in own else "" for row in rows], dtype=object)
    if not name:
        return None
    if n_stages > 1:
        raise ConfigError(
            f"a guarantee by {name} covers one drafting stage, and there are {n_stages}",
            hint="leave out guarantee.per_group, or let one stage draft",
        )
    if guarantee.languages:
        told = [detect_language(row.text) for row in rows]
        return np.array([one if one in guarantee.languages else None for one in told], dtype=object)
    found = [row.answer if name == LABEL else row.tags.get(name, "") for row in rows]
    if name != LABEL and not may_lack and (missing := found.count("")):
        raise DataError(
            f"routing.guarantee.per_group: {missing} of {len(rows)} calibration rows have no {name}",
            hint=f"name the column in data.columns.tags: [{name}] and run smallfirst evaluate task.yaml",
        )
    return np.array(found, dtype=object)


def unit_numbers(names: Sequence[str]) -> np.ndarray:
    """Return the number of each row's unit (n,), counted from 0: its group, or the row where that is empty."""
    places: dict[object, int] = {}
    return np.array([places.setdefault(name or i, len(places)) for i, name in enumerate(names)], dtype=int)


def one_row_a_unit(units: np.ndarray) -> np.ndarray:
    """Return the indices, ascending, of one row of each unit, drawn alike whatever the answers."""
    order = np.random.default_rng(_SEED).permutation(len(units))
    _, first = np.unique(units[order], return_index=True)
    return np.sort(order[first])


@dataclass(frozen=True)
class CascadeOutcome:
    """Which stage answers each row at given thresholds."""

    data: CalibrationSet
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

    @property
    def accuracy_losses(self) -> tuple[int, int, int]:
        """On how many rows only the large model is right, on how many only the routed answer, and of how many."""
        both = self.data.paired
        large, routed = self.data.large_right[both], self.right[both]
        return int((large & ~routed).sum()), int((routed & ~large).sum()), int(both.sum())


def measure_risk(risk: str, outcome: CascadeOutcome, limit: float, level: float) -> RiskResult:
    """Return what an outcome shows at `level` about one limit, of `error` or `accuracy_loss`."""
    data, n = outcome.data, outcome.n_accepted
    if risk == "error":
        losses = int((outcome.accepted & ~outcome.right).sum())
        value, bound = losses / max(1, n), upper_bound(losses, n, confidence=1 - level)
        if share := data.foreign_share:
            value, bound = mixture(losses, n, data.n, (outcome.n_foreign_accepted, data.n_foreign), share, level)
    else:
        losses, gains, n = outcome.accuracy_losses
        value, bound = (losses - gains) / max(1, n), trinomial_upper_bound(losses, gains, n, confidence=1 - level)
    return RiskResult(risk=risk, limit=limit, value=value, bound=bound, n=n)


def is_shown(risk: str, outcome: CascadeOutcome, limit: float, level: float) -> bool:
    """Return True if an outcome shows a limit at `level`."""
    if risk == "accuracy_loss":  # a test is sooner done than a bound
        losses, gains, n = outcome.accuracy_losses
        return n > 0 and is_mean_below(limit, losses, gains, n, level=level)
    return outcome.n_accepted > 0 and measure_risk(risk, outcome, limit, level).bound <= limit


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
    disagreement = 0.0 if data.judged_by == "large" else most(only_small, level)
    found = {"error": {"person": error, "large": error + disagreement}}
    if guarantee.max_accuracy_loss is not None:
        level = (1 + level) / 2
        kept = guarantee.max_accuracy_loss / max(1e-9, wilson(outcome.n_accepted, data.n).low)
        by_person = kept + most(large_wrong, level)
        found["accuracy_loss"] = {"person": by_person, "large": by_person + most(only_small, level)}
    return {risk: {judge: most for judge, most in by.items() if most < 1} for risk, by in found.items()}
