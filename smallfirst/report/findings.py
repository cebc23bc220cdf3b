"""What a run may have found beside its evaluations: learning curve, label errors, ceiling, leaks.

All of it is optional: a section is drawn only where there is something to draw it from.
"""

from __future__ import annotations

from typing import NamedTuple

from smallfirst.data.quality.leaks import LeakReport
from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, wilson


class LearningPoint(NamedTuple):
    """One candidate trained on part of the rows; a plain tuple of the same three is accepted as well."""

    n_rows: int
    """Rows trained on."""
    candidate: str
    """Which path."""
    accuracy: Estimate
    """Share of right answers on the test rows."""


class Suspect(Record):
    """A row whose given answer is probably wrong: confident models agree on another one."""

    key: str
    """The row's content key."""
    text: str
    """What was asked."""
    gold: str
    """The answer that the data gives."""
    said: str
    """What the models say instead."""
    confidence: float | None = None
    """How sure the surest of them is, in [0, 1]."""
    agrees: tuple[str, ...] = ()
    """Candidates that say it."""


class Ceiling(Record):
    """How well the large model agrees with itself and with the data; nothing taught by it can do much better."""

    itself: Estimate
    """Share of rows on which the large model gives the same answer when asked again."""
    gold: Estimate | None = None
    """Share of rows on which the given answer is the large model's; None if not measured."""
    note: str = ""
    """How it was measured: rows, temperature, wording."""


class LeakEffect(Record):
    """Test rows that are also in the training rows, and what they do to the figure."""

    n_leaked: int
    """Test rows also in the training rows (same text, or as near as the check looks)."""
    n_test: int
    """Test rows looked at."""
    candidate: str = "small"
    """Whose accuracy is given."""
    accuracy_with: Estimate | None = None
    """Accuracy on all test rows."""
    accuracy_without: Estimate | None = None
    """Accuracy on the test rows that are not in the training rows."""
    note: str = ""
    """How near counts as the same."""

    @property
    def share(self) -> Estimate:
        """Share of test rows that leaked, Wilson interval."""
        return wilson(self.n_leaked, self.n_test)

    @classmethod
    def on(cls, evaluation: Evaluation, leaks: LeakReport) -> LeakEffect:
        """What the leaks found do to the accuracy of this evaluation on the same test rows."""
        rest = [row.correct for row in evaluation.rows if row.key not in leaks.keys]
        return cls(
            n_leaked=leaks.n_leaked,
            n_test=leaks.n_test,
            candidate=evaluation.candidate,
            accuracy_with=evaluation.accuracy,
            accuracy_without=wilson(sum(rest), len(rest)),
            note=(
                f"Asked letter for letter: {len(leaks.exact):,}; but for case, punctuation and spacing: "
                f"{len(leaks.folded):,}; with nine of ten words the same: {len(leaks.near):,}."
            ),
        )
