"""GateLine, the level its interval stands at, and the advice under a missed bar.

Advice tells three cases apart: the model is not good enough, the rows are too few to show it (and about how many more
would), or the value is so close to the bar that no number of rows will. It assumes that the rates stay as they are,
which they will not quite; hence two figures and the word «about».
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import stats as scipy_stats

from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate

MAX_ADVISED_ROWS = 100_000
"""More labels than this are no advice."""
STORED_CONFIDENCE = 0.95
"""The level of every interval that an Evaluation holds."""


class CheckResult(Record):
    """One bar and what was measured."""

    bar: str
    """The bar in words, with its figure."""
    measured: str
    """What was measured, with interval and n."""
    passed: bool
    """Whether the bar is met."""
    advice: str = ""
    """What would make it pass: more labels, a better model. Under a line that passes: what it could not look at."""
    found: Estimate | None = None
    """The figure with the interval that was held against the bar; None for a plain figure or none at all."""


class ConfidenceLevel:
    """The interval level after looking at several candidates, and at several parts of each (Bonferroni)."""

    def __init__(self, comparisons: int, parts: int = 1) -> None:
        """The level 1 - 0.05 / (comparisons · parts)."""
        self.comparisons, self.parts = comparisons, parts
        self.confidence = 1 - 0.05 / (comparisons * parts)
        self.z = _z(self.confidence)

    def of_parts(self, parts: int) -> ConfidenceLevel:
        """The level at which all of so many parts can be looked at together."""
        return ConfidenceLevel(self.comparisons, max(1, parts))

    @property
    def mention(self) -> str:
        """The level and its reason in brackets; empty at 95 %."""
        counts = ((self.comparisons, "candidates"), (self.parts, "parts"))
        why = " and ".join(f"{n} {what}" for n, what in counts if n > 1)
        return f" ({100 * self.confidence:.4g} % interval: {why} looked at)" if why else ""

    def show(self, estimate: Estimate, what: str = "") -> str:
        """The estimate with its n, then `what`, then the level if it is not 95 %."""
        return f"{estimate} n={estimate.n}{what}{self.mention}"

    def widened(self, stored: Estimate) -> Estimate:
        """An Evaluation's own interval brought from 95 % to this level, each side by the ratio of normal quantiles.

        Drawing it again would need the task, and another draw could make the wider level the narrower interval.
        """
        by = self.z / _z(STORED_CONFIDENCE)
        low, high = stored.value - by * (stored.value - stored.low), stored.value + by * (stored.high - stored.value)
        return stored.model_copy(update={"low": max(low, 0.0) if stored.low >= 0 else low, "high": high})


def _z(confidence: float) -> float:
    return float(scipy_stats.norm.ppf(0.5 + confidence / 2))


def not_measured(bar: str, measured: str, advice: str) -> CheckResult:
    """The failing line of a bar that nothing could be held against."""
    return CheckResult(bar=bar, measured=measured, passed=False, advice=advice)


def check_minimum(
    bar: float, found: Estimate, text: tuple[str, str], rows_for: Callable[[], int | None]
) -> CheckResult:
    """The line of a floor: passed if the lower end reaches it. `text` is the bar and what was measured, in words."""
    passed = found.n > 0 and found.low >= bar
    advice = "" if passed else advice_for(found, bar, rows_for)
    return CheckResult(bar=text[0], measured=text[1], passed=passed, advice=advice, found=found)


def advice_for(found: Estimate, bar: float, rows_for: Callable[[], int | None]) -> str:
    """What to do about `found` not reaching the floor `bar`; `rows_for` says how many rows would show it."""
    if found.n == 0:
        return "no row was measured"
    if not (math.isfinite(found.value) and math.isfinite(found.low)):
        return "the figure is no number: evaluate again, and mend the scorer if it stays so"
    if found.value < bar:
        return "the measured value misses the bar: more rows will not help, a better model would"
    needed = rows_for()
    if needed is None or needed > MAX_ADVISED_ROWS:
        return f"{found.n} examples cannot show this, nor can any number: too close to the bar"
    return f"{found.n} examples cannot show this; label about {round_up_to_two_digits(needed - found.n)} more"


def rows_for_width(found: Estimate, bar: float) -> int | None:
    """About the rows at which the lower end is at `bar`: a width shrinks with the root of n."""
    if found.value <= bar:
        return None
    rows = found.n * ((found.value - found.low) / (found.value - bar)) ** 2
    return max(found.n + 1, math.ceil(rows - 1e-6))


def round_up_to_two_digits(rows: int) -> int:
    """`rows` rounded up to two figures; the rate is an estimate itself, so more would pretend."""
    unit = int(10 ** max(0, len(str(rows)) - 2))
    return max(1, -(-rows // unit) * unit)
