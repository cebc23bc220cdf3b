"""Search for the cheapest thresholds at which every limit of the guarantee is shown on calibration rows.

Learn-then-Test (Angelopoulos et al. 2021) along a few paths from accepting nothing to everything, which depend on
confidences alone, never on what is right; limits and paths share the level alike, so the choice needs no further
correction. The limit on errors, which may be shown in the middle of a path alone, is tested from several starts on
(`rejected_on_path`, with the proof). With one stage and a limit on errors alone every row is a step of the path.

A start must not depend on which calibration answers are right. Selection rows may choose the one that has most of the
level, because they certify nothing; the others have a part of it, since no start that fails may take all of it along.

An average can hide a part that is mostly wrong: the answers with one predicted label, or of one value of a tag. With
`per_group` each has its own sequence of thresholds; Holm's method divides the level among those with enough rows to
show anything (Bretz et al. 2009), so with the guarantee's confidence *every* certified group keeps the limit. Selection
rows of a group choose where its search begins, as they do for one search of all.

A field is one at the top level of a JSON answer, there or left out. Its confidence is the model's own probability of
its value, made comparable between fields by isotonic regression on selection rows. The limit is an expected loss
(Angelopoulos et al. 2024), and two tests of it are valid whatever depends on what inside a unit. With few units one
field of each is drawn, and the exact binomial tests what is kept among these. With many, the mean over units of
wrong - limit * kept is bet to be below 0 (Waudby-Smith and Ramdas 2024): whole units count, but small samples pay for
not knowing the variance.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import special

from smallfirst.base.stats.intervals import betting_p_value, edge, upper_bound
from smallfirst.base.stats.sample_size import min_rows_without_error, rows_for_error, rows_for_upper_bound
from smallfirst.measuring.calibration import fit_isotonic
from smallfirst.models.confidence import IsotonicCurve
from smallfirst.routing.certificate.calibration_set import (
    CalibrationSet,
    CascadeOutcome,
    FieldTable,
    is_shown,
    one_row_a_unit,
    unit_numbers,
)
from smallfirst.routing.certificate.certificate import (
    NEVER_ACCEPT,
    FieldCertificate,
    GroupCertificate,
    Guarantee,
    KeptFields,
)

Starts = tuple[tuple[float, float], ...]
"""Shares of the rows accepted at the starts, ascending, each with its share of the level; these sum to 1."""
DEFAULT_STARTS: Starts = ((1 / 8, 1 / 4), (1 / 4, 1 / 4), (1 / 2, 1 / 2))
HALF: Starts = ((1 / 2, 1.0),)
"""The whole level at one start, where units are few."""
CHOICES = (1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16, 5 / 8, 3 / 4)
"""Shares of the rows of which selection rows choose one to start at; the first of equally good ones."""
DOUBT = 10
"""Selection rows at which half of the level stays with the default starts."""
_WORLDS = 50
_PLACES = 100
MAX_FOREIGN_ACCEPTED = 0.05
"""Share of the known foreign rows that are accepted where the guarantee is about the task's own requests alone, if a
threshold that is shown accepts as few."""
STEPS = 100
"""Thresholds on a path, and of fields that are tried."""
MIN_EXPECTED = 20
"""Wrong units that the limit allows for (units times limit) from which means of units are bet on."""
_SEED = 0
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
    (Wiens 2003), a graph in the sense of Bretz et al. (2009).

    Proof of the bound: a share moves only past rejected places, so until a true hypothesis is rejected each share is
    spent no later than on the first true hypothesis at or after its start, and the shares that meet on it add up. Which
    these are does not depend on what was drawn. A test at a share w of the level rejects a true one with chance at most
    w `level`, and all these shares together are at most 1, so by Bonferroni the chance that any true hypothesis is
    rejected is at most `level`. A start that fails takes its own share alone with it.
    """
    return _walked(shows, starts, n, level)[0]


