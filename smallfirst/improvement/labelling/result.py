"""What came of a labelling: training rows in the task's own shape, and a record of how they were made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from smallfirst.data.dataset import Example
from smallfirst.data.row_formats import Columns, to_row
from smallfirst.evaluation.self_consistency import MajorityVote, TeacherAgreement
from smallfirst.improvement.labelling.options import LabelOptions
from smallfirst.improvement.labelling.unlabelled import FilterCounts
from smallfirst.records import Record

LabelStatus = Literal["kept", "unsure", "unparseable", "failed", "unasked"]


class CostEstimate(Record):
    """What the answers that are still missing will probably cost."""

    n_answers: int
    """Answers to be asked."""
    usd_each: float
    """Mean cost of the answers it is judged by."""
    dearest_usd: float
    """Cost of the dearest of them."""
    judged_by: str
    """Which answers those are."""
    paid_usd: float = 0.0
    """Paid for these rows by then, the answers asked to foretell the price included."""

    @property
    def usd(self) -> float:
        """All of them together, in USD."""
        return self.n_answers * self.usd_each

    @property
    def in_words(self) -> str:
        """One line."""
        paid = f"${self.paid_usd:.4f} paid so far"
        if not self.n_answers:
            return f"no answer is missing, {paid}"
        most = f"${self.n_answers * self.dearest_usd:.4f} if all were as dear as the dearest"
        return f"{self.n_answers:,} answers to ask, about ${self.usd:.4f} ({most}), judged by {self.judged_by}; {paid}"


class LabelCounts(Record):
    """What became of the rows that may be labelled; together they are all of them."""

    n_kept: int = 0
    """Became training rows."""
    n_unsure: int = 0
    """Have an answer that was not sure enough, or whose sureness is not known."""
    n_unparseable: int = 0
    """Were answered with something that is no answer of the task."""
    n_failed: int = 0
    """Got no usable answer from the model; the next run asks them again."""
    n_unasked: int = 0
    """Were not asked, or not often enough, before the cap was reached."""


class LabellingResult(Record):
    """One labelling: who, when, of what, at which price, and how far to believe it."""

    task: str
    """Task name."""
    teacher: str
    """Name of the model that labelled."""
    way: str
    """Fingerprint of model, prompt and settings."""
    made_at: str
    """Date of this run in UTC, YYYY-MM-DD; each row has the date of its own answer."""
    smallfirst: str
    """Version of smallfirst."""
    texts: str
    """File of the rows."""
    texts_fingerprint: str
    """Content fingerprint of the rows."""
    options: LabelOptions
    """What was asked for."""
    sifted: FilterCounts
    """Rows that may not be labelled, and why."""
    counts: LabelCounts
    """What became of the others."""
    by_answer: dict[str, int] = {}
    """Training rows by answer, most first; empty where answers are no closed set."""
    trust: TeacherAgreement
    """How far the teacher may be believed."""
    price: CostEstimate
    """What was foretold before most of it was paid."""
    n_answers_now: int
    """Answers asked in this run."""
    paid_now_usd: float
    """What they cost."""
    paid_usd: float
    """What all answers to these rows cost, those of earlier runs included."""
    lost_usd: float
    """Most that may have been paid, over all runs, for requests without an answer; counts against the cap."""
    go_on: str = ""
    """Why it stopped early and what to do; empty if it did not."""
    written: str = ""
    """Fingerprint of the training file as it was written."""

    @property
    def in_words(self) -> list[str]:
        """What happened, one line each."""
        c = self.counts
        lines = [
            f"{c.n_kept:,} rows labelled by {self.teacher} in {self.options.out}; left out: {c.n_unsure:,} unsure, "
            f"{c.n_unparseable:,} unparseable, {c.n_failed:,} without an answer, {c.n_unasked:,} not asked",
            self.sifted.in_words,
            f"paid ${self.paid_usd:.4f}, ${self.paid_now_usd:.4f} of it now for {self.n_answers_now:,} answers"
            + (f"; up to ${self.lost_usd:.4f} more for requests that brought none" if self.lost_usd else ""),
            *self.trust.in_words,
        ]
        return [*lines, *filter(None, [self.go_on])]


class LabelOutcome(NamedTuple):
    """One row that may be labelled, and what became of it."""

    example: Example
    fate: LabelStatus
    vote: MajorityVote | None
    on: str
    """Date of its last answer."""


def count_outcomes(outcomes: Sequence[LabelOutcome]) -> LabelCounts:
    """How many rows met which fate."""
    return LabelCounts(**{f"n_{fate}": n for fate, n in Counter(outcome.fate for outcome in outcomes).items()})


def by_answer(outcomes: Sequence[LabelOutcome]) -> dict[str, int]:
    """Training rows by answer, most first."""
    kept = Counter(o.vote.answer or "" for o in outcomes if o.fate == "kept" and o.vote is not None)
    return dict(sorted(kept.items(), key=lambda pair: (-pair[1], pair[0])))


def training_file(outcomes: Sequence[LabelOutcome], columns: Columns, teacher: str) -> str:
    """The kept rows as JSON Lines in the task's own shape and column names.

    Further keys, which loading ignores: `teacher`, its `confidence` and `agreement` (null where not known), and
    `labelled_on`.
    """
    return "".join(
        json.dumps(_row(o, o.vote, columns, teacher), ensure_ascii=False) + "\n"
        for o in outcomes
        if o.fate == "kept" and o.vote is not None
    )


def _row(outcome: LabelOutcome, vote: MajorityVote, columns: Columns, teacher: str) -> dict[str, Any]:
    values = {name: getattr(outcome.example, name) for name in Example.model_fields}
    answered = Example(**values | {"answer": vote.answer})
    row = {getattr(columns, field): value for field, value in to_row(answered).items()}
    source = {"teacher": teacher, "confidence": vote.confidence, "agreement": vote.agreement, "labelled_on": outcome.on}
    return row | {key: value for key, value in source.items() if key not in row}
