"""What the test rows of a learnt task show beside its promise; they certify nothing.

The promise counts each text once and holds for traffic like the log's. So the kept answers are counted by requests as
well, and the drafts of the newest texts are compared with those before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from smallfirst.data.dataset import fold_text
from smallfirst.evaluation.evaluate import EvaluatedRow
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, ratio_interval, wilson

NEWEST = 0.25
"""Share of the test rows, the last in time, that is compared with the rest."""
FEWEST = 10
"""Newest rows from which the comparison says anything."""


class Observed(Record):
    """Test rows counted by requests, and the newest of them."""

    limit: float = 1.0
    """Share of kept texts that may differ, as promised."""
    differ: Estimate | None = None
    """Share of the requests whose kept answer differs, each text weighing as many as asked it; None if none is kept."""
    newest: Estimate | None = None
    """Share of the newest rows whose draft agrees; None where times are not known, or rows are few."""
    before: Estimate | None = None
    """The same of the rows before."""

    @property
    def difference(self) -> Estimate | None:
        """Agreement of the newest minus that of the rows before, with Newcombe's interval (1998, method 10)."""
        new, old = self.newest, self.before
        if new is None or old is None:
            return None
        value = new.value - old.value
        low = value - math.hypot(new.value - new.low, old.high - old.value)
        high = value + math.hypot(new.high - new.value, old.value - old.low)
        return Estimate(value=value, low=low, high=high, n=new.n + old.n)

    @property
    def in_words(self) -> tuple[str, ...]:
        """Return a sentence for each figure."""
        said = []
        if (differ := self.differ) is not None:
            low, high = max(0.0, differ.low), min(1.0, differ.high)
            more = "; more than promised of texts, as frequent ones are answered worse: begin with a small share"
            said.append(
                f"counted by requests, {differ.value:.1%} [{low:.1%}, {high:.1%}] of {differ.n:,} kept test requests "
                f"differ: measured, not promised{more if differ.value > self.limit else ''}"
            )
        if (apart := self.difference) is not None:
            drift = "they agree less: the traffic changes, so learn again on newer traffic first"
            said.append(
                f"{self.newest} of the newest drafts agree, and {self.before} of those before: "
                + (drift if apart.high < 0 else "no drift is shown")
            )
        return tuple(said)


def observe(
    routed: Sequence[EvaluatedRow],
    drafts: Sequence[EvaluatedRow],
    asked: Mapping[str, Mapping[str, Any]],
    *,
    limit: float = 1.0,
) -> Observed:
    """Return what the Router's answers to test rows, and all drafts of them, show.

    `asked`: by folded text the drafted row, with `n`, how often it was asked, and `at`, when, if that is known.
    `limit`: share of kept texts that may differ, as promised.
    """

    def known(row: EvaluatedRow) -> Mapping[str, Any]:
        return asked.get(fold_text(row.text), {})

    kept = [(not row.correct, int(known(row).get("n", 1))) for row in routed if row.certified]
    differ = ratio_interval([wrong * n for wrong, n in kept], [n for _, n in kept]) if kept else None
    timed = sorted((str(at), row.correct) for row in drafts if (at := known(row).get("at")))
    first = len(timed) - round(NEWEST * len(timed))
    if len(timed) - first < FEWEST:
        return Observed(limit=limit, differ=differ)
    old, new = ([right for _, right in part] for part in (timed[:first], timed[first:]))
    return Observed(limit=limit, differ=differ, newest=wilson(sum(new), len(new)), before=wilson(sum(old), len(old)))
