"""How often drafts of a taken-over task differ from the upstream's answers, and whether that has changed.

A week tells which share of the drafts that were not sure enough differs usually, in its worst part. It is kept in the
ledger with what was seen since, so restarts and other proxies go on from it, and what is learnt may be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import upper_bound
from smallfirst.base.stats.sequential import GuaranteeTest
from smallfirst.ledger.sums import HOUR_S

WEEK_H = 7 * 24
"""Hours from which on it is known how often drafts usually differ, if there were N_USUAL of them."""
N_USUAL = 400
"""Fewest compared drafts that say so, and fewest of each part of the week."""
N_PARTS = 28
"""Most parts of the week: a quarter of a day each, where there are enough drafts."""
FALSE_ALARMS = 0.025
"""Probability that the usual share is taken for smaller than it is, and that of an alarm while it stays."""


class DraftWatch(Record):
    """How often drafts that were not sure enough differ from the upstream's answer, which is there anyway.

    More than is usual mean another model behind the same name, or other cases. A week says what is usual: the upper
    bound of its worst part, so weekends and nights of their own are no evidence. A test that may be looked at after
    each draft decides.
    """

    hours: tuple[tuple[int, int, int], ...] = ()
    """Hours since 1970 with their drafts and how many of these differ, until it is known what is usual."""
    usual: float = 0.0
    """The largest share that is usual, in (0, 1); 0 until it is known."""
    seen: tuple[float, ...] = ()
    """`GuaranteeTest.state` of what came since then."""

    @staticmethod
    def place(task: str, certificate: str) -> str:
        """Return what the names begin with under which the ledger shares a task's watches; the tenant's follows."""
        return f"drafts/{task}/{certificate}/"

    def add(self, drafts: Sequence[bool], now_s: float) -> tuple[DraftWatch, str]:
        """Add whether drafts of about now differ; return the watch after them, and what is wrong or nothing.

        Once something is wrong the next drafts say anew what is usual.
        """
        if not self.usual:
            return self._learn(drafts, int(now_s // HOUR_S)), ""
        test = self._test
        for differs in drafts:
            test.update(differs)
            if test.rejected:
                why = f"drafts that were not sure enough now differ from them more often than {self._usually}"
                return DraftWatch(), f"the upstream's answers have changed: {why}; evidence {test.e_value:.0f} to 1"
        return self.model_copy(update={"seen": test.state}), ""

    @property
    def in_words(self) -> str:
        """What is known or learnt, in one sentence without its end."""
        if self.usual:
            test = self._test
            found = f"{test.losses:,.0f} of {test.n:,} drafts that were not sure enough differ"
            return f"{found} from the large model's answers, usual is {self._usually}"
        until = datetime.fromtimestamp((self.since_hour + WEEK_H) * HOUR_S, UTC)
        return (
            f"how often drafts that are not sure enough usually differ is learnt until {until:%Y-%m-%d %H:%M} UTC, "
            f"from {N_USUAL} at least ({sum(n for _, n, _ in self.hours):,} so far); "
            "until then audits alone show another model behind the same name"
        )

    @property
    def since_hour(self) -> int:
        """The first hour, since 1970, of what is learnt; 0 before it."""
        return self.hours[0][0] if self.hours else 0

    @property
    def _test(self) -> GuaranteeTest:
        test = GuaranteeTest(self.usual, 1 - FALSE_ALARMS)
        test.resume(self.seen)
        return test

    @property
    def _usually(self) -> str:
        return f"{100 * self.usual:.3g} % at most in a week's worst hours"

    def _learn(self, drafts: Sequence[bool], hour: int) -> DraftWatch:
        known = {at: (n, n_different) for at, n, n_different in self.hours}
        n, n_different = known.get(hour, (0, 0))
        known[hour] = n + len(drafts), n_different + sum(drafts)
        learnt = DraftWatch(hours=tuple((at, *counts) for at, counts in sorted(known.items())))
        if hour - learnt.since_hour < WEEK_H or sum(n for n, _ in known.values()) < N_USUAL:
            return learnt
        return DraftWatch(usual=_most_usual([known[at] for at in sorted(known)]))


def _most_usual(hours: Sequence[Sequence[int]]) -> float:
    """Return the upper bound on the share that differs in the worst part of some hours of (drafts, different ones)."""
    least = max(N_USUAL, sum(n for n, _ in hours) // N_PARTS)
    parts = [(0, 0)]
    for n, n_different in hours:
        last = parts.pop()
        parts.append((last[0] + n, last[1] + n_different))
        if parts[-1][0] >= least:
            parts.append((0, 0))
    rest = parts.pop()
    parts[-1:] = [(parts[-1][0] + rest[0], parts[-1][1] + rest[1])]
    confidence = 1 - FALSE_ALARMS / len(parts)
    return min(0.999, max(upper_bound(n_different, n, confidence=confidence) for n, n_different in parts))
