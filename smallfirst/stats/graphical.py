"""Tests of an ordered path of hypotheses that begin at several places: a graphical procedure (Bretz et al. 2009)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def rejected_on_path(
    shows: Callable[[int, int, float], np.ndarray], starts: Sequence[tuple[int, float]], n: int, level: float
) -> np.ndarray:
    """Return by place 0 to n - 1 of the path whether its hypothesis is rejected; a true one is with chance <= `level`.

    `starts`: places in ascending order with their shares of the level, which sum to at most 1. `shows(first, end,
    level)` says for the places from `first` up to `end` whether a test at `level` rejects; a higher level must reject
    no less. From each start on, places are tested until one is not rejected; a walk that reaches the next start hands
    its share on to it. With one start this is fixed-sequence testing (Bauer 1991), otherwise the fallback procedure
    (Wiens 2003).

    Proof of the bound: a share moves only past rejected places, so until a true hypothesis is rejected each share is
    spent no later than on the first true hypothesis at or after its start, and the shares that meet on it add up. A
    test at a share w of the level rejects a true one with chance at most w `level`, and all these shares together are
    at most 1, so the chance that any true hypothesis is rejected is at most `level`.
    """
    rejected, carried = np.zeros(n, dtype=bool), 0.0
    ends = [*(first for first, _ in starts[1:]), n]
    for (first, share), end in zip(starts, ends, strict=True):
        share += carried
        shown = shows(first, end, share * level) if first < end else np.ones(0, dtype=bool)
        passed = len(shown) if shown.all() else int(np.argmin(shown))
        rejected[first : first + passed] = True
        carried = share if passed == len(shown) else 0.0
    return rejected
