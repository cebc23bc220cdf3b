"""The gate's accuracy as audits watch it where a candidate went live by its gate alone."""

from __future__ import annotations

from typing import Literal

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.gate import Gate
from smallfirst.records import Record
from smallfirst.stats.intervals import upper_bound

CONFIDENCE = 0.95
"""Level of the bounds on the large model's own mistakes, which all limits of a judge share."""


class AuditedAccuracy(Record):
    """How many answers of a small model may be called wrong in audits before its gate counts as no longer met."""

    words: str
    """What the gate allows, such as "at most 20 % of all small answers wrong"."""
    by_person: float
    """Largest share that a person may call wrong, in (0, 1)."""
    by_large: float | None = None
    """The same for the large model, which also calls wrong what is right where it errs; None: that is not known."""

    def limit_for(self, judge: Literal["large", "person"]) -> float | None:
        return self.by_large if judge == "large" else self.by_person


def audited_accuracy(gate: Gate, small: Evaluation, large: Evaluation | None) -> AuditedAccuracy | None:
    """Return what audits watch of a gate; None if it says nothing about accuracy, or no audit could break it.

    It is `accuracy_at_least` or, without that, `not_worse_than_large_by`: then as much may be wrong as the large model
    has, and the margin. `small` and `large` are answers to test rows; the large model's mistakes there are bounded.
    """
    pairs = [(row.correct, large.by_key[row.key].correct) for row in small.rows if large and row.key in large.by_key]
    n, judged_amiss = len(pairs), sum(ours and not theirs for ours, theirs in pairs)
    confidence = CONFIDENCE
    if gate.accuracy_at_least is not None:
        most = 1 - gate.accuracy_at_least
        words = f"at most {100 * most:.3g} % of all small answers wrong"
    elif gate.not_worse_than_large_by is not None and pairs:
        confidence = (1 + CONFIDENCE) / 2
        n_wrong = sum(not theirs for _, theirs in pairs)
        most = gate.not_worse_than_large_by + upper_bound(n_wrong, n, confidence=confidence)
        words = f"all small answers at most {100 * gate.not_worse_than_large_by:.3g} points less accurate than the "
        words += f"large model (at most {100 * most:.3g} % wrong)"
    else:
        return None
    by_large = most + upper_bound(judged_amiss, n, confidence=confidence) if pairs else 1.0
    if not 0 < most < 1:
        return None
    return AuditedAccuracy(words=words, by_person=most, by_large=by_large if by_large < 1 else None)
