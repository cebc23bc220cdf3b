"""How often a teacher, a model that labels rows, agrees with the people who labelled them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.tasks.task import Task


class TeacherAnswer(NamedTuple):
    """One answer of a teacher to one row."""

    answer: str | None
    confidence: float | None = None
    """The model's own confidence, in [0, 1]; None if it gives none."""

    def is_confident(self, min_confidence: float) -> bool:
        """Return whether there is an answer with a confidence of at least `min_confidence`; at 0 any answer has."""
        if self.answer is None or min_confidence <= 0:
            return self.answer is not None
        return self.confidence is not None and self.confidence >= min_confidence


class TeacherAgreement(Record):
    """Agreement of a teacher with people; None and empty where it was not asked."""

    accuracy: Estimate | None = None
    """Share of rows answered by people on which it is right, Wilson interval; no answer is wrong."""
    confident_accuracy: Estimate | None = None
    """Share of right answers among its confident ones: the accuracy to expect of the training file."""
    checked_on: str = ""

    @property
    def in_words(self) -> list[str]:
        if self.accuracy is None or self.confident_accuracy is None:
            return []
        return [
            f"it is right on {self.accuracy} of {self.accuracy.n} {self.checked_on}; "
            f"where it was confident, on {self.confident_accuracy} of {self.confident_accuracy.n}"
        ]


def agreement_with_people(
    answers: Sequence[TeacherAnswer], golds: Sequence[Sequence[str]], task: Task, *, min_confidence: float
) -> TeacherAgreement:
    """Return the agreement from the right answers that people gave to each row.

    Empty without rows. Raises ValueError if the lengths differ.
    """
    if not answers:
        return TeacherAgreement()
    right = [task.score(gold, said.answer) >= task.pass_score for said, gold in zip(answers, golds, strict=True)]
    confident = [ok for said, ok in zip(answers, right, strict=True) if said.is_confident(min_confidence)]
    return TeacherAgreement(
        accuracy=wilson(sum(right), len(right)), confident_accuracy=wilson(sum(confident), len(confident))
    )
