"""How many rows would show it: the fewest at which today's rates, seen again, satisfy a bound."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
from scipy import special


def min_rows_without_error(limit: float, level: float) -> int:
    """Return the fewest rows that show an error of at most `limit` if none is wrong: (1 - limit)^n <= level."""
    return max(1, math.ceil(math.log(level) / math.log1p(-limit) - 1e-9)) if limit > 0 else sys.maxsize


def rows_for_upper_bound(rate: float, limit: float, *, confidence: float = 0.95, max_rows: int = 100_000) -> int | None:
    """Return the fewest rows at which an error `rate` has an exact upper bound of at most `limit`; None if none do."""
    if rate >= limit:
        return None

    def shown(n: np.ndarray) -> np.ndarray:
        errors = np.ceil(rate * n - 1e-9)  # 0.07 * 100 must be 7, not the 8 that rounding up 7.000…1 gives
        return np.asarray(special.bdtr(errors, n, limit) <= 1 - confidence)

    return _fewest(shown, 1, max_rows)


def rows_for_lower_bound(
    rate: float, limit: float, *, confidence: float = 0.95, max_rows: int = 1_000_000
) -> int | None:
    """Return the fewest rows at which a share of `rate` has the lower end of Wilson's interval at `limit` or above.

    Successes are rounded down. None if the rate is not above the limit, or more than `max_rows` are needed.
    """
    if rate <= limit:
        return None
    z = float(special.ndtri(0.5 + confidence / 2))
    # Wilson's lower end is at the limit where a score test against it is just significant. Without rounding:
    fewest = max(1, math.floor(z * z * limit * (1 - limit) / (rate - limit) ** 2))

    def shown(n: np.ndarray) -> np.ndarray:
        successes = np.floor(rate * n + 1e-9)  # 0.29 * 100 must be 29, not the 28 that rounding 28.999…6 down gives
        return np.asarray(successes - n * limit >= z * np.sqrt(n * limit * (1 - limit)))

    return _fewest(shown, fewest, max_rows)


def _fewest(shown: Callable[[np.ndarray], np.ndarray], first: int, most: int) -> int | None:
    """Scan for the fewest rows from `first` to `most`: errors are whole numbers, so more rows may show less."""
    for start in range(first, most + 1, 1000):
        n = np.arange(start, min(start + 1000, most + 1))
        if (found := shown(n)).any():
            return int(n[found.argmax()])
    return None


def round_up_to_two_digits(rows: int) -> int:
    """Round up to two digits, at least 1: the rates behind it are estimates themselves."""
    unit = int(10 ** max(0, len(str(rows)) - 2))
    return max(1, -(-rows // unit) * unit)
