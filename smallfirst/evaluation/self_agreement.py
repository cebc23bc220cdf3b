"""How well the large model agrees with itself: nothing that learns from its answers can agree with it much better.

The same rows are answered twice, at a temperature or with other solved examples, which costs a second pass of the large
model. Of a model that draws its answer to a row with probabilities p, two answers are the same with probability
sum(p²); whoever always gives its likeliest answer matches one with probability max(p). As sum(p²) <= max(p) <=
sqrt(sum(p²)) in every row, and by Jensen over rows, the best match lies between the agreement and its square root.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

from smallfirst.errors import SmallfirstError
from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, cohen_kappa, wilson

Same = Callable[[str, str], bool]


class SelfAgreement(Record):
    """The large model against itself and against the given answers, on the rows that it was asked twice."""

    itself: Estimate
    """Share of rows on which it gives the same answer twice; no answer is never the same."""
    gold: Estimate
    """Share of rows on which its first answer is right."""
    gold_again: Estimate
    """Share of rows on which its second answer is right."""
    kappa: Estimate | None
    """Agreement with itself beyond chance, in [-1, 1]; None where answers were compared otherwise than by equality."""
    same_but_wrong: Estimate
    """Share of rows on which it gives the same wrong answer twice: asking again will not mend them, and some of the
    given answers may be wrong."""
    note: str = ""
    """How it was measured, from the notes of both passes."""

    @property
    def attainable(self) -> tuple[float, float]:
        """Between which shares the best match with the large model's answers lies, each end with its uncertainty."""
        return self.itself.low, math.sqrt(self.itself.high)

    @property
    def in_words(self) -> str:
        """What was found and what it means for a small model."""
        low, high = self.attainable
        return (
            f"Asked twice, the large model gives the same answer on {self.itself} of {self.itself.n} rows, so a model "
            f"that learns from its answers can match them on {low:.3f} to {high:.3f} of rows at best. It is right on "
            f"{self.gold}; on {self.same_but_wrong} it gives the same wrong answer twice."
        )


def self_agreement(first: Evaluation, second: Evaluation, *, same: Same | None = None) -> SelfAgreement:
    """The agreement of two passes of one model, on the rows that both have.

    `same` says whether two answers mean the same; without it they must be equal. Raises SmallfirstError if the passes
    share no row or were made by different models.
    """
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
    # No answer twice is no agreement, so each pass has a word of its own for it.
    once: list[Hashable] = [(1,) if a.answer is None else a.answer for a, _ in pairs]
    again: list[Hashable] = [(2,) if b.answer is None else b.answer for _, b in pairs]
    alike = [
        a.answer is not None and b.answer is not None and (same(a.answer, b.answer) if same else a.answer == b.answer)
        for a, b in pairs
    ]
    n = len(pairs)
    return SelfAgreement(
        itself=wilson(sum(alike), n),
        gold=wilson(sum(a.correct for a, _ in pairs), n),
        gold_again=wilson(sum(b.correct for _, b in pairs), n),
        kappa=None if same else cohen_kappa(once, again),
        same_but_wrong=wilson(
            sum(s and not a.correct and not b.correct for s, (a, b) in zip(alike, pairs, strict=True)), n
        ),
        note="; ".join(dict.fromkeys(note for note in (first.note, second.note) if note)),
    )