def _walked(
    shows: Callable[[int, int, float], np.ndarray], starts: Sequence[tuple[int, float]], n: int, level: float
) -> tuple[np.ndarray, float]:
    """Return what `rejected_on_path` does, and the share that arrives at the end of the path."""
    rejected, carried = np.zeros(n, dtype=bool), 0.0
    ends = [*(first for first, _ in starts[1:]), n]
    for (first, share), end in zip(starts, ends, strict=True):
        share += carried
        shown = shows(first, end, share * level) if first < end else np.ones(0, dtype=bool)
        passed = len(shown) if shown.all() else int(np.argmin(shown))
        rejected[first : first + passed] = True
        carried = share if passed == len(shown) else 0.0
    return rejected, carried


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

    `scores`: higher is accepted earlier. Few rows know little: of m rows DOUBT / (DOUBT + m) of the level stays with
    the default starts, which hand on what they show; all of it, if no start keeps any.
    """
    means = _kept_in_worlds(scores, right, n, limit, level).mean(axis=1)
    best = int(np.argmax(means))
    if not means[best]:
        return DEFAULT_STARTS
    doubt = DOUBT / (DOUBT + len(right))
    shares = {accepted: doubt * share for accepted, share in DEFAULT_STARTS}
    shares[CHOICES[best]] = shares.get(CHOICES[best], 0.0) + 1 - doubt
    return tuple(sorted(shares.items()))


def chance_to_show(scores: np.ndarray, right: np.ndarray, n: int, limit: float, level: float) -> float:
    """Return how likely `n` rows like these selection rows show the limit at some start, in [0, 1]; 1 without any."""
    kept = _kept_in_worlds(scores, right, n, limit, level)
    return float((kept > 0).mean(axis=1).max()) if len(right) else 1.0


def expected_share(scores: np.ndarray, right: np.ndarray, n: int, limit: float, level: float) -> float:
    """Return the share of `n` rows like these selection rows that is kept on average from the best start, in [0, 1]."""
    return float(_kept_in_worlds(scores, right, n, limit, level).mean(axis=1).max()) / n if n else 0.0


def _kept_in_worlds(scores: np.ndarray, right: np.ndarray, n: int, limit: float, level: float) -> np.ndarray:
    """Return by start of CHOICES and drawn world how many of `n` rows are kept from it on; no rows tell nothing.

    The rows to come are drawn from rates as likely as the rows seen make them (the Bayesian bootstrap, Rubin 1981, of
    these rows and one wrong answer more).
    """
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


class ThresholdSearchResult(NamedTuple):
    """The loosest confidence that is shown, NEVER_ACCEPT if none, the rows at or above it and the wrong among them."""

    threshold: float
    n_accepted: int
    n_errors: int
    left: float = 0.0
    """Share of the level that walked past all rows, and may be used elsewhere."""


def search_threshold(
    confidence: Sequence[float] | np.ndarray,
    correct: Sequence[bool] | np.ndarray,
    guarantee: Guarantee,
    starts: Starts = DEFAULT_STARTS,
) -> ThresholdSearchResult:
    """Return the loosest threshold at which accepted answers are shown to be wrong at most `max_error` of the time."""
    level, limit = 1 - guarantee.confidence, guarantee.max_error or 0.0
    rows = start_rows(len(confidence), limit, level, starts)
    return search_rows(np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool), limit, level, rows)


def search_rows(
    confidence: np.ndarray, right: np.ndarray, limit: float, level: float, starts: Sequence[tuple[int, float]]
) -> ThresholdSearchResult:
    """Return the loosest threshold that is shown, testing from several numbers of accepted rows on."""
    order = np.argsort(-confidence, kind="stable")
    descending, wrong = confidence[order], np.cumsum(~right[order])
    # Rows of equal confidence are accepted together or not at all.
    accepted = np.arange(1, len(order) + 1)[np.append(descending[1:] != descending[:-1], True)[: len(order)]]

    def shows(first: int, end: int, share: float) -> np.ndarray:
        n = accepted[first:end]
        return np.asarray(special.bdtr(wrong[n - 1], n, limit) <= share)

    places = [(int(np.searchsorted(accepted, rows)), share) for rows, share in starts]
    rejected, left = _walked(shows, places, len(accepted), level)
    if not rejected.any():
        return ThresholdSearchResult(NEVER_ACCEPT, 0, 0)
    n = int(accepted[np.flatnonzero(rejected)[-1]])
    return ThresholdSearchResult(float(descending[n - 1]), n, int(wrong[n - 1]), left)


class CascadeThresholds(NamedTuple):
    """Outcome of the search over a cascade."""

    thresholds: Thresholds
    """The cheapest that keep the guarantee; NEVER_ACCEPT throughout if none do."""
    level: float
    """At which each limit is tested on each path."""
    keeps_all: bool = False
    """The accuracy loss is also shown where the last stage answers all that is left to it."""
    first: int = 0
    """Rows accepted where the search for the limit on errors begins."""

    @property
    def issued(self) -> bool:
        return any(threshold <= 1 for threshold in self.thresholds)


def search_cascade(data: CalibrationSet, guarantee: Guarantee) -> CascadeThresholds:
    """Return the cheapest thresholds that keep every limit; without costs of large, those that escalate least."""
    selection, limits, level, limit = (
        data.selection,
        guarantee.limits,
        1 - guarantee.confidence,
        guarantee.max_error or 0.0,
    )
    if guarantee.max_accuracy_loss is None and data.n_stages == 1 and not data.foreign_share and not data.n_foreign:
        starts = DEFAULT_STARTS
        if selection is not None:
            starts = choose_starts(selection.confidence[0], selection.right[0], data.n, limit, level)
        rows = start_rows(data.n, limit, level, starts)
        one = search_rows(data.confidence[0], data.right[0], limit, level, rows)
        return CascadeThresholds((one.threshold,), level, first=rows[0][0])
    paths = threshold_paths(data.confidence)
    level /= len(limits) * len(paths)
    choices, with_small_loss, first = list[tuple[float, float, int, Thresholds]](), list[Thresholds](), 0
    for path in paths:
        outcomes, places = [data.outcome(thresholds) for thresholds in path], dict[str, list[int]]()
        if "accuracy_loss" in limits:
            shows = (is_shown("accuracy_loss", outcome, limits["accuracy_loss"], level) for outcome in outcomes)
            places["accuracy_loss"] = list(range(sum(itertools.takewhile(bool, shows))))
            with_small_loss += path[: len(places["accuracy_loss"])]
        if "error" in limits:
            places["error"], first = _shown_errors(path, outcomes, limit, level)
        for i in sorted(set.intersection(*map(set, places.values()))):
            n = outcomes[i].n_accepted
            cost = outcomes[i].mean_cost_usd if data.asked.any() else float(data.n - n)
            choices.append((_excess(outcomes[i]), cost, -n, path[i]))
    *_, best = min(choices, default=(0.0, 0.0, 0, (NEVER_ACCEPT,) * data.n_stages))
    return CascadeThresholds(best, level, (*best[:-1], 0.0) in with_small_loss, first)


def threshold_paths(confidence: np.ndarray) -> list[list[Thresholds]]:
    """Return paths of threshold vectors, from strict to loose, from confidences by stage and row.

    Only the last stage accepts; all accept the same share; or those before the last half of it. One stage has one path.
    """

    def thresholds(stage: np.ndarray, part: float = 1.0) -> list[float]:
        descending, shares = np.sort(stage)[::-1], part * np.arange(1, STEPS + 1) / STEPS
        counts = np.floor(shares * len(descending) + 1e-9).astype(int).tolist()
        found = [float(descending[i - 1]) if i else NEVER_ACCEPT for i in counts]
        return [0.0 if share >= 1 else threshold for share, threshold in zip(shares, found, strict=True)]

    last, before = thresholds(confidence[-1]), confidence[:-1]
    paths = [[(*[NEVER_ACCEPT] * len(before), threshold) for threshold in last]]
    for part in (1.0, 0.5) if len(before) else ():
        paths.append(list(zip(*(thresholds(stage, part) for stage in before), last, strict=True)))
    return [list(dict.fromkeys(path)) for path in paths]


def _shown_errors(
    path: Sequence[Thresholds], outcomes: Sequence[CascadeOutcome], limit: float, level: float
) -> tuple[list[int], int]:
    """Return the places at which the limit on errors is shown, and the rows accepted where the search begins.

    Selection rows choose the starts, taken in the order in which the path accepts them.
    """
    n, starts, selection = outcomes[0].data.n, DEFAULT_STARTS, outcomes[0].data.selection
    if selection is not None:
        chosen = [selection.outcome(thresholds) for thresholds in path]
        steps = np.sum([outcome.accepted for outcome in chosen], axis=0)
        first = np.minimum(len(path) - steps, len(path) - 1)  # by row: the strictest place that accepts it
        right = np.array([chosen[place].right[row] for row, place in enumerate(first.tolist())], dtype=bool)
        starts = choose_starts(steps, right, n, limit, level)

    def shows(first: int, end: int, share: float) -> np.ndarray:
        return np.array([is_shown("error", outcome, limit, share) for outcome in outcomes[first:end]], dtype=bool)

    rows, accepted = start_rows(n, limit, level, starts), [outcome.n_accepted for outcome in outcomes]
    places = [(int(np.searchsorted(accepted, one)), share) for one, share in rows]
    shown = np.flatnonzero(rejected_on_path(shows, places, len(outcomes), level))
    return shown.tolist(), rows[0][0]


def _excess(outcome: CascadeOutcome) -> float:
    """Return by how much too many foreign rows are accepted where nothing is promised about them.

    Stricter thresholds are chosen then: any place that is shown may be.
    """
    share = outcome.n_foreign_accepted / max(1, outcome.data.n_foreign)
    return 0.0 if outcome.data.foreign_share else max(0.0, share - MAX_FOREIGN_ACCEPTED)


def certify_groups(
    data: CalibrationSet, limit: float, *, level: float, languages: Sequence[str] = ()
) -> tuple[GroupCertificate, ...]:
    """Return the certificates of the parts of one stage's answers, in alphabetical order; all hold at `level`.

    `languages`: the parts are these, and one without a row is told too.
    """
    if data.part is None:
        return ()
    confidence, right, certificates = data.confidence[-1], data.right[-1], []
    found = _search_groups(data, limit, level)
    left = level / (len(found) + 1)  # with enough rows it is one more group that the level is divided among
    for label in sorted({*languages, *(part for part in data.part.tolist() if part is not None)}):
        threshold, share = found.get(label, (NEVER_ACCEPT, left))
        own = data.part == label
        accepted = own & ((confidence >= threshold) | (threshold > 1))
        n, errors = int(accepted.sum()), int((accepted & ~right).sum())
        missing: int | None = 0
        if threshold > 1 and not n:
            missing = min_rows_without_error(limit, share)
        elif threshold > 1 and languages:
            needed = rows_for_error(confidence[own], right[own], limit, share, refused_at=share)
            missing = None if needed.unlikely else needed.n_more
        elif threshold > 1:
            enough = rows_for_upper_bound(errors / max(1, n), limit, confidence=1 - share, max_rows=20_000)
            missing = None if enough is None else max(1, enough - n)
        certificates.append(
            GroupCertificate(
                label=label,
                threshold=threshold,
                n_accepted=n,
                n_errors=errors,
                error_bound=upper_bound(errors, n, confidence=1 - share),
                labels_missing=missing,
                n_rows=int(own.sum()),
            )
        )
    return tuple(certificates)


def _search_groups(data: CalibrationSet, limit: float, level: float) -> dict[str, tuple[float, float]]:
    """Return by testable group its threshold and its level; what walks past all rows of one goes to the others.

    All groups are one graph: they begin with equal shares of the level, at starts that are fixed before a calibration
    answer is read, and a share leaves a group only past its last row. So the proof of `rejected_on_path` holds for all
    paths together.
    """
    assert data.part is not None
    rows = {group: data.part == group for group in _testable(data.part, limit, level)}
    left, share, found = list(rows), dict.fromkeys(rows, 1 / max(1, len(rows))), dict[str, tuple[float, float]]()
    starts = {
        group: _group_starts(data, group, int(own.sum()), limit, level / len(rows)) for group, own in rows.items()
    }
    while left:
        freed, passed = 0.0, list[str]()
        for group in left:
            own = rows[group]
            one = search_rows(data.confidence[-1][own], data.right[-1][own], limit, share[group] * level, starts[group])
            found[group] = (one.threshold, share[group] * level)
            if one.left:
                freed, passed = freed + one.left * share[group], [*passed, group]
        left = [group for group in left if group not in passed] if passed else []
        share |= {group: share[group] + freed / len(left) for group in left}
    return found


def _group_starts(data: CalibrationSet, group: str, n: int, limit: float, level: float) -> list[tuple[int, float]]:
    """Return where a group's search begins: where its selection rows say, else at half of its rows."""
    chosen, starts = data.selection, HALF
    if chosen is not None and chosen.part is not None and (own := chosen.part == group).any():
        starts = choose_starts(chosen.confidence[-1][own], chosen.right[-1][own], n, limit, level)
    return start_rows(n, limit, level, starts)


