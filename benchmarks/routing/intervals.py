"""Simulate the coverage of every interval and write benchmarks/results/intervals.md.

    python -m benchmarks.routing.intervals     # 1 to 2 minutes on one core

Every method gets samples drawn from a known truth; coverage is the share of samples whose interval contains it, and
the nominal coverage is 95 %. Intervals that depend on counts alone are computed once for each count drawn.

The truth in each cell: an answer is right with probability p. Two models compared: the first is right with
probability p, the second 2 points less often, and half of the first one's errors are errors of both. Macro-F1: four
labels, of which 40, 30, 20 and 10 % of the rows are, and a wrong answer is any of the other three with equal probability.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.paths import RESULTS
from smallfirst.stats.intervals import (
    Estimate,
    bootstrap_interval,
    clopper_pearson,
    paired_difference,
    upper_bound,
    wilson,
)

RESULT = RESULTS / "intervals.md"
SIZES = (30, 60, 200, 1000)
RATES = (0.5, 0.9, 0.97)
DRAWS = 10_000
MACRO_F1_DRAWS = 5_000
RESAMPLES = 1_000
NOMINAL = 0.95
WILSON, EXACT, BOUND, WATCHED = "Wilson", "Clopper-Pearson", "exact upper bound", "the same, read after every row"
PAIRED, PERCENTILE, SHARE = "paired difference", "macro-F1, percentile bootstrap", "macro-F1, `bootstrap_share`"
LABEL_SHARES = np.array([0.4, 0.3, 0.2, 0.1])


class Cell(NamedTuple):
    """How one method did at one truth."""

    method: str
    n: int
    """Rows in a sample."""
    p: float
    """Probability that an answer is right."""
    draws: int
    """Samples."""
    coverage: float
    """Share of samples whose interval contains the truth."""
    width: float
    """Mean width; for a one-sided bound its mean distance from the truth."""

    @property
    def error(self) -> float:
        """Standard error of the simulated coverage; that of 95 % where all samples were covered."""
        share = self.coverage if 0 < self.coverage < 1 else NOMINAL
        return float(np.sqrt(share * (1 - share) / self.draws))

    @property
    def short(self) -> bool:
        """True if it covers less than nominal by more than three standard errors."""
        return self.coverage < NOMINAL - 3 * self.error


def judged(method: str, n: int, p: float, truth: float, found: Sequence[Estimate]) -> Cell:
    """Return the cell of one method from its intervals, one per sample."""
    ends = np.array([(each.low, each.high) for each in found])
    # The truth may lie on an end to the last digit but one.
    covered = (ends[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= ends[:, 1])
    return Cell(method, n, p, len(found), float(covered.mean()), float((ends[:, 1] - ends[:, 0]).mean()))


def shares(n: int, p: float, draws: int, draw: np.random.Generator) -> Iterator[Cell]:
    """Return intervals and the bound of one share, by the number of right answers."""
    right = draw.binomial(n, p, draws).tolist()
    for method, interval in ((WILSON, wilson), (EXACT, clopper_pearson)):
        by_count = {count: interval(count, n) for count in set(right)}
        yield judged(method, n, p, p, [by_count[count] for count in right])
    # From the true error rate up: what is covered is a bound above it, and the width is how much is given away.
    found = [Estimate(value=1 - count / n, low=1 - p, high=bound_of(n - count, n), n=n) for count in right]
    yield judged(BOUND, n, p, 1 - p, found)


def watched(n: int, p: float, draws: int, draw: np.random.Generator) -> Iterator[Cell]:
    """Return the lowest upper bound seen when it is read after every row, a use it is not made for."""
    least = np.zeros(n, dtype=np.int64)  # errors at each number of rows from which on the bound is above the truth
    for row in range(n):
        least[row] = least[row - 1] if row else 0
        while upper_bound(int(least[row]), row + 1) < 1 - p:
            least[row] += 1
    held, above = 0, 0.0
    for start in range(0, draws, 500):
        errors = np.cumsum(draw.random((min(500, draws - start), n)) >= p, axis=1, dtype=np.int32)
        held += int((errors >= least).all(axis=1).sum())
        above += sum(bound_of(count, n) - (1 - p) for count in errors[:, -1].tolist())
    yield Cell(WATCHED, n, p, draws, held / draws, above / draws)


@cache
def bound_of(errors: int, n: int) -> float:
    """Return the exact upper bound, computed once for each count."""
    return upper_bound(errors, n)


def pairs(n: int, p: float, draws: int, draw: np.random.Generator) -> Iterator[Cell]:
    """Return the interval of a paired difference, by the numbers of rows that only one model gets right."""
    both_wrong = (1 - p) / 2
    only_first, only_second = 1 - p + 0.02 - both_wrong, both_wrong
    counts = draw.multinomial(n, [only_first, only_second, 1 - only_first - only_second], draws)

    @cache
    def interval(a: int, b: int) -> Estimate:
        rows = np.arange(n)
        return paired_difference((rows < a).tolist(), ((rows >= a) & (rows < a + b)).tolist())

    yield judged(PAIRED, n, p, 0.02, [interval(a, b) for a, b, _ in counts.tolist()])


def macro_f1(confusions: np.ndarray) -> np.ndarray:
    """Return mean F1 over the labels that occur, of confusions (…, gold, predicted) in counts or shares."""
    there = confusions.sum(axis=-1) + confusions.sum(axis=-2)
    f1 = 2 * np.diagonal(confusions, axis1=-2, axis2=-1) / np.where(there > 0, there, 1)
    mean: np.ndarray = f1.sum(axis=-1) / (there > 0).sum(axis=-1)
    return mean


def macro_f1s(n: int, p: float, draws: int, draw: np.random.Generator) -> Iterator[Cell]:
    """Return the two bootstrap intervals of macro-F1, from the same resamples.

    A resample of rows is a multinomial draw of how often each pair of right and given label occurs.
    """
    labels = len(LABEL_SHARES)
    said = np.where(np.eye(labels) == 1, p, (1 - p) / (labels - 1))
    truth = LABEL_SHARES[:, None] * said
    shape = (labels, labels)
    plain, widened = [], []
    for counts in draw.multinomial(n, truth.ravel(), draws):
        seen = counts[counts > 0]
        resampled = np.zeros((RESAMPLES, labels * labels))
        resampled[:, counts > 0] = draw.multinomial(n, seen / n, RESAMPLES)
        values, value = macro_f1(resampled.reshape(-1, *shape)), float(macro_f1(counts.reshape(shape)))
        low, high = np.quantile(values, [(1 - NOMINAL) / 2, (1 + NOMINAL) / 2])
        plain.append(Estimate(value=value, low=float(low), high=float(high), n=n))
        widened.append(bootstrap_interval(value, values, n=n))
    expected = float(macro_f1(truth))
    yield judged(PERCENTILE, n, p, expected, plain)
    yield judged(SHARE, n, p, expected, widened)


def measure(
    kind: Callable[[int, float, int, np.random.Generator], Iterator[Cell]],
    *,
    draws: int,
    sizes: Sequence[int] = SIZES,
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> list[Cell]:
    """Return the cells of every method of a kind (`shares`, `watched`, `pairs`, `macro_f1s`), by method, n and p."""
    draw = np.random.default_rng(seed)
    cells = [cell for n in sizes for p in rates for cell in kind(n, p, draws, draw)]
    methods = list(dict.fromkeys(cell.method for cell in cells))
    return sorted(cells, key=lambda cell: (methods.index(cell.method), cell.n, cell.p))


def processor() -> str:
    """Return the processor's name, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def reading(cells: Sequence[Cell]) -> str:
    """What the table shows, in one paragraph."""

    def worst(method: str) -> str:
        found = min((cell for cell in cells if cell.method == method), key=lambda cell: cell.coverage)
        return f"{found.coverage:.3f} (n = {found.n}, p = {found.p})"

    return (
        f"Reading: the exact intervals reach 95 % everywhere (Clopper-Pearson at worst {worst(EXACT)}, the upper "
        f"bound at worst {worst(BOUND)}) and pay in width near 1. Wilson keeps it on average over p, not at each: its "
        f"coverage swings with the whole numbers, down to {worst(WILSON)}. So Wilson is for display, and guarantees rest "
        "on exact tests. That holds for one look: reading the bound after every row and taking the lowest one seen "
        f"covers {worst(WATCHED)}. The paired difference goes down to {worst(PAIRED)}; where the two hardly ever differ "
        "it is much too wide instead. The percentile bootstrap of macro-F1 is unreliable on few rows: "
        f"{worst(PERCENTILE)}, as a sample without an error leaves nothing to resample. Bias-corrected and no narrower "
        f"than Wilson's, `bootstrap_share` comes to {worst(SHARE)} at worst, and is too wide near 1 with 60 rows or "
        "fewer. Not simulated: rows that depend on each other, such as near-duplicates, for which all of these are too "
        "narrow."
    )


