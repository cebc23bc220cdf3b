"""The search for thresholds: the cheapest ones at which every limit of the promise is shown on calibration rows.

One drafting stage and one limit on wrong answers: fixed-sequence testing (Bauer 1991) over every distinct confidence.
Anything more: Learn-then-Test (Angelopoulos et al. 2021). Thresholds move together along a few paths, from keeping
nothing to keeping all; along each path every limit is tested in the direction in which it gets harder, and its first
failure stops it. 1 - confidence is shared out equally over limits and paths, so that all that is shown holds at once,
and the cheapest choice may be taken without a further correction. Paths come from the confidences alone, never from
what is right.
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

_STEPS = 100
_MOST_ROWS = 20_000
"""Beyond this many rows a promise is not called «a matter of labels»."""

Thresholds = tuple[float, ...]
"""One a drafting stage, cheapest first."""


class ThresholdSearchResult(Record):
    """Outcome of the threshold search on calibration rows."""

    threshold: float
    """Loosest confidence shown to keep the promise; NOTHING_KEPT if none."""
    n_kept: int
    """Rows at or above it."""
    errors_kept: int
    """Wrong among them."""


class CascadeThresholds(NamedTuple):
    """Outcome of the search over a cascade."""

    thresholds: Thresholds
    """The cheapest that keep the promise; NOTHING_KEPT throughout if none."""
    level: float
    """Error probability each single test was allowed."""
    floor: float
    """Down to this last threshold the regret is shown too, whatever else is not; 1.01 if it was not asked for."""
    shares: dict[str, tuple[float, float]]
    """By risk: least and largest share kept at which it is shown; only of risks that are shown somewhere."""
    n_tested: int
    """Threshold vectors looked at; every one of them was open to be chosen."""
    sealed: bool = False
    """The promise holds only if nothing of the task is sent on: the large model is no better on the rest anyway."""

    @property
    def issued(self) -> bool:
        """True if something may be kept."""
        return any(threshold <= 1 for threshold in self.thresholds)


def search_threshold(confidence: Sequence[float], correct: Sequence[bool], promise: Guarantee) -> ThresholdSearchResult:
    """The loosest threshold at which kept answers are shown to be wrong at most `promise.at_most_wrong` of the time.

    The sequence starts where half the rows are kept (or as many as a promise without any error needs, if that is
    more) and goes down one distinct confidence at a time. The order depends on confidences only, never on which
    answers are right, so the test is exact given the confidences.
    """
    level = 1 - promise.confidence
    first = min_accepted_rows(len(confidence), promise.at_most_wrong or 0.0, level)
    return fixed_sequence_test(
        np.asarray(confidence), np.asarray(correct), promise.at_most_wrong or 0.0, level=level, first=first
    )


def fixed_sequence_test(
    confidence: np.ndarray, correct: np.ndarray, at_most: float, *, level: float, first: int
) -> ThresholdSearchResult:
    """The same at a level, from `first` rows kept on."""
    said, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    order = np.argsort(-said, kind="stable")
    said, wrong = said[order], np.cumsum(~right[order])
    kept = np.arange(max(first, 1), len(said) + 1)
    # Rows of equal confidence are kept together or not at all.
    kept = kept[np.append(said[1:] != said[:-1], True)[kept - 1]]
    failed = special.bdtr(wrong[kept - 1], kept, at_most) > level
    n_passed = int(failed.argmax()) if failed.any() else len(kept)
    if n_passed == 0:
        return ThresholdSearchResult(threshold=NEVER_ACCEPT, n_kept=0, errors_kept=0)
    n_kept = int(kept[n_passed - 1])
    return ThresholdSearchResult(threshold=float(said[n_kept - 1]), n_kept=n_kept, errors_kept=int(wrong[n_kept - 1]))


def min_accepted_rows(n: int, at_most: float, level: float) -> int:
    """Where the search begins: half the rows, or as many as the promise needs without any error."""
    return max(min_rows_without_error(at_most, level), (n + 1) // 2)


def min_rows_without_error(at_most: float, level: float) -> int:
    """Fewest rows that show an error of at most `at_most` if none of them is wrong: (1 - at_most)^n <= level."""
    return max(1, math.ceil(math.log(level) / math.log1p(-at_most) - 1e-9)) if at_most > 0 else sys.maxsize


def search_cascade(answers: CascadeData, promise: Guarantee) -> CascadeThresholds:
    """The cheapest thresholds that keep every limit of the promise, by mean cost on these rows if the rest is sent on.

    Where the large model was not measured, those that send least on.
    """
    if set(promise.limits) == {"wrong"} and answers.n_stages == 1 and answers.labels != "large+gold":
        level = 1 - promise.confidence
        one = search_threshold(answers.confidence[0].tolist(), answers.right[0].tolist(), promise)
        shown = {"wrong": (0.0, one.n_kept / max(1, answers.n))} if one.n_kept else {}
        return CascadeThresholds((one.threshold,), level, NEVER_ACCEPT, shown, answers.n)
    routes = threshold_paths(answers.confidence)
    level = (1 - promise.confidence) / (len(promise.limits) * len(routes))
    choices: list[tuple[float, int, Thresholds, bool]] = []
    regret: list[Thresholds] = []
    shares: dict[str, tuple[float, float]] = {}
    for path in routes:
        walks = [answers.walk(thresholds) for thresholds in path]
        places = {name: _shown(name, walks, limit, level) for name, limit in promise.limits.items()}
        for name, shown_at in places.items():
            seen = [walks[i].n_kept / answers.n for i in shown_at] + list(shares.get(name, ()))
            shares |= {name: (min(seen), max(seen))} if seen else {}
        regret += [path[i] for i in places.get("regret", ())]
        for i, sealed in _valid(walks, path, places):
            price = walks[i].mean_cost_usd if answers.large_known else float(answers.n - walks[i].n_kept)
            choices.append((price, -walks[i].n_kept, path[i], sealed))
    _, _, best, sealed = min(choices, default=(0.0, 0, (NEVER_ACCEPT,) * answers.n_stages, False))
    floor = min((one[-1] for one in regret if one[:-1] == best[:-1]), default=NEVER_ACCEPT)
    return CascadeThresholds(best, level, floor, shares, sum(map(len, routes)), sealed)


def _valid(
    walks: Sequence[CascadeOutcome], path: Sequence[Thresholds], places: Mapping[str, Sequence[int]]
) -> list[tuple[int, bool]]:
    """Places at which everything is shown; True beside those where it is only if the rest is not sent on.

    Such a place is taken only where the large model is no better on the rest. What is not sent on costs and lasts as
    if all were kept, which is where the tests of cost, latency and escalation begin.
    """
    last = len(path) - 1
    grows = [set(shown) for name, shown in places.items() if name in GROWS_WITH_COVERAGE]
    falls = [set(shown) for name, shown in places.items() if name not in GROWS_WITH_COVERAGE]
    good = set.intersection(set(range(len(path))), *grows)
    sent = set.intersection(good, *falls)
    apart = all(last in shown for shown in (*falls, set(places.get("regret", [last]))))
    sealed = {i for i in good - sent if apart and path[i][:-1] == path[last][:-1] and not walks[i].large_helps_below}
    return [(i, False) for i in sorted(sent)] + [(i, True) for i in sorted(sealed)]


def threshold_paths(confidence: np.ndarray) -> list[list[Thresholds]]:
    """Threshold vectors, each path from strict to loose, from confidences by stage and row.

    With one stage there is one path. With more there are three: only the last stage drafts; every stage keeps the same
    share of its surest rows; the stages before the last keep half of that share.
    """
    shares = np.arange(1, _STEPS + 1) / _STEPS
    last = _thresholds(confidence[-1], shares)
    if len(confidence) == 1:
        return [_distinct((t,) for t in last)]
    closed, routes = (NEVER_ACCEPT,) * (len(confidence) - 1), []
    routes.append(_distinct((*closed, t) for t in last))
    for part in (1.0, 0.5):
        before = [_thresholds(stage, part * shares) for stage in confidence[:-1]]
        routes.append(_distinct(zip(*before, last, strict=True)))
    return routes


def estimate_rows_needed(answers: CascadeData, promise: Guarantee, level: float) -> int | None:
    """About how many calibration rows would show the promise if all rates stayed as they are; None if none would.

    The least over thresholds that keep half the rows or more. Those that today's rows show, and that were not reached
    because a stricter one failed, are left out.
    """
    best: int | None = None
    walks = [answers.walk(one) for path in threshold_paths(answers.confidence) for one in path[::-5]]
    for walk in (walk for walk in walks if 2 * walk.n_kept >= answers.n):
        needed = _rows_for(walk, promise, level, best or _MOST_ROWS)
        best = needed if needed and needed > answers.n else best
    return best


def _rows_for(walk: CascadeOutcome, promise: Guarantee, level: float, most: int) -> int | None:
    needed = 0
    for name, limit in promise.limits.items():
        seen = evidence(name, walk, limit)
        share = seen.n / max(1, walk.answers.n)
        rows = seen.rows_needed(level, int(most * share)) if seen.n else None
        if rows is None:
            return None
        needed = max(needed, int(np.ceil(rows / share)))
    return needed if needed < most else None


def _shown(name: str, walks: Sequence[CascadeOutcome], limit: float, level: float) -> list[int]:
    """Places on the path at which the limit is shown, testing from where it is easiest until it fails."""
    order = list(range(len(walks)))
    if name == "wrong":
        first = min_accepted_rows(walks[0].answers.n, limit, level) if walks[0].answers.labels != "large+gold" else 0
        order = [i for i in order if walks[i].n_kept >= max(first, (walks[i].answers.n + 1) // 2)]
    places = []
    for i in order if name in GROWS_WITH_COVERAGE else reversed(order):
        if not evidence(name, walks[i], limit).shows(level):
            break
        places.append(i)
    return places


def _thresholds(confidence: np.ndarray, shares: np.ndarray) -> list[float]:
    """The confidence that each share of the rows reaches; 0, which all reach, for the whole."""
    falling = np.sort(confidence)[::-1]
    places = np.floor(shares * len(falling) + 1e-9).astype(int)
    found = [float(falling[i - 1]) if i else NEVER_ACCEPT for i in places.tolist()]
    return [0.0 if share >= 1 else threshold for share, threshold in zip(shares, found, strict=True)]


def _distinct(vectors: Iterable[Thresholds]) -> list[Thresholds]:
    return list(dict.fromkeys(vectors))
