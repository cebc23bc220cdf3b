"""The large model's agreement with itself: no model that learns from its answers can agree with it much better.

Two answers drawn with probabilities p agree with probability sum(p²), the likeliest one matches with max(p). As
sum(p²) <= max(p) <= sqrt(sum(p²)), the best match lies between the agreement and its square root.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from smallfirst.errors import SmallfirstError
from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, cohen_kappa, wilson

AnswerMatcher = Callable[[str, str], bool]
"""Whether two parsed answers mean the same."""


class SelfAgreement(Record):
    """The large model against itself and against the given answers, on the rows that it answered twice."""

    agreement: Estimate
    """Share of rows with the same answer twice; no answer is never the same."""
    accuracy: Estimate
    """Share of rows on which its first answer is right."""
    second_accuracy: Estimate
    kappa: Estimate | None
    """Agreement beyond chance, in [-1, 1]."""
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
    once, again = [a.answer for a, _ in pairs], [b.answer for _, b in pairs]
    repeated = repeated_answers(once, again)
    n = len(pairs)
    return SelfAgreement(
        agreement=wilson(sum(repeated), n),
        accuracy=wilson(sum(a.correct for a, _ in pairs), n),
        second_accuracy=wilson(sum(b.correct for _, b in pairs), n),
        kappa=answer_kappa(once, again),
        same_wrong_answer=wilson(
            sum(s and not a.correct and not b.correct for s, (a, b) in zip(repeated, pairs, strict=True)), n
        ),
        note="; ".join(dict.fromkeys(note for note in (first.note, second.note) if note)),
    )


def repeated_answers(
    first: Sequence[str | None], second: Sequence[str | None], same: AnswerMatcher | None = None
) -> list[bool]:
    """Return for each row whether both answers are the same; no answer is never the same."""
    return [
        a is not None and b is not None and (same(a, b) if same else a == b) for a, b in zip(first, second, strict=True)
    ]


def answer_kappa(first: Sequence[str | None], second: Sequence[str | None]) -> Estimate:
    """Return Cohen's kappa of both passes; no answer twice is no agreement, so each pass has its own value for it."""
    once: list[Hashable] = [(1,) if answer is None else answer for answer in first]
    again: list[Hashable] = [(2,) if answer is None else answer for answer in second]
    return cohen_kappa(once, again)
