"""What users report about kept answers: evidence for a hint, and never for an alarm.

People report wrong answers more readily than right ones, so reports are no random sample. The share of all kept answers
that somebody called wrong is still a lower bound of the error if the reports are true, whoever stays silent. A hint is
raised once that bound is above the limit; a user who lies can raise one, so it changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from smallfirst.stats.sequential import anytime_valid_interval


class UserReports(NamedTuple):
    """Counts of kept answers and of those that users called right or wrong, since the certificate went live."""

    n_kept: int
    n_right: int
    n_wrong: int

    def hint(self, limit: float, confidence: float) -> str:
        """Return the hint in words; empty unless the reports show that more than `limit` of kept answers are wrong."""
        n = max(self.n_kept, self.n_wrong)
        low = anytime_valid_interval(self.n_wrong, n, confidence).low if n else 0.0
        if low <= limit:
            return ""
        return (
            f"users called {self.n_wrong:,} of {n:,} kept answers wrong, so that, if they are right, more than "
            f"{100 * low:.3g} % are; {100 * limit:.3g} % may be. Let a judge see the queue"
        )
