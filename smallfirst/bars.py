"""One bar of the gate, measured: the interval, whether its lower end reaches it, what would help.

Each function takes a bar and an Evaluation and gives a GateLine. Advice is a search over the same
rates with more rows, a few milliseconds, done only for a bar that was missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from smallfirst import stats
from smallfirst.evaluation.evaluation import Evaluation
from smallfirst.records import Record
from smallfirst.stats import Estimate

MOST_ROWS = 100_000
RESAMPLES_ADJUSTED = 2000  # a widened interval reads further out in the tails than 1,000 can show


class GateLine(Record):
    """One bar and what was measured."""

    bar: str
    """The bar in words, with its figure."""
    measured: str
    """What was measured, with interval and n."""
    passed: bool
    """Whether the bar is met."""
    advice: str = ""
    """What would make it pass: more labels, a better model."""


class Level:
    """The interval level after looking at `comparisons` candidates, and its mention in a line."""

    def __init__(self, comparisons: int) -> None:
        """The level 1 - 0.05 / comparisons."""
        self.confidence = 1 - 0.05 / comparisons
        self.adjusted = comparisons > 1
        self.mention = (
            f" ({100 * self.confidence:.4g} % interval: {comparisons} candidates looked at)" if self.adjusted else ""
        )

    def show(self, estimate: Estimate, what: str = "") -> str:
        """The estimate with its n, then `what`, then the level if it is not 95 %."""
        return f"{estimate} n={estimate.n}{what}{self.mention}"


def accuracy(bar: float, candidate: Evaluation, level: Level) -> GateLine:
    """The line of the accuracy bar: Wilson's interval over the rows."""
    n, right = len(candidate.rows), sum(row.correct for row in candidate.rows)
    found = stats.wilson(right, n, confidence=level.confidence)

    def low_at(rows: int) -> float:
        return stats.wilson(right * rows // n, rows, confidence=level.confidence).low

    return GateLine(
        bar=f"accuracy at least {bar:.3f}",
        measured=level.show(found),
        passed=found.low >= bar,
        advice=_advice(found, bar, lambda: _fewest_rows(low_at, bar, n)),
    )


def macro_f1(bar: float, candidate: Evaluation, level: Level) -> GateLine:
    """The line of the macro-F1 bar: the evaluation's bootstrap, redrawn if not at 95 %."""
    found = _widened_f1(candidate, level.confidence) if level.adjusted else candidate.macro_f1
    return GateLine(
        bar=f"macro-F1 at least {bar:.3f}",
        measured=level.show(found),
        passed=found.low >= bar,
        advice=_advice(found, bar, lambda: _rows_by_width(found, bar)),
    )


def _widened_f1(candidate: Evaluation, confidence: float) -> Estimate:
    names = sorted({row.gold for row in candidate.rows} | {row.answer or "" for row in candidate.rows})
    number = {name: index for index, name in enumerate(names)}
    gold = np.array([number[row.gold] for row in candidate.rows], dtype=np.int64)
    answer = np.array([-1 if row.answer is None else number[row.answer] for row in candidate.rows], dtype=np.int64)
    return stats.bootstrap(
        lambda rows: stats.macro_f1(gold[rows], answer[rows], len(names)),
        len(gold),
        confidence=confidence,
        resamples=RESAMPLES_ADJUSTED,
    )


def not_worse(margin: float, candidate: Evaluation, large: Evaluation | None, level: Level) -> GateLine:
    """The line of the paired difference to the large model, on the rows that both answered."""
    bar = f"at most {margin:.3f} less accurate than the large model"
    if large is None:
        return GateLine(
            bar=bar,
            measured="the large model was not measured",
            passed=False,
            advice="measure the large model on the same rows, or on a sample of them",
        )
    if candidate is large or candidate.fingerprint() == large.fingerprint():
        return GateLine(bar=bar, measured="is the large model itself", passed=True)
    keys = [key for key in candidate.by_key if key in large.by_key]
    ours = [candidate.by_key[key].correct for key in keys]
    theirs = [large.by_key[key].correct for key in keys]
    found = stats.paired_difference(ours, theirs, confidence=level.confidence)
    return GateLine(
        bar=bar,
        measured=level.show(found, f" of {len(candidate.rows)} rows paired"),
        passed=found.low >= -margin,
        advice=_advice(found, -margin, lambda: _rows_by_width(found, -margin)),
    )


def at_most(bar: float, value: float, n: int, words: tuple[str, str]) -> GateLine:
    """The line of a plain ceiling; `words` are templates of the bar and of what was measured."""
    passed = n > 0 and value <= bar  # an empty evaluation reports 0 and has shown nothing
    return GateLine(
        bar=words[0].format(bar),
        measured=f"{words[1].format(value)} n={n}",
        passed=passed,
        advice="" if passed else "a smaller model or a shorter prompt would help",
    )


def _advice(found: Estimate, bar: float, rows_for: Callable[[], int | None]) -> str:
    """What to do about `found` not reaching `bar`; empty if it does."""
    if found.low >= bar:
        return ""
    if found.n == 0:
        return "no row was measured"
    if found.value < bar:
        return "the measured value is below the bar: more rows will not help, a better model would"
    needed = rows_for()
    if needed is None or needed > MOST_ROWS:
        return f"{found.n} rows cannot show this, nor can any number: too close to the bar"
    return f"{found.n} rows cannot show this; about {_round_up(needed - found.n)} more would"


def _fewest_rows(low_at: Callable[[int], float], bar: float, n: int) -> int | None:
    """About the fewest rows above `n` at which the same rates have their lower end at `bar`."""
    enough = n
    while low_at(enough) < bar:
        enough *= 2
        if enough > 2 * MOST_ROWS:
            return None
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if low_at(middle) >= bar else (middle, enough)
    return enough


def _rows_by_width(found: Estimate, bar: float) -> int | None:
    """About the rows at which the lower end is at `bar`: a width shrinks with the root of n."""
    if found.value <= bar:
        return None
    return math.ceil(found.n * ((found.value - found.low) / (found.value - bar)) ** 2)


def _round_up(rows: int) -> int:
    """`rows` rounded up to two figures; the rate is an estimate itself, so more would pretend."""
    unit = int(10 ** max(0, len(str(rows)) - 2))
    return max(1, -(-rows // unit) * unit)