def _testable(part: np.ndarray, limit: float, level: float) -> list[str]:
    """Return the groups with enough rows when the level is divided among just these."""
    counts = Counter(group for group in part.tolist() if group is not None).most_common()
    for n_groups in range(len(counts), 0, -1):
        if counts[n_groups - 1][1] >= min_rows_without_error(limit, level / n_groups):
            return [group for group, _ in counts[:n_groups]]
    return []


def certify_fields(
    answers: FieldTable, max_wrong: float, *, level: float, selection: FieldTable | None = None
) -> FieldCertificate:
    """Certify the fields of one stage's answers to calibration rows; `selection` rows calibrate the confidences.

    Each field by its own confidence, and whole answers by that of their least confident field, have half of the level.
    """
    curves = fit_curves(selection) if selection else {}
    table = answers.calibrated(curves)
    lowest = np.broadcast_to(table.confidence.min(axis=1, keepdims=True), table.confidence.shape)
    each, whole = (search_fields(one, max_wrong, level / 2) for one in (table, replace(table, confidence=lowest)))
    n_rows, n_units = len(table.wrong), len(set(table.unit.tolist()))
    return FieldCertificate(names=table.names, each=each, whole=whole, n_rows=n_rows, n_units=n_units, curves=curves)


class KeptOfGroups(NamedTuple):
    """What is shown where answers of groups (conversations) count together."""

    threshold: float
    """Least confidence that is kept; NEVER_ACCEPT if none is."""
    bound: float
    """Upper bound on the share of kept answers that are wrong."""
    kept: np.ndarray
    """By row: kept at the threshold, among the first of its group."""
    first: int = 0
    """Rows kept where the search begins."""


