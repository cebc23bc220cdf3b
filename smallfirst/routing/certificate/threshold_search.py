"""Search for the cheapest thresholds at which every limit of the guarantee is shown on calibration rows.

Learn-then-Test (Angelopoulos et al. 2021) along a few paths from accepting nothing to everything, which depend on
confidences alone, never on what is right; the level is divided equally among limits and paths, so the choice needs no
further correction. The limit on errors, which may be shown in the middle of a path alone, is tested from several starts
on by a graphical procedure (Bretz et al. 2009; `rejected_on_path`, with the proof). One stage and a limit on errors
alone: every row is a step of the path.

A start must not depend on which calibration answers are right. Selection rows may choose the one that has most of the
level, because they certify nothing; the others have a part of it, since nobody knows where the model is surely good
enough, and no start that fails may take the whole level with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData, CascadeOutcome
from smallfirst.routing.certificate.risks import evidence
from smallfirst.stats.sample_size import min_rows_without_error

Starts = tuple[tuple[float, float], ...]
"""Shares of the rows accepted at the starts, ascending, each with its share of the level; these sum to 1."""
DEFAULT_STARTS: Starts = ((1 / 8, 1 / 4), (1 / 4, 1 / 4), (1 / 2, 1 / 2))
CHOICES = (1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16, 5 / 8, 3 / 4)
"""Shares of the rows of which selection rows choose one to start at; the first of equally good ones."""
DOUBT = 10
"""Selection rows at which half of the level stays with the default starts; of m rows DOUBT / (DOUBT + m) does."""
_WORLDS = 50
_PLACES = 100
MAX_FOREIGN_ACCEPTED = 0.05
"""Share of the known foreign rows that are accepted where the guarantee is about the task's own requests alone, if a
threshold that is shown accepts as few."""
STEPS = 100
"""Thresholds on a path."""
Thresholds = tuple[float, ...]
"""One a drafting stage, cheapest first."""


def rejected_on_path(
    shows: Callable[[int, int, float], np.ndarray], starts: Sequence[tuple[int, float]], n: int, level: float
) -> np.ndarray:
    """Return by place 0 to n - 1 of the path whether its hypothesis is rejected; a true one is with chance <= `level`.

    `starts`: places in ascending order with their shares of the level, which sum to at most 1. `shows(first, end,
    level)` says for the places from `first` up to `end` whether a test at `level` rejects; a higher level must reject
    no less. From each start on, places are tested until one is not rejected; a walk that reaches the next start hands
    its share on to it. With one start this is fixed-sequence testing (Bauer 1991), otherwise the fallback procedure
    (Wiens 2003).

    It is a graph (Bretz et al. 2009) whose nodes are the places in order, each with an edge of weight 1 to the next,
    and the share of the start that lies on it. Proof of the bound: a share moves only past rejected places, so until a
    true hypothesis is rejected each share is spent no later than on the first true hypothesis at or after its start,
    and the shares that meet on it add up. Which these are does not depend on what was drawn. A test at a share w of the
    level rejects a true one with chance at most w `level`, and all these shares together are at most 1, so by
    Bonferroni the chance that any true hypothesis is rejected is at most `level`. A start that fails takes its own
    share alone with it: later places are tested at the shares of later starts.
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


def start_rows(n: int, limit: float, level: float, starts: Starts = DEFAULT_STARTS) -> list[tuple[int, float]]:
    """Return how many of `n` rows are accepted at each start, ascending, with its share of the level.

    A start has at least the rows that show the limit without an error. Where that is no earlier than the next start,
    it hands its share of the level to that one and is left out.
    """
    found, waiting = list[tuple[int, float]](), 0.0
    for i, (accepted, share) in enumerate(starts):
        waiting += share
        rows = max(math.ceil(accepted * n), min_rows_without_error(limit, waiting * level))
        if i + 1 == len(starts) or rows < starts[i + 1][0] * n:
            found.append((rows, waiting))
            waiting = 0.0
    return found


def choose_starts(scores: np.ndarray, right: np.ndarray, n: int, limit: float, level: float) -> Starts:
    """Return the start that keeps most of `n` rows like these selection rows, with a part of the level for the others.

    `scores`: higher is accepted earlier. The rows to come are drawn from rates as likely as the selection rows make
    them (the Bayesian bootstrap, Rubin 1981, of these rows and one wrong answer more). Few rows know little, and a
    start that fails ends its walk: so DOUBT / (DOUBT + m) of the level stays with the default starts, which hand on
    what they show (`rejected_on_path`). If no start keeps any, the default ones have all of it.
    """
    m = len(right)
    means = _kept_in_worlds(scores, right, n, limit, level).mean(axis=1)
    best = int(np.argmax(means))
    if not means[best]:
        return DEFAULT_STARTS
    doubt = DOUBT / (DOUBT + m)
    shares = {accepted: doubt * share for accepted, share in DEFAULT_STARTS}
    shares[CHOICES[best]] = shares.get(CHOICES[best], 0.0) + 1 - doubt
    return tuple(sorted(shares.items()))


