"""Search for the cheapest thresholds at which every limit of the guarantee is shown on calibration rows.

Learn-then-Test (Angelopoulos et al. 2021) along a few paths from accepting nothing to everything, which depend on
confidences alone, never on what is right; the level is divided equally among limits and paths, so the choice needs no
further correction. The limit on errors, which may be shown in the middle of a path alone, is tested from several starts
on by a graphical procedure (`stats.graphical`, with the proof), or from the one that selection rows choose. One stage
and a limit on errors alone: every row is a step of the path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData, CascadeOutcome
from smallfirst.routing.certificate.risks import GROWS_WITH_COVERAGE, evidence
from smallfirst.routing.certificate.starts import DEFAULT_STARTS, Starts, choose_starts, start_rows
from smallfirst.stats.graphical import rejected_on_path

MAX_FOREIGN_ACCEPTED = 0.05
"""Share of the known foreign rows that are accepted where the guarantee is about the task's own requests alone, if a
threshold that is shown accepts as few."""
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
    first: int = 0
    """Rows accepted where the search for the limit on errors begins; 0 where there are several paths or limits."""
    never_escalates: bool = False
    """The guarantee holds only if nothing is escalated: the large model is no better on the rest anyway."""

    @property
    def issued(self) -> bool:
        return any(threshold <= 1 for threshold in self.thresholds)


def search_threshold(
    confidence: Sequence[float],
    correct: Sequence[bool],
    guarantee: Guarantee,
    starts: Starts = DEFAULT_STARTS,
) -> ThresholdSearchResult:
    """Return the loosest threshold at which accepted answers are shown to be wrong at most `max_error` of the time."""
    level, limit = 1 - guarantee.confidence, guarantee.max_error or 0.0
    rows = start_rows(len(confidence), limit, level, starts)
    return _search(np.asarray(confidence), np.asarray(correct), limit, level=level, starts=rows)


def fixed_sequence_test(
    confidence: np.ndarray, correct: np.ndarray, limit: float, *, level: float, first: int
) -> ThresholdSearchResult:
    """Test "wrong at most `limit`" at one threshold after the other, from `first` accepted rows on, until it fails."""
    return _search(confidence, correct, limit, level=level, starts=[(max(first, 1), 1.0)])


def _search(
    confidence: np.ndarray, correct: np.ndarray, limit: float, *, level: float, starts: Sequence[tuple[int, float]]
) -> ThresholdSearchResult:
    """Return the loosest threshold that is shown, testing from several numbers of accepted rows on."""
    descending, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    order = np.argsort(-descending, kind="stable")
    descending, wrong = descending[order], np.cumsum(~right[order])
    accepted = np.arange(1, len(descending) + 1)
    # Rows of equal confidence are accepted together or not at all.
    accepted = accepted[np.append(descending[1:] != descending[:-1], True)[: len(accepted)]]

    def shows(first: int, end: int, share: float) -> np.ndarray:
        n = accepted[first:end]
        return np.asarray(special.bdtr(wrong[n - 1], n, limit) <= share)

    places = [(int(np.searchsorted(accepted, rows)), share) for rows, share in starts]
    shown = np.flatnonzero(rejected_on_path(shows, places, len(accepted), level))
    if not shown.size:
        return ThresholdSearchResult(threshold=NEVER_ACCEPT, n_accepted=0, n_errors=0)
    n = int(accepted[shown[-1]])
    return ThresholdSearchResult(threshold=float(descending[n - 1]), n_accepted=n, n_errors=int(wrong[n - 1]))


def search_cascade(
    data: CascadeData, guarantee: Guarantee, *, selection: CascadeData | None = None, steps: int = STEPS
) -> CascadeThresholds:
    """Return the cheapest thresholds that keep every limit; without costs of large, those that escalate least.

    `selection`: the stages' answers to rows that certify nothing; they choose where a search begins.
    """
    if set(guarantee.limits) == {"error"} and data.n_stages == 1 and data.foreign is None:
        level, limit = 1 - guarantee.confidence, guarantee.limits["error"]
        starts = DEFAULT_STARTS
        if selection is not None:
            starts = choose_starts(selection.confidence[0], selection.right[0], data.n, limit, level)
        one = search_threshold(data.confidence[0].tolist(), data.right[0].tolist(), guarantee, starts)
        shown = {"error": (0.0, one.n_accepted / max(1, data.n))} if one.n_accepted else {}
        first = start_rows(data.n, limit, level, starts)[0][0]
        return CascadeThresholds((one.threshold,), level, NEVER_ACCEPT, shown, data.n, first)
    paths = threshold_paths(data.confidence, steps)
    level = (1 - guarantee.confidence) / (len(guarantee.limits) * len(paths))
    choices: list[tuple[float, float, int, Thresholds, bool]] = []
    first = 0
    with_small_loss: list[Thresholds] = []
    shares: dict[str, tuple[float, float]] = {}
    for path in paths:
        outcomes = [data.outcome(thresholds) for thresholds in path]
        places = {
            risk: _shown_places(risk, outcomes, limit, level)
            for risk, limit in guarantee.limits.items()
            if risk != "error"
        }
        if "error" in guarantee.limits:
            limit = guarantee.limits["error"]
            starts = _path_starts(path, selection, data.n, limit, level)
            places["error"] = _shown_errors(outcomes, limit, level, starts)
            first = start_rows(data.n, limit, level, starts)[0][0]
        for risk, shown_at in places.items():
            found = [outcomes[i].n_accepted / data.n for i in shown_at] + list(shares.get(risk, ()))
            shares |= {risk: (min(found), max(found))} if found else {}
        with_small_loss += [path[i] for i in places.get("accuracy_loss", ())]
        for i, never_escalates in _valid_places(outcomes, path, places):
            cost = outcomes[i].mean_cost_usd if data.large_known else float(data.n - outcomes[i].n_accepted)
            choices.append((_excess(outcomes[i]), cost, -outcomes[i].n_accepted, path[i], never_escalates))
    nothing = (0.0, 0.0, 0, (NEVER_ACCEPT,) * data.n_stages, False)
    *_, best, never_escalates = min(choices, default=nothing)
    floor = min((one[-1] for one in with_small_loss if one[:-1] == best[:-1]), default=NEVER_ACCEPT)
    return CascadeThresholds(best, level, floor, shares, sum(map(len, paths)), first, never_escalates)


def _excess(outcome: CascadeOutcome) -> float:
    """Return by how much too many foreign rows are accepted where nothing is promised about them.

    Stricter thresholds that are shown as well are chosen then: every place on a path that is shown may be.
    """
    foreign = outcome.data.foreign
    if foreign is None or foreign.max_share or not foreign.confidence.size:
        return 0.0
    return max(0.0, float(outcome.n_foreign_accepted / foreign.confidence.shape[1]) - MAX_FOREIGN_ACCEPTED)


def nothing_accepted(data: CascadeData) -> CascadeThresholds:
    """Return the outcome where no limit asks for a search."""
    return CascadeThresholds((NEVER_ACCEPT,) * data.n_stages, 1.0, NEVER_ACCEPT, {}, 0)


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
    order, places = range(len(outcomes)), list[int]()
    for i in order if risk in GROWS_WITH_COVERAGE else reversed(order):
        if not evidence(risk, outcomes[i], limit).shows(level):
            break
        places.append(i)
    return places


def _shown_errors(outcomes: Sequence[CascadeOutcome], limit: float, level: float, starts: Starts) -> list[int]:
    """Return the places at which the limit on errors is shown; nobody knows where it is easiest, hence `starts`."""
    accepted = [outcome.n_accepted for outcome in outcomes]
    rows = start_rows(outcomes[0].data.n, limit, level, starts)
    places = [(int(np.searchsorted(accepted, n)), share) for n, share in rows]

    def shows(first: int, end: int, share: float) -> np.ndarray:
        return np.array([evidence("error", outcome, limit).shows(share) for outcome in outcomes[first:end]], dtype=bool)

    return [int(i) for i in np.flatnonzero(rejected_on_path(shows, places, len(outcomes), level))]


def _path_starts(
    path: Sequence[Thresholds], selection: CascadeData | None, n: int, limit: float, level: float
) -> Starts:
    """Return the starts that selection rows choose, taken in the order in which the path accepts them."""
    if selection is None:
        return DEFAULT_STARTS
    outcomes = [selection.outcome(thresholds) for thresholds in path]
    steps = np.sum([outcome.accepted for outcome in outcomes], axis=0)
    first = np.minimum(len(path) - steps, len(path) - 1)  # by row: the strictest place that accepts it
    right = np.array([outcomes[place].right[row] for row, place in enumerate(first.tolist())], dtype=bool)
    return choose_starts(steps, right, n, limit, level)


def _thresholds(confidence: np.ndarray, shares: np.ndarray) -> list[float]:
    descending = np.sort(confidence)[::-1]
    counts = np.floor(shares * len(descending) + 1e-9).astype(int)
    found = [float(descending[i - 1]) if i else NEVER_ACCEPT for i in counts.tolist()]
    return [0.0 if share >= 1 else threshold for share, threshold in zip(shares, found, strict=True)]


def _distinct(vectors: Iterable[Thresholds]) -> list[Thresholds]:
    return list(dict.fromkeys(vectors))