def search_groups(data: CalibrationSet, limit: float, level: float) -> KeptOfGroups:
    """Return the loosest threshold at which at most `limit` of the kept answers of all groups are shown to be wrong.

    Rows of a group stand in their order, and at most `data.most_of_group` of its confident answers are kept, the first
    ones. The limit is on E[wrong] / E[kept] over groups, whatever depends on what inside them, and both tests are
    `search_fields`'s: of few groups one of these places is drawn, and what is kept there is tested by the exact
    binomial; of many the mean of wrong - limit * kept is bet to be below 0.
    """
    assert data.unit is not None
    assert data.place is not None
    if not data.n:
        return KeptOfGroups(NEVER_ACCEPT, 1.0, np.zeros(0, dtype=bool))
    confidence, wrong, unit = data.confidence[-1], ~data.right[-1], unit_numbers(data.unit.tolist())
    order = np.lexsort((data.place, unit))
    first = np.searchsorted(unit[order], np.arange(unit.max(initial=-1) + 1))
    slot = np.random.default_rng(_SEED).integers(1, data.most_of_group + 1, len(first))

    def kept_places(threshold: float) -> np.ndarray:
        """Return by row which kept answer of its group it is, from 1; 0 if it is not kept."""
        inside = (confidence >= threshold)[order]
        counted = np.cumsum(inside)
        before = np.concatenate(([0], counted))[first]
        places = np.zeros(len(unit), dtype=int)
        places[order] = np.where(inside, counted - before[unit[order]], 0)
        return np.where(places <= data.most_of_group, places, 0)

    descending = np.sort(confidence)[::-1]
    tried = np.unique(np.ceil(np.arange(1, STEPS + 1) / STEPS * descending.size).astype(int)) - 1
    thresholds = np.unique(descending[tried])[::-1]
    places = [kept_places(threshold) for threshold in thresholds]
    if len(first) * limit < MIN_EXPECTED:
        drawn = [own == slot[unit] for own in places]
        n = np.array([one.sum() for one in drawn], dtype=int)
        errors = np.array([(one & wrong).sum() for one in drawn], dtype=int)
        [(rows, share)] = start_rows(int(n.max(initial=0)), limit, level, HALF)
        p_values = np.where(n > 0, special.bdtr(errors, np.maximum(n, 1), limit), 1.0)
        starts = [(int(np.searchsorted(n, rows)), share)]
        bound: Callable[[int], float] = functools.partial(_drawn_bound, n, errors, 1 - level)
    else:
        p_values, starts, bound = _bet_on_groups(places, wrong, unit, data.most_of_group, limit, level)
    found = rejected_on_path(lambda a, b, share: p_values[a:b] <= share, starts, len(places), level)
    begins = next((int((kept > 0).sum()) for kept in places[starts[0][0] :]), len(unit))
    if not found.any():
        return KeptOfGroups(NEVER_ACCEPT, 1.0, np.zeros(len(unit), dtype=bool), begins)
    best = int(np.flatnonzero(found)[-1])
    return KeptOfGroups(float(thresholds[best]), bound(best), places[best] > 0, begins)


