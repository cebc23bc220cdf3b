"""What a teacher says of a row, how sure of it it is, and how far it may be believed.

A teacher is a large model whose answers another model learns from. Asked several times, it gives the answer that most
draws agree on, and the share of them is how sure it is (self-consistency, Wang et al. 2022); a confidence of its own
counts as well. Neither is proof: a model can be surely wrong, so both are held against answers that people gave. The
price is a few answers that label nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from smallfirst.evaluation.risk_coverage import risk_coverage_curve
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, cohen_kappa, wilson
from smallfirst.tasks.task import Task

Same = Callable[[str, str], bool]
N_THRESHOLDS = 10
"""Steps of the table from which `sure_from` is chosen."""


class TeacherAnswer(NamedTuple):
    """One answer of a teacher to one row."""

    answer: str | None
    """The parsed answer; None if there was none."""
    confidence: float | None = None
    """The model's own, in [0, 1]; None if it gives none."""


class MajorityVote(Record):
    """What the draws of one row come to."""

    answer: str | None
    """The answer that most draws give, the earliest of equals; None if none of them is an answer."""
    agreement: float | None
    """Share of all draws that say the same, in (0, 1]; None if the row was asked once, or has no answer."""
    confidence: float | None
    """Mean of the model's own confidence over the draws that say it, in [0, 1]; None if it gives none."""

    @property
    def sureness(self) -> float | None:
        """The lower of agreement and confidence; None if neither is known."""
        return min((x for x in (self.agreement, self.confidence) if x is not None), default=None)

    def is_confident(self, sure_from: float) -> bool:
        """True if there is an answer and its sureness reaches `sure_from`; at 0 every answer does."""
        if self.answer is None or sure_from <= 0:
            return self.answer is not None
        return self.sureness is not None and self.sureness >= sure_from


class ConfidenceThreshold(Record):
    """What one value of `sure_from` would keep, on rows that people have answered."""

    sure_from: float
    """Least sureness that is kept, in [0, 1]."""
    share: float
    """Share of these rows that is kept, in [0, 1]."""
    accuracy: Estimate
    """Share of right answers among the kept, Wilson interval."""


class TeacherAgreement(Record):
    """How far a teacher may be believed; None and empty where it was not asked."""

    itself: Estimate | None = None
    """Share of rows on which two draws say the same, Wilson interval; no answer is never the same."""
    kappa: Estimate | None = None
    """The same beyond chance, in [-1, 1]; None where answers are no closed set."""
    people: Estimate | None = None
    """Share of rows answered by people on which it is right, sure or not, Wilson interval; no answer is wrong."""
    people_sure: Estimate | None = None
    """Share of right answers among those it was sure of: what to expect of the training file."""
    thresholds: tuple[ConfidenceThreshold, ...] = ()
    """What other values of `sure_from` would keep, the strictest first; empty if the teacher never says how sure it
    is."""
    checked_on: str = ""
    """Which rows people have answered."""

    @property
    def in_words(self) -> list[str]:
        """One line for each thing known, then the table."""
        lines = []
        if self.itself is not None:
            lines.append(f"asked twice it says the same on {self.itself} of {self.itself.n} rows")
        if self.people is not None and self.people_sure is not None:
            lines.append(
                f"it is right on {self.people} of {self.people.n} {self.checked_on}; "
                f"where it was sure, on {self.people_sure} of {self.people_sure.n}"
            )
        if self.thresholds:
            lines.append("sure_from  keeps  accuracy of the kept")
            lines += [f"{t.sure_from:9.3f}  {t.share:5.0%}  {t.accuracy} n={t.accuracy.n}" for t in self.thresholds]
        return lines


def answer_matcher(task: Task) -> Same:
    """Whether two parsed answers mean the same to the task: equal, or as right as it asks a right answer to be."""
    if task.closed:
        return lambda first, second: first == second
    return lambda first, second: first == second or task.score((first,), second) >= task.pass_score


def majority_vote(draws: Sequence[TeacherAnswer], same: Same) -> MajorityVote:
    """What the draws of one row come to. Draws without an answer count against every answer."""
    said = [(i, draw.answer) for i, draw in enumerate(draws) if draw.answer is not None]
    if not said:
        return MajorityVote(answer=None, agreement=None, confidence=None)
    backers = [(answer, [j for j, other in said if same(answer, other)]) for _, answer in said]
    answer, backing = max(backers, key=lambda pair: len(pair[1]))  # the first of equals
    known = [c for j in backing if (c := draws[j].confidence) is not None]
    return MajorityVote(
        answer=answer,
        agreement=len(backing) / len(draws) if len(draws) > 1 else None,
        confidence=sum(known) / len(known) if known else None,
    )


def agreement_with_itself(pairs: Sequence[tuple[TeacherAnswer, TeacherAnswer]], task: Task) -> TeacherAgreement:
    """A Trust with `itself` and `kappa` from rows asked twice; an empty one without such rows."""
    if not pairs:
        return TeacherAgreement()
    same = answer_matcher(task)
    alike = [a.answer is not None and b.answer is not None and same(a.answer, b.answer) for a, b in pairs]
    # No answer twice is no agreement, so each draw has a word of its own for it.
    first = [(1,) if a.answer is None else a.answer for a, _ in pairs]
    second = [(2,) if b.answer is None else b.answer for _, b in pairs]
    return TeacherAgreement(
        itself=wilson(sum(alike), len(pairs)),
        kappa=cohen_kappa(first, second) if task.closed else None,
    )


def agreement_with_people(
    votes: Sequence[MajorityVote], golds: Sequence[Sequence[str]], task: Task, *, sure_from: float
) -> TeacherAgreement:
    """A Trust with `people`, `people_sure` and `thresholds`, from the right answers that people gave to each row.

    An empty one without rows. Raises ValueError if the lengths differ.
    """
    if not votes:
        return TeacherAgreement()
    right = [task.score(gold, v.answer) >= task.pass_score for v, gold in zip(votes, golds, strict=True)]
    sure = [ok for v, ok in zip(votes, right, strict=True) if v.is_confident(sure_from)]
    points = risk_coverage_curve([v.sureness for v in votes], right, n_points=N_THRESHOLDS)
    return TeacherAgreement(
        people=wilson(sum(right), len(right)),
        people_sure=wilson(sum(sure), len(sure)),
        thresholds=tuple(
            ConfidenceThreshold(sure_from=p.confidence, share=p.coverage, accuracy=_complement(p.error)) for p in points
        ),
    )


def _complement(error: Estimate) -> Estimate:
    return Estimate(value=1 - error.value, low=1 - error.high, high=1 - error.low, n=error.n)
