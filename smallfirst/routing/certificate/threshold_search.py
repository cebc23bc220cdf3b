"""Search for the cheapest thresholds at which every limit of the guarantee is shown on calibration rows.

One stage and a limit on errors alone: fixed-sequence testing (Bauer 1991). Otherwise Learn-then-Test (Angelopoulos et
al. 2021) along a few paths from accepting nothing to everything, which depend on confidences alone, never on what is
right; the level is divided equally among limits and paths, so the choice needs no further correction.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData, CascadeOutcome
from smallfirst.routing.certificate.risks import GROWS_WITH_COVERAGE, evidence

STEPS = 100
"""Thresholds on a path."""

Thresholds = tuple[float, ...]
"""One a drafting stage, cheapest first."""


class ThresholdSearchResult(Record):
    """Outcome of the threshold search for one stage."""

    threshold: float
    """Loosest confidence shown to keep the limit; NEVER_ACCEPT if none."""
    n_accepted: int
    """Rows at or above it."""
    n_errors: int
    """Wrong among them."""


class CascadeThresholds(NamedTuple):
    """Outcome of the search over a cascade."""

    thresholds: Thresholds
    """The cheapest that keep the guarantee; NEVER_ACCEPT throughout if none do."""
    level: float
    floor: float
    """Lowest last threshold at which the accuracy loss is shown too, by itself; 1.01 if it is not limited."""
    shares: dict[str, tuple[float, float]]
    """By risk: least and largest accepted share at which it is shown; only risks that are shown somewhere."""
    n_tested: int
    never_escalates: bool = False
    """The guarantee holds only if nothing is escalated: the large model is no better on the rest anyway."""

    @property
    def issued(self) -> bool:
        return any(threshold <= 1 for threshold in self.thresholds)


def search_threshold(
    confidence: Sequence[float], correct: Sequence[bool], guarantee: Guarantee
) -> ThresholdSearchResult:
    """Return the loosest threshold at which accepted answers are shown to be wrong at most `max_error` of the time."""
    level, limit = 1 - guarantee.confidence, guarantee.max_error or 0.0
    first = min_accepted_rows(len(confidence), limit, level)
    return fixed_sequence_test(np.asarray(confidence), np.asarray(correct), limit, level=level, first=first)


def fixed_sequence_test(
    confidence: np.ndarray, correct: np.ndarray, limit: float, *, level: float, first: int
) -> ThresholdSearchResult:
    """Test "wrong at most `limit`" at one threshold after the other, from `first` accepted rows on, until it fails."""
    descending, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    order = np.argsort(-descending, kind="stable")
    descending, wrong = descending[order], np.cumsum(~right[order])
    accepted = np.arange(max(first, 1), len(descending) + 1)
    # Rows of equal confidence are accepted together or not at all.
    accepted = accepted[np.append(descending[1:] != descending[:-1], True)[accepted - 1]]
    failed = special.bdtr(wrong[accepted - 1], accepted, limit) > level
    n_passed = int(failed.argmax()) if failed.any() else len(accepted)
    if n_passed == 0:
        return ThresholdSearchResult(threshold=NEVER_ACCEPT, n_accepted=0, n_errors=0)
    n = int(accepted[n_passed - 1])
    return ThresholdSearchResult(threshold=float(descending[n - 1]), n_accepted=n, n_errors=int(wrong[n - 1]))


def min_accepted_rows(n: int, limit: float, level: float) -> int:
    """Return where the search begins: half the rows, or as many as the limit needs without any error."""
    return max(min_rows_without_error(limit, level), (n + 1) // 2)


def min_rows_without_error(limit: float, level: float) -> int:
    """Return the fewest rows that show an error of at most `limit` if none is wrong: (1 - limit)^n <= level."""
    return max(1, math.ceil(math.log(level) / math.log1p(-limit) - 1e-9)) if limit > 0 else sys.maxsize


def search_cascade(
    data: CascadeData, guarantee: Guarantee, *, selection: CascadeData | None = None, steps: int = STEPS
) -> CascadeThresholds:
    """Return the cheapest thresholds that keep every limit; without costs of large, those that escalate least.

    `selection`: the stages' answers to rows that certify nothing; they choose where a search begins.
    """
    if set(guarantee.limits) == {"error"} and data.n_stages == 1:
        level = 1 - guarantee.confidence
        one = search_threshold(data.confidence[0].tolist(), data.right[0].tolist(), guarantee)
        shown = {"error": (0.0, one.n_accepted / max(1, data.n))} if one.n_accepted else {}
        return CascadeThresholds((one.threshold,), level, NEVER_ACCEPT, shown, data.n)
    paths = threshold_paths(data.confidence, steps)
    level = (1 - guarantee.confidence) / (len(guarantee.limits) * len(paths))
    choices: list[tuple[float, int, Thresholds, bool]] = []
    with_small_loss: list[Thresholds] = []
    shares: dict[str, tuple[float, float]] = {}
    for path in paths:
        outcomes = [data.outcome(thresholds) for thresholds in path]
        places = {risk: _shown_places(risk, outcomes, limit, level) for risk, limit in guarantee.limits.items()}
        for risk, shown_at in places.items():
            found = [outcomes[i].n_accepted / data.n for i in shown_at] + list(shares.get(risk, ()))
            shares |= {risk: (min(found), max(found))} if found else {}
        with_small_loss += [path[i] for i in places.get("accuracy_loss", ())]
        for i, never_escalates in _valid_places(outcomes, path, places):
            cost = outcomes[i].mean_cost_usd if data.large_known else float(data.n - outcomes[i].n_accepted)
            choices.append((cost, -outcomes[i].n_accepted, path[i], never_escalates))
    nothing = (0.0, 0, (NEVER_ACCEPT,) * data.n_stages, False)
    _, _, best, never_escalates = min(choices, default=nothing)
    floor = min((one[-1] for one in with_small_loss if one[:-1] == best[:-1]), default=NEVER_ACCEPT)
    return CascadeThresholds(best, level, floor, shares, sum(map(len, paths)), never_escalates)


def _valid_places(
    outcomes: Sequence[CascadeOutcome], path: Sequence[Thresholds], places: Mapping[str, Sequence[int]]
) -> list[tuple[int, bool]]:
    """Return the places at which everything is shown, with True where it is only if nothing is escalated."""
    last = len(path) - 1
    growing = [set(shown) for risk, shown in places.items() if risk in GROWS_WITH_COVERAGE]
    falling = [set(shown) for risk, shown in places.items() if risk not in GROWS_WITH_COVERAGE]
    good = set.intersection(set(range(len(path))), *growing)
    escalating = set.intersection(good, *falling)
    without = all(last in shown for shown in (*falling, set(places.get("accuracy_loss", [last]))))
    keeping = {
        i
        for i in good - escalating
        if without and path[i][:-1] == path[last][:-1] and not outcomes[i].large_better_below
    }
    return [(i, False) for i in sorted(escalating)] + [(i, True) for i in sorted(keeping)]


def threshold_paths(confidence: np.ndarray, steps: int = STEPS) -> list[list[Thresholds]]:
    """Return paths of threshold vectors, each from strict to loose, from confidences by stage and row.

    One stage: one path. More: only the last drafts; all accept the same share; those before the last accept half of it.
    """
    shares = np.arange(1, steps + 1) / steps
    last = _thresholds(confidence[-1], shares)
    if len(confidence) == 1:
        return [_distinct((t,) for t in last)]
    closed, paths = (NEVER_ACCEPT,) * (len(confidence) - 1), []
    paths.append(_distinct((*closed, t) for t in last))
    for part in (1.0, 0.5):
        before = [_thresholds(stage, part * shares) for stage in confidence[:-1]]
        paths.append(_distinct(zip(*before, last, strict=True)))
    return paths


def _shown_places(risk: str, outcomes: Sequence[CascadeOutcome], limit: float, level: float) -> list[int]:
    """Return the places on the path at which the limit is shown, testing from where it is easiest until it fails."""
    order, data = list(range(len(outcomes))), outcomes[0].data
    if risk == "error":
        first = min_accepted_rows(data.n, limit, level)
        order = [i for i in order if outcomes[i].n_accepted >= first]
    places = []
    for i in order if risk in GROWS_WITH_COVERAGE else reversed(order):
        if not evidence(risk, outcomes[i], limit).shows(level):
            break
        places.append(i)
    return places


def _thresholds(confidence: np.ndarray, shares: np.ndarray) -> list[float]:
    descending = np.sort(confidence)[::-1]
    counts = np.floor(shares * len(descending) + 1e-9).astype(int)
    found = [float(descending[i - 1]) if i else NEVER_ACCEPT for i in counts.tolist()]
    return [0.0 if share >= 1 else threshold for share, threshold in zip(shares, found, strict=True)]


def _distinct(vectors: Iterable[Thresholds]) -> list[Thresholds]:
    return list(dict.fromkeys(vectors))
