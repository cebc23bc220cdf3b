"""A model's agreement with itself and with people.

No model that learns from answers can agree much better with them than their author does: two answers drawn with
probabilities p agree with probability sum(p²), the likeliest one matches with max(p). As sum(p²) <= max(p) <=
sqrt(sum(p²)), the best match lies between the agreement and its square root.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from smallfirst.base.errors import SmallfirstError
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.tasks.task import Task


class SelfAgreement(Record):
    """The large model against itself and against the given answers, on the rows that it answered twice."""

    agreement: Estimate
    """Share of rows with the same answer twice; no answer is never the same."""
    accuracy: Estimate
    """Share of rows on which its first answer is right."""
    same_wrong_answer: Estimate
    """Share of rows with the same wrong answer twice: asking again will not correct them, and some of the given answers
    may be wrong."""
    note: str = ""
    """How it was measured, from the notes of both passes."""

    @property
    def attainable(self) -> tuple[float, float]:
        """Range of the best possible match with the large model's answers, each end with its uncertainty."""
        return self.agreement.low, math.sqrt(self.agreement.high)

    @property
    def in_words(self) -> str:
        low, high = self.attainable
        return (
            f"Asked twice, the large model gives the same answer on {self.agreement} of {self.agreement.n} rows, so a "
            f"model that learns from its answers can match them on {low:.3f} to {high:.3f} of rows at best. It is "
            f"right on {self.accuracy}; on {self.same_wrong_answer} it gives the same wrong answer twice."
        )


def self_agreement(first: Evaluation, second: Evaluation) -> SelfAgreement:
    """Compare two passes on the rows both have. Raise SmallfirstError if none is shared or the models differ."""
    if first.model != second.model:
        raise SmallfirstError(
            f"a model is compared with itself, but the passes were made by {first.model} and {second.model}",
            hint="give two evaluations of the large model; `compare` is for two models",
        )
    pairs = [(row, second.by_key[key]) for key, row in first.by_key.items() if key in second.by_key]
    if not pairs:
        raise SmallfirstError(
            f"the two passes of {first.model} share no row",
            hint="ask the second time about the same rows of the same split",
        )
    repeated = [a.answer is not None and a.answer == b.answer for a, b in pairs]
    n = len(pairs)
    return SelfAgreement(
        agreement=wilson(sum(repeated), n),
        accuracy=wilson(sum(a.correct for a, _ in pairs), n),
        same_wrong_answer=wilson(
            sum(s and not a.correct and not b.correct for s, (a, b) in zip(repeated, pairs, strict=True)), n
        ),
        note="; ".join(dict.fromkeys(note for note in (first.note, second.note) if note)),
    )


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


def answer_matcher(task: Task) -> Callable[[str, str], bool]:
    """Return whether two answers are equal or, unless a closed set, one would be right where the other is."""
    if task.closed:
        return lambda first, second: first == second
    return lambda first, second: first == second or task.score((first,), second) >= task.pass_score


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
