"""A teacher's answer by majority vote (Wang et al. 2022), and its agreement with itself and with people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from smallfirst.evaluation.risk_coverage import risk_coverage_curve
from smallfirst.evaluation.self_agreement import AnswerMatcher, answer_kappa, repeated_answers
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, wilson
from smallfirst.tasks.task import Task

N_THRESHOLDS = 10
"""Rows of the table from which `min_confidence` is chosen."""


class TeacherAnswer(NamedTuple):
    """One answer of a teacher to one row."""

    answer: str | None
    confidence: float | None = None
    """The model's own confidence, in [0, 1]; None if it gives none."""


class MajorityVote(Record):
    """The result of all answers to one row."""

    answer: str | None
    """The most frequent answer, the earliest of equals; None if there is none."""
    agreement: float | None
    """Share of all samples with this answer, in (0, 1]; None if the row was asked once, or has no answer."""
    confidence: float | None
    """Mean of the model's own confidence over the samples with this answer, in [0, 1]; None if it gives none."""

    @property
    def combined_confidence(self) -> float | None:
        """The lower of agreement and confidence; None if neither is known."""
        return min((x for x in (self.agreement, self.confidence) if x is not None), default=None)

    def is_confident(self, min_confidence: float) -> bool:
        """Return whether there is an answer with a combined confidence of `min_confidence`; at 0 any answer has."""
        if self.answer is None or min_confidence <= 0:
            return self.answer is not None
        return self.combined_confidence is not None and self.combined_confidence >= min_confidence


class ConfidenceThreshold(Record):
    """Rows accepted at one value of `min_confidence`, among those answered by people."""

    min_confidence: float
    """Least combined confidence that is accepted, in [0, 1]."""
    share: float
    """Share of these rows that is accepted, in [0, 1]."""
    accuracy: Estimate
    """Share of right answers among the accepted, Wilson interval."""


class TeacherAgreement(Record):
    """Agreement of a teacher with itself and with people; None and empty where it was not asked."""

    self_agreement: Estimate | None = None
    """Share of rows with the same answer twice, Wilson interval; no answer is never the same."""
    kappa: Estimate | None = None
    """Self-agreement beyond chance, in [-1, 1]; None where answers are no closed set."""
    accuracy: Estimate | None = None
    """Share of rows answered by people on which it is right, Wilson interval; no answer is wrong."""
    confident_accuracy: Estimate | None = None
    """Share of right answers among its confident ones: the accuracy to expect of the training file."""
    thresholds: tuple[ConfidenceThreshold, ...] = ()
    """Other values of `min_confidence`, the strictest first; empty if the teacher never gives a confidence."""
    checked_on: str = ""

    @property
    def in_words(self) -> list[str]:
        lines = []
        if self.self_agreement is not None:
            lines.append(
                f"asked twice it gives the same answer on {self.self_agreement} of {self.self_agreement.n} rows"
            )
        if self.accuracy is not None and self.confident_accuracy is not None:
            lines.append(
                f"it is right on {self.accuracy} of {self.accuracy.n} {self.checked_on}; "
                f"where it was confident, on {self.confident_accuracy} of {self.confident_accuracy.n}"
            )
        if self.thresholds:
            lines.append("min_confidence  accepts  accuracy of the accepted")
            lines += [
                f"{t.min_confidence:14.3f}  {t.share:7.0%}  {t.accuracy} n={t.accuracy.n}" for t in self.thresholds
            ]
        return lines


def answer_matcher(task: Task) -> AnswerMatcher:
    """Return whether two answers are equal or, unless a closed set, one would be right where the other is."""
    if task.closed:
        return lambda first, second: first == second
    return lambda first, second: first == second or task.score((first,), second) >= task.pass_score


def majority_vote(samples: Sequence[TeacherAnswer], same: AnswerMatcher) -> MajorityVote:
    """Return the vote of one row. Samples without an answer count against every answer."""
    given = [(i, sample.answer) for i, sample in enumerate(samples) if sample.answer is not None]
    if not given:
        return MajorityVote(answer=None, agreement=None, confidence=None)
    supporters = [(answer, [j for j, other in given if same(answer, other)]) for _, answer in given]
    answer, support = max(supporters, key=lambda pair: len(pair[1]))  # the first of equals
    known = [c for j in support if (c := samples[j].confidence) is not None]
    return MajorityVote(
        answer=answer,
        agreement=len(support) / len(samples) if len(samples) > 1 else None,
        confidence=sum(known) / len(known) if known else None,
    )


def agreement_with_itself(pairs: Sequence[tuple[TeacherAnswer, TeacherAnswer]], task: Task) -> TeacherAgreement:
    """Return `self_agreement` and `kappa` from rows asked twice; empty without such rows."""
    if not pairs:
        return TeacherAgreement()
    first, second = [a.answer for a, _ in pairs], [b.answer for _, b in pairs]
    return TeacherAgreement(
        self_agreement=wilson(sum(repeated_answers(first, second, answer_matcher(task))), len(pairs)),
        kappa=answer_kappa(first, second) if task.closed else None,
    )


def agreement_with_people(
    votes: Sequence[MajorityVote], golds: Sequence[Sequence[str]], task: Task, *, min_confidence: float
) -> TeacherAgreement:
    """Return `accuracy`, `confident_accuracy` and `thresholds` from the right answers that people gave to each row.

    Empty without rows. Raises ValueError if the lengths differ.
    """
    if not votes:
        return TeacherAgreement()
    right = [task.score(gold, v.answer) >= task.pass_score for v, gold in zip(votes, golds, strict=True)]
    confident = [ok for v, ok in zip(votes, right, strict=True) if v.is_confident(min_confidence)]
    points = risk_coverage_curve([v.combined_confidence for v in votes], right, n_points=N_THRESHOLDS)
    return TeacherAgreement(
        accuracy=wilson(sum(right), len(right)),
        confident_accuracy=wilson(sum(confident), len(confident)),
        thresholds=tuple(
            ConfidenceThreshold(min_confidence=p.confidence, share=p.coverage, accuracy=_complement(p.error))
            for p in points
        ),
    )


def _complement(error: Estimate) -> Estimate:
    return Estimate(value=1 - error.value, low=1 - error.high, high=1 - error.low, n=error.n)