def page(cells: Sequence[Cell], seconds: float) -> str:
    """Return the result as Markdown; cells that cover less than nominal are bold."""
    lines = [
        "# How often the intervals cover the truth",
        "",
        f"`python -m benchmarks.routing.intervals`, {date.today()}, {seconds:.0f} s of processor time on one of "
        f"{os.cpu_count()} cores ({processor()}), Python {platform.python_version()}, numpy {np.__version__}.",
        "",
        f"Nominal: {NOMINAL:.2f}. ± is one standard error of the simulation. Bold: below nominal by more than "
        f"three of them. {DRAWS:,} samples a cell; for macro-F1 {MACRO_F1_DRAWS:,}, each with {RESAMPLES:,} resamples. "
        "Width of an upper bound: its mean distance above the true error rate 1 - p after all n rows. The "
        "script's docstring says what is simulated.",
        "",
        reading(cells),
        "",
        "| method | n | p | coverage | ± | mean width |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        coverage = f"**{cell.coverage:.3f}**" if cell.short else f"{cell.coverage:.3f}"
        lines.append(f"| {cell.method} | {cell.n} | {cell.p} | {coverage} | {cell.error:.4f} | {cell.width:.4f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate everything and write the table."""
    began = time.process_time()
    cells = [cell for kind in (shares, watched, pairs) for cell in measure(kind, draws=DRAWS)]
    cells += measure(macro_f1s, draws=MACRO_F1_DRAWS)
    RESULT.write_text(page(cells, time.process_time() - began), encoding="utf-8")
    print(f"{RESULT.name}: {len(cells)} cells, {sum(cell.short for cell in cells)} below nominal")


if __name__ == "__main__":
    main()
