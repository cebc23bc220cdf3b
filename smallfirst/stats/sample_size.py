"""How many rows would show it: the fewest at which today's rates, seen again, satisfy an interval.

"Label about 130 more" is a more useful answer than "not shown". The answers rest on rates that were themselves
measured, so they are a plan and no promise. `smallfirst.stats.intervals.rows_needed` does the same for the exact bound
of a certificate.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats as scipy_stats


def rows_to_show_share(rate: float, bar: float, *, confidence: float = 0.95, most: int = 1_000_000) -> int | None:
    """Fewest rows at which a share of `rate` has the lower end of Wilson's interval at `bar` or above; None if never.

    Successes come whole and are rounded down. If the true share is `rate`, so many rows show it about every second
    time. None also if more than `most` rows are needed.
    """
    if rate <= bar:
        return None
    z = float(scipy_stats.norm.ppf(0.5 + confidence / 2))
    # Wilson's lower end is at the bar where a score test against the bar is just significant. Without rounding:
    fewest = max(1, math.floor(z * z * bar * (1 - bar) / (rate - bar) ** 2))
    for start in range(fewest, most + 1, 1000):
        n = np.arange(start, min(start + 1000, most + 1))
        successes = np.floor(rate * n + 1e-9)  # 0.29 * 100 must be 29, not the 28 that rounding 28.999…6 down gives
        shown = successes - n * bar >= z * np.sqrt(n * bar * (1 - bar))
        if shown.any():
            return int(n[shown.argmax()])
    return None


def rows_to_show_difference(
    only_first_rate: float,
    only_second_rate: float,
    margin: float,
    *,
    confidence: float = 0.95,
    power: float = 0.8,
    most: int = 1_000_000,
) -> int | None:
    """Fewest rows that show «first is at most `margin` less accurate than second» with probability `power`.

    Shown is what has the lower end of `stats.paired_difference` at -margin or above; a margin of 0 asks for «better».
    The two rates are the shares of rows that only one of the two gets right. None if their difference is not above
    -margin, or if more than `most` rows are needed.
    """
    difference, differing = only_first_rate - only_second_rate, only_first_rate + only_second_rate
    if difference <= -margin:
        return None
    z, z_power = scipy_stats.norm.ppf([0.5 + confidence / 2, power])

    def shown(n: int) -> bool:
        m = n + 2
        centre = n * difference / m
        half = z * math.sqrt(max((n * differing + 1) / m - centre**2, 0.0) / m)
        scatter = math.sqrt(n * max(differing - difference**2, 0.0)) / m
        return bool(centre - half - z_power * scatter >= -margin)

    short, enough = 0, 1
    while not shown(enough):
        short, enough = enough, 2 * enough
        if short > most:
            return None
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if shown(middle) else (middle, enough)
    return enough if enough <= most else None
