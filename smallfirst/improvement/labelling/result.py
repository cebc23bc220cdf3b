"""What a labelling is told and what it makes: options, training rows in the task's format, and a record of how."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic

from smallfirst.data.dataset import Example
from smallfirst.data.row_formats import Columns, to_row
from smallfirst.evaluation.self_agreement import TeacherAgreement, TeacherAnswer
from smallfirst.improvement.labelling.unlabelled import FilterCounts
from smallfirst.improvement.rows_file import RowsRecord
from smallfirst.records import Record

LabelStatus = Literal["kept", "unsure", "unparseable", "failed", "unasked"]


class LabelOptions(Record):
    """How rows are labelled."""

    teacher: Path | None = None
    """Folder of a model of this task that labels; None: the large model of the task file."""
    out: Path = Path("labelled.jsonl")
    """File of the training rows; the record is written beside it as `<name>.labels.json`."""
    cap_usd: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    """Most that the answers to these rows may cost in all, in USD, those of earlier runs included. None: no limit."""
    yes: bool = False
    """Accept the estimated cost; not needed with a cap, or if labelling costs nothing."""
    min_confidence: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Least confidence of an answer that becomes a training row, in [0, 1]; 0 keeps every answer."""
    probe_calls: int = pydantic.Field(default=5, ge=1, le=100)
    """Answers to pay for the estimate if there are no earlier ones; they are used."""
    gold: Path | None = None
    """Rows answered by people, to measure the teacher on; None for the selection rows of the task."""
    check_rows: int = pydantic.Field(default=50, ge=0)
    """Most of these rows to ask."""

    @property
    def record_path(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.labels.json")


class CostEstimate(Record):
    """The estimated cost of the missing answers."""

    n_answers: int
    usd_each: float
    """Mean cost of the answers that the estimate is based on."""
    max_usd: float
    """Highest cost of one of them."""
    judged_by: str
    paid_usd: float = 0.0
    """Already paid for these rows, including the answers asked for the estimate."""

    @property
    def usd(self) -> float:
        return self.n_answers * self.usd_each

    @property
    def in_words(self) -> str:
        paid = f"${self.paid_usd:.4f} paid so far"
        if not self.n_answers:
            return f"no answer is missing, {paid}"
        most = f"${self.n_answers * self.max_usd:.4f} if all cost as much as the most expensive"
        return f"{self.n_answers:,} answers to ask, about ${self.usd:.4f} ({most}), based on {self.judged_by}; {paid}"


class LabelCounts(Record):
    """Outcomes of the rows that may be labelled; they add up to all of them."""

    n_kept: int = 0
    n_unsure: int = 0
    """Rows whose answer has too little confidence, or none."""
    n_unparseable: int = 0
    """Rows whose answer is no answer of the task."""
    n_failed: int = 0
    """Rows without a usable answer; the next run asks them again."""
    n_unasked: int = 0
    """Rows not asked before the cap was reached."""


class LabellingResult(RowsRecord):
    """The record of a labelling: teacher, rows, cost, and how accurate the teacher is."""

    task: str
    teacher: str
    prompt_fingerprint: str
    made_at: str
    """Date of this run in UTC, YYYY-MM-DD; each row has the date of its own answer."""
    smallfirst: str
    texts: str
    texts_fingerprint: str
    options: LabelOptions
    filtered: FilterCounts
    counts: LabelCounts
    """Outcomes of the other rows."""
    by_answer: dict[str, int] = {}
    """Training rows by answer, most frequent first; empty for open answers."""
    trust: TeacherAgreement
    price: CostEstimate
    """The estimate made before most of the cost was paid."""
    n_answers_now: int
    paid_now_usd: float
    paid_usd: float
    """Cost of all answers to these rows, including earlier runs."""
    lost_usd: float
    """Most that may have been paid, over all runs, for requests without an answer; counts against the cap."""
    go_on: str = ""
    """Why it stopped early and how to continue; empty if it finished."""

    @property
    def in_words(self) -> list[str]:
        c = self.counts
        lines = [
            f"{c.n_kept:,} rows labelled by {self.teacher} in {self.options.out}; left out: {c.n_unsure:,} unsure, "
            f"{c.n_unparseable:,} unparseable, {c.n_failed:,} without an answer, {c.n_unasked:,} not asked",
            self.filtered.in_words,
            f"paid ${self.paid_usd:.4f}, ${self.paid_now_usd:.4f} of it now for {self.n_answers_now:,} answers"
            + (f"; up to ${self.lost_usd:.4f} more for requests that brought none" if self.lost_usd else ""),
            *self.trust.in_words,
        ]
        return [*lines, *filter(None, [self.go_on])]


class LabelOutcome(NamedTuple):
    """One row that may be labelled, with its outcome."""

    example: Example
    fate: LabelStatus
    said: TeacherAnswer | None
    on: str


def by_answer(outcomes: Sequence[LabelOutcome]) -> dict[str, int]:
    """Count the training rows by answer, most frequent first."""
    kept = Counter(o.said.answer or "" for o in outcomes if o.fate == "kept" and o.said is not None)
    return dict(sorted(kept.items(), key=lambda pair: (-pair[1], pair[0])))


def training_file(outcomes: Sequence[LabelOutcome], columns: Columns, teacher: str) -> str:
    """Return the kept rows as JSON Lines in the task's format and column names, with teacher, confidence and date."""
    return "".join(
        json.dumps(_row(o, o.said, columns, teacher), ensure_ascii=False) + "\n"
        for o in outcomes
        if o.fate == "kept" and o.said is not None
    )


def _row(outcome: LabelOutcome, said: TeacherAnswer, columns: Columns, teacher: str) -> dict[str, Any]:
    values = {name: getattr(outcome.example, name) for name in Example.model_fields}
    answered = Example(**values | {"answer": said.answer})
    row = {getattr(columns, field): value for field, value in to_row(answered).items()}
    source = {"teacher": teacher, "confidence": said.confidence, "labelled_on": outcome.on}
    return row | {key: value for key, value in source.items() if key not in row}
