"""The choice of what goes live: by worth on the rows that choose, with what it costs and how often it is wrong.

An option is a candidate alone or a plan "this candidate first, the rest to the large model". Where
`routing.usd_per_wrong_answer` prices an error, the option of the least expected loss comes first:

    L = c + v e + (1 - s) (p + v e_large)

with c the price of a small answer, v that of a wrong one, e the share kept and wrong, s the share kept (1 for a
candidate alone), p and e_large price and error of the large model. Elsewhere the cheapest of those comes first that are
within `routing.accuracy_within` of the most accurate one; costs within ALIKE of each other are equal, and of these the
most accurate one wins. So nothing comes after an option that it beats in accuracy and in cost. Of plans, which all keep
the promise, the cheapest comes first.

The order and the shares of the gate's level, which sum to 1 (Bonferroni), are fixed before a test row is read, so the
verdicts on test rows hold together, whichever goes live. The argument is in `docs/design/decisions.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from smallfirst.base.stats.intervals import paired_score_interval
from smallfirst.base.stats.sample_size import shrunk_means
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import CheckInputs, ConfidenceLevel, Gate, run_checks
from smallfirst.measuring.verdict import CheckResult

ALIKE = 1.25
"""Costs that differ by no more than this factor count as equal: measured again, they differ by as much."""
SPREAD = 0.04
"""Standard deviation of true errors among candidates that is expected at least, whatever few rows say: that of words,
frozen and fine-tuned encoders on public sets."""
FIRST, OTHERS, PLANS = 0.6, 0.2, 0.2
"""Shares of the level: of the first candidate, of all others together, and of all plans together."""


class Choice(NamedTuple):
    """What may go live, as the rows that choose let expect it."""

    candidate: str
    usd: float
    """Mean cost of a request, whoever answers it."""
    wrong: Mapping[str, float]
    """Chance that the answer is wrong, in [0, 1], by key of the row."""

    @classmethod
    def alone(cls, measured: Evaluation) -> Choice:
        """Return the candidate on every request."""
        wrong = {row.key: float(not row.correct) for row in measured.rows}
        return cls(measured.candidate, measured.cost_usd_per_1k / 1000, wrong)


class WorthRule(NamedTuple):
    """What options are ordered by."""

    accuracy_within: float = 0.01
    """How much less accurate than the best one the cheapest may be that comes first; 1 for the cheapest of all."""
    usd_per_wrong_answer: float | None = None
    """Price of a wrong answer: the least expected loss comes first."""
    alike: float = ALIKE
    """Costs that differ by no more than this factor count as equal; 1 for those of large calls, which are no noise."""

    def order(self, options: Sequence[Choice]) -> list[Choice]:
        """Return the options by worth, the best first; of equals the first given."""
        rest, ordered = [*zip(shrunk_errors(options), options, strict=True)], list[Choice]()
        if (price := self.usd_per_wrong_answer) is not None:
            return [one for _, one in sorted(rest, key=lambda pair: pair[1].usd + price * pair[0])]
        while rest:
            most = min(error for error, _ in rest) + self.accuracy_within + 1e-12
            cheapest = min(one.usd for error, one in rest if error <= most)
            near = [pair for pair in rest if pair[0] <= most and pair[1].usd <= self.alike * cheapest]
            best = min(near, key=lambda pair: pair[0])
            ordered.append(best[1])
            rest = [pair for pair in rest if pair is not best]
        return ordered


def shrunk_errors(options: Sequence[Choice]) -> list[float]:
    """Return the expected error of each option: the measured one is shrunk towards the mean of all."""
    return shrunk_means([one.wrong for one in options], least_spread=SPREAD, unknown=1.0)


def choose_candidates(
    options: Sequence[Choice], rule: WorthRule, *, expected: Callable[[str], bool] = lambda _: True
) -> list[str]:
    """Return the candidates by worth: those `expected` to pass first, then the others, the most accurate first."""
    able = [one for one in options if expected(one.candidate)]
    by_error = sorted(zip(shrunk_errors(options), options, strict=True), key=lambda pair: pair[0])
    return [one.candidate for one in (*rule.order(able), *(one for _, one in by_error if not expected(one.candidate)))]


def would_pass(gate: Gate, measured: Evaluation, n_test: int) -> bool:
    """Return True if what was measured would meet the gate's metrics on `n_test` rows, as the first in the order."""
    fields = ("accuracy_at_least", "measures_at_least", "measures_at_most")
    results = run_checks(gate, CheckInputs(measured, ConfidenceLevel(1 / FIRST)), fields=fields)
    return bool(measured.rows) and all(_would_meet(result, n_test) for result in results)


def _would_meet(result: CheckResult, n: int) -> bool:
    """Return True if the result would pass with an interval of `n` rows: a width shrinks with the root of n."""
    found, threshold = result.estimate, result.threshold
    if found is None or threshold is None or not n:
        return result.passed
    sign, end = (-1, found.high) if result.name.endswith("_at_most") else (1, found.low)
    return sign * (found.value + math.sqrt(found.n / n) * (end - found.value)) >= sign * threshold


def level_shares(names: Sequence[str]) -> dict[str, float]:
    """Return each candidate's share of the gate's level, of names by worth; with PLANS they sum to at most 1."""
    if len(names) < 2:
        return dict.fromkeys(names, FIRST + OTHERS)
    return {name: FIRST if name == names[0] else OTHERS / (len(names) - 1) for name in names}


def unbeaten(passing: Sequence[Evaluation]) -> list[str]:
    """Return those of the `passing` that no other clearly beats on these rows, in their order; at least one.

    One is clearly beaten by another that costs no more and whose lead in right answers, paired by row, excludes 0 at
    95 %. It could be live otherwise only because chance favoured it on the rows that chose.
    """

    def beats(first: Evaluation, second: Evaluation) -> bool:
        pairs = [(row.correct, second.by_key[row.key].correct) for row in first.rows if row.key in second.by_key]
        ours, theirs = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        cheap = first.cost_usd_per_1k <= ALIKE * second.cost_usd_per_1k
        return cheap and paired_score_interval(ours, theirs, len(pairs)).low > 0

    return [one.candidate for one in passing if not any(beats(other, one) for other in passing)]
