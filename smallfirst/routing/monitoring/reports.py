"""What users report about kept answers: evidence for a hint, and never for an alarm.

People report wrong answers more readily than right ones, so reports are no random sample. The share of all kept answers
that somebody called wrong is still a lower bound of the error if the reports are true, whoever stays silent. A hint is
raised once that bound is above the limit; a user who lies can raise one, so it changes nothing.
"""

from __future__ import annotations

from smallfirst.stats.sequential import anytime_valid_interval


class UserReports:
    """Counts of kept answers and of those that users called right or wrong, since the server's start."""

    def __init__(self, limit: float | None, confidence: float) -> None:
        """`limit` is the largest share of kept answers that may be wrong; None raises no hint."""
        self._limit, self._confidence = limit, confidence
        self.n_kept = self.n_right = self.n_wrong = 0
        self.hinted = False

    def add(self, wrong: bool) -> str:
        """Add the first report on a kept answer; return the hint in words if this one raises it."""
        self.n_wrong += wrong
        self.n_right += not wrong
        if self.hinted or self._limit is None:
            return ""
        n = max(self.n_kept, self.n_wrong)
        low = anytime_valid_interval(self.n_wrong, n, self._confidence).low
        self.hinted = low > self._limit
        if not self.hinted:
            return ""
        return (
            f"users called {self.n_wrong:,} of {n:,} kept answers wrong, so that, if they are right, more than "
            f"{100 * low:.3g} % are; {100 * self._limit:.3g} % may be. Let a judge see the queue"
        )