def chance_to_show(scores: np.ndarray, right: np.ndarray, n: int, limit: float, level: float) -> float:
    """Return how likely `n` rows like these selection rows show the limit at some start, in [0, 1]; 1 without any."""
    if not len(right):
        return 1.0
    return float((_kept_in_worlds(scores, right, n, limit, level) > 0).mean(axis=1).max())


def _kept_in_worlds(scores: np.ndarray, right: np.ndarray, n: int, limit: float, level: float) -> np.ndarray:
    """Return by start of CHOICES and drawn world how many of `n` rows are kept from it on; no rows tell nothing."""
    m = len(right)
    if not m:
        return np.zeros((len(CHOICES), _WORLDS))
    draw = np.random.default_rng(0)
    wrong = ~np.asarray(right, dtype=bool)[np.argsort(-np.asarray(scores, dtype=float), kind="stable")]
    counts = draw.multinomial(n, draw.dirichlet(np.ones(m + 1), _WORLDS))  # (worlds, rows and the wrong one)
    more = draw.multinomial(counts[:, m], np.full(m, 1 / m))
    places = np.unique(np.linspace(0, m - 1, _PLACES).astype(int))
    accepted = np.cumsum(counts[:, :m] + more, axis=1)[:, places]
    losses = np.cumsum(counts[:, :m] * wrong + more, axis=1)[:, places]
    failed = (accepted == 0) | (special.bdtr(losses, accepted, limit) > level)

    def kept(share: float) -> np.ndarray:
        [(first, _)] = start_rows(n, limit, level, ((share, 1.0),))
        inside = accepted >= first
        walked = inside & (np.cumsum(inside & failed, axis=1) == 0)
        return np.asarray(np.where(walked, accepted, 0).max(axis=1))

    return np.array([kept(share) for share in CHOICES])


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
    keeps_all: bool
    """The accuracy loss is also shown, by itself, where the last stage answers all that is left to it."""
    shares: dict[str, tuple[float, float]]
    """By risk: least and largest accepted share at which it is shown; only risks that are shown somewhere."""
    n_tested: int
    first: int = 0
    """Rows accepted where the search for the limit on errors begins; 0 where there are several paths or limits."""

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
    return search_rows(confidence, correct, limit, level, start_rows(len(confidence), limit, level, starts))


def search_rows(
    confidence: Sequence[float] | np.ndarray,
    correct: Sequence[bool] | np.ndarray,
    limit: float,
    level: float,
    starts: Sequence[tuple[int, float]],
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
        return CascadeThresholds((one.threshold,), level, False, shown, data.n, first)
    paths = threshold_paths(data.confidence, steps)
    level = (1 - guarantee.confidence) / (len(guarantee.limits) * len(paths))
    choices: list[tuple[float, float, int, Thresholds]] = []
    first = 0
    with_small_loss: list[Thresholds] = []
    shares: dict[str, tuple[float, float]] = {}
    for path in paths:
        outcomes = [data.outcome(thresholds) for thresholds in path]
        places = dict[str, list[int]]()
        if "accuracy_loss" in guarantee.limits:
            limit = guarantee.limits["accuracy_loss"]
            shows = (evidence("accuracy_loss", outcome, limit).shows(level) for outcome in outcomes)
            places["accuracy_loss"] = [i for i, _ in enumerate(itertools.takewhile(bool, shows))]
        if "error" in guarantee.limits:
            limit = guarantee.limits["error"]
            starts = _path_starts(path, selection, data.n, limit, level)
            places["error"] = _shown_errors(outcomes, limit, level, starts)
            first = start_rows(data.n, limit, level, starts)[0][0]
        for risk, shown_at in places.items():
            found = [outcomes[i].n_accepted / data.n for i in shown_at] + list(shares.get(risk, ()))
            shares |= {risk: (min(found), max(found))} if found else {}
        with_small_loss += [path[i] for i in places.get("accuracy_loss", ())]
        for i in sorted(set.intersection(*map(set, places.values()))):
            cost = outcomes[i].mean_cost_usd if data.large_known else float(data.n - outcomes[i].n_accepted)
            choices.append((_excess(outcomes[i]), cost, -outcomes[i].n_accepted, path[i]))
    *_, best = min(choices, default=(0.0, 0.0, 0, (NEVER_ACCEPT,) * data.n_stages))
    keeps_all = (*best[:-1], 0.0) in with_small_loss
    return CascadeThresholds(best, level, keeps_all, shares, sum(map(len, paths)), first)


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
    return CascadeThresholds((NEVER_ACCEPT,) * data.n_stages, 1.0, False, {}, 0)


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