def _drawn_bound(n: np.ndarray, errors: np.ndarray, confidence: float, at: int) -> float:
    return upper_bound(int(errors[at]), int(n[at]), confidence=confidence)


def _bet_on_groups(
    places: Sequence[np.ndarray], wrong: np.ndarray, unit: np.ndarray, most: int, limit: float, level: float
) -> tuple[np.ndarray, list[tuple[int, float]], Callable[[int], float]]:
    """Return the p-value at each threshold, where the search begins with which level, and the bound at one."""

    def p_value(at: int, limit: float, wrong: np.ndarray) -> float:
        kept = places[at] > 0
        excess = (np.bincount(unit, kept & wrong) - limit * np.bincount(unit, kept)) / most
        return betting_p_value(excess, 0.0, low=-limit, high=1 - limit)

    nothing, all_places = np.zeros_like(wrong), range(len(places))
    first = bisect_left(all_places, True, key=lambda at: p_value(at, limit, nothing) <= level)
    p_values = np.array([p_value(at, limit, wrong) for at in all_places])
    starts = [(max(first, int(share * len(places))), weight) for share, weight in DEFAULT_STARTS]
    # The p-value falls as the limit grows.
    return (
        p_values,
        starts,
        lambda at: edge(0.0, limit, lambda smaller: p_value(at, smaller, wrong) > level, within=1e-4),
    )


def fit_curves(selection: FieldTable) -> dict[str, IsotonicCurve]:
    """Return a curve for each field; none where the rows are too few or all right."""
    columns = zip(np.nan_to_num(selection.confidence).T.tolist(), (~selection.wrong).T.tolist(), strict=True)
    fitted = (fit_isotonic(*column) for column in columns)
    return {name: curve for name, curve in zip(selection.names, fitted, strict=True) if curve.x}


def search_fields(table: FieldTable, limit: float, level: float) -> KeptFields:
    """Return the loosest threshold at which at most `limit` of the kept fields are shown to be wrong.

    All thresholds tried hold together at `level`; they are quantiles of the confidences, whatever is right.
    """
    few = len(set(table.unit.tolist())) * limit < MIN_EXPECTED
    threshold, bound = (_search_drawn if few else _search_means)(table, limit, level)
    kept = table.confidence >= threshold
    whole = kept.all(axis=1)
    return KeptFields(
        threshold=threshold,
        n_kept=int(kept.sum()),
        n_wrong=int((kept & table.wrong).sum()),
        n_rows_kept=int(whole.sum()),
        n_rows_wrong=int((whole & table.wrong.any(axis=1)).sum()),
        bound=bound,
    )


def _search_drawn(table: FieldTable, limit: float, level: float) -> tuple[float, float]:
    rows = one_row_a_unit(table.unit)
    field = np.random.default_rng(_SEED).integers(0, table.wrong.shape[1], len(rows))
    starts = start_rows(len(rows), limit, level)
    found = search_rows(table.confidence[rows, field], ~table.wrong[rows, field], limit, level, starts)
    return found.threshold, upper_bound(found.n_errors, found.n_accepted, confidence=1 - level)


def _search_means(table: FieldTable, limit: float, level: float) -> tuple[float, float]:
    descending = np.sort(table.confidence, axis=None)[::-1]
    tried = np.unique(np.ceil(np.arange(1, STEPS + 1) / STEPS * descending.size).astype(int)) - 1
    thresholds, n_rows = np.unique(descending[tried])[::-1], np.bincount(table.unit)

    def unit_means(fields: np.ndarray) -> np.ndarray:
        means: np.ndarray = np.bincount(table.unit, weights=fields.mean(axis=1)) / n_rows
        return means

    def p_value(at: int, limit: float, wrong: np.ndarray) -> float:
        kept = table.confidence >= thresholds[at]
        excess = unit_means(kept & wrong) - limit * unit_means(kept)
        return betting_p_value(excess, 0.0, low=-limit, high=1 - limit)

    nothing, places = np.zeros_like(table.wrong), range(len(thresholds))
    first = bisect_left(places, True, key=lambda at: p_value(at, limit, nothing) <= level)
    p_values = np.array([p_value(at, limit, table.wrong) for at in places])
    starts = [(max(first, int(share * len(places))), weight) for share, weight in DEFAULT_STARTS]
    found = rejected_on_path(lambda a, b, share: p_values[a:b] <= share, starts, len(places), level)
    if not found.any():
        return NEVER_ACCEPT, 1.0
    best = int(np.flatnonzero(found)[-1])
    # The p-value falls as the limit grows.
    bound = edge(0.0, limit, lambda smaller: p_value(best, smaller, table.wrong) > level, within=1e-4)
    return float(thresholds[best]), bound
