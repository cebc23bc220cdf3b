"""Gate: what a candidate must show on test rows before it may go live, and the checks of its thresholds.

A threshold is met when the worse end of the interval reaches it. A value counts as shown at most as far as n perfect
rows show it, n / (n + z²) (Wilson 1927): 0.99 takes 381 rows. A good mean can hide a label that is never found; each
interval of a part is widened by the number of checked parts (Bonferroni): 77 labels of 40 rows show at most 0.77.

Short real requests repeat, so test rows that copy a training row are no fault of the rows. Answers to them may be
learned by heart: thresholds are about the other rows, of which enough must be there.

To add a check, give `Gate` a field named `…_at_least`, `…_at_most` or `…_by`, and list a function that returns its
result under the same name in `CHECKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import pydantic
from scipy import special

from smallfirst.base.errors import ConfigError, did_you_mean
from smallfirst.base.records import Record
from smallfirst.base.stats import intervals
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.base.stats.sample_size import chance_of_interval, chance_of_share, fewest_rows
from smallfirst.data.copies import LeakReport, min_clean_rows
from smallfirst.measuring.evaluate import Evaluation, share_of_bill
from smallfirst.measuring.verdict import CheckResult, Verdict
from smallfirst.tasks.task import PartCounts

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]

MAX_NAMED = 5
"""Parts, or copied rows, named in one message; the others are counted."""
_SMALLER = "a smaller model or a shorter prompt would help"
_MEASURE_LARGE = "measure the large model on the same rows, or on a sample of them"


class RoutedThresholds(Record):
    """Thresholds for a plan that keeps a part of the requests small. Its certificate is always needed."""

    accuracy_at_least: Share | None = None
    """Accuracy over all requests, whoever answers (lower end of the interval), in [0, 1]."""
    not_worse_than_large_by: Share | None = None
    """Accuracy over all requests may be at most this much below the large model's (lower end of the paired
    difference)."""
    share_small_at_least: Share | None = None
    """Share of requests that stay small (lower end of the interval), in [0, 1]."""
    cost_at_most: Positive | None = 1.0
    """Cost of the plan, drafts included, over the large model's on the same rows (upper end): 0.5 is half its bill. Not
    checked where there is no large model, or it has no price."""
    p95_ms_at_most: Positive | None = None
    """95th percentile latency of one request at a time, in ms (upper end; takes 72 requests or more)."""


class Gate(Record):
    """Thresholds declared in task.yaml before anything is measured; one left out is not checked."""

    accuracy_at_least: Share | None = None
    """The lower end of the accuracy interval must reach this, in [0, 1]. 1, which no rows can show: no candidate goes
    live alone, only the part of its requests that a certificate covers."""
    measures_at_least: dict[str, Share] = {}
    """Minimum for metrics of the task by name, such as `macro_f1`, `field_f1` or `token_f1` (lower end of the
    interval)."""
    measures_at_most: dict[str, NonNegative] = {}
    """Maximum for metrics of the task by name, such as `missing` or `invented` (upper end)."""
    each_part_at_least: Share | None = None
    """Recall of every label or field: its lower end, at a level corrected for the number of parts, must reach this."""
    part_rows: Annotated[int, pydantic.Field(ge=1)] = 20
    """Labels or fields that occur fewer times are named, but not held to `each_part_at_least`."""
    parts_at_least: dict[str, Share] = {}
    """The lower end of the recall of these labels or fields must reach this."""
    not_worse_than_large_by: Share | None = None
    """Accuracy may be at most this much below the large model's (lower end of the paired difference)."""
    score_not_worse_than_large_by: Share | None = None
    """The mean graded score may be at most this much below the large model's (lower end of the paired difference)."""
    p95_ms_at_most: Positive | None = None
    """95th percentile latency of one request at a time, in ms (upper end; takes 72 requests or more)."""
    cost_usd_per_1k_at_most: Positive | None = None
    """Cost of 1,000 answers in USD (upper end)."""
    routed: RoutedThresholds = RoutedThresholds()
    """Thresholds for a plan that keeps a part of the requests small, where no candidate meets those above alone."""

    def check(
        self,
        candidate: Evaluation,
        *,
        large: Evaluation | None,
        comparisons_made: float = 1,
        leaks: LeakReport | None = None,
        clean: Evaluation | None = None,
        beside: Evaluation | None = None,
    ) -> Verdict:
        """Return the verdict on `candidate`, one result a threshold. Raise ConfigError if none is declared.

        Spend one of `comparisons_made` parts of the level (`choice.level_shares`). `large` may cover some rows.
        Where `leaks` found test rows that repeat a training row, `clean` is the candidate on the others
        (`restrict_to_rows`): the thresholds are about these. `beside` is the candidate on other rows alike that it had
        not seen: they decide nothing, but foretell what more rows are likely to show.
        """
        if comparisons_made < 1:
            raise ConfigError(f"comparisons_made must be at least 1, got {comparisons_made}")
        level = ConfidenceLevel(comparisons_made)
        inputs = CheckInputs(clean or candidate, level, large, self.part_rows, beside)
        if not (results := [*run_checks(self, inputs)]):
            raise ConfigError(
                "the gate declares no threshold, so anything would pass",
                hint="declare at least one in task.yaml, for example  gate: {accuracy_at_least: 0.9}",
            )
        if leaks is not None and any(row.key in leaks.keys for row in candidate.rows):
            results.append(_check_clean_rows(leaks, candidate, inputs))
        return Verdict(
            candidate=candidate.candidate,
            checks=tuple(results),
            passed=all(result.passed for result in results),
            evaluation_fingerprint=candidate.fingerprint(),
        )


class ConfidenceLevel:
    """The level 1 - 0.05 / (comparisons · parts) of intervals that are compared together (Bonferroni)."""

    def __init__(self, comparisons: float, parts: int = 1) -> None:
        self.comparisons, self.parts = comparisons, max(1, parts)
        self.confidence = 1 - 0.05 / (comparisons * self.parts)
        self.z = float(special.ndtri(0.5 + self.confidence / 2))

    @property
    def note(self) -> str:
        """The level and its reason in brackets; empty at 95 %."""
        sharing = ["plans"] * (self.comparisons > 1) + [f"{self.parts} parts"] * (self.parts > 1)
        return f" ({100 * self.confidence:.4g} % interval: {' and '.join(sharing)} share the level)" if sharing else ""

    def format(self, estimate: Estimate, suffix: str = "") -> str:
        return f"{estimate} n={estimate.n}{suffix}{self.note}"

    def widen(self, stored: Estimate) -> Estimate:
        """Widen a 95 % interval, as an Evaluation stores it, to this level, each side by the ratio of the quantiles."""
        by = self.z / ConfidenceLevel(1).z
        low, high = stored.value - by * (stored.value - stored.low), stored.value + by * (stored.high - stored.value)
        return stored.model_copy(update={"low": max(low, 0.0) if stored.low >= 0 else low, "high": high})


class Requirement(NamedTuple):
    """A threshold that the gate declares."""

    name: str
    """Key of the threshold in task.yaml."""
    threshold: float
    """Of a name that ends in `_at_most` the upper end of an interval must not exceed it."""
    text: str

    def result(self, measured: str, advice: str = "", **found: Any) -> CheckResult:
        """Return what was found; it is missed unless `passed` is given."""
        named = {"name": self.name, "threshold": self.threshold, "requirement": self.text}
        return CheckResult(**named, measured=measured, advice=advice, **found)

    def check(
        self,
        found: Estimate,
        level: ConfidenceLevel,
        measured: str = "",
        *,
        chance: Callable[[int], float] | None = None,
        instead: str = "",
    ) -> CheckResult:
        """Return whether the worse end of an interval at `level` reaches the threshold; `measured` says it in words.

        `chance(n)` is how likely n rows more are to show it; left out, as the interval's width lets expect. `instead`
        says what would where they are not likely to.
        """
        at_most = self.name.endswith("_at_most")
        sign, end = (-1, found.high) if at_most else (1, found.low)
        kept = found if math.isfinite(found.high - found.low) else None  # JSON holds no infinite end
        result = partial(self.result, measured or level.format(found), estimate=kept)
        if not found.n:
            return result("no row was measured")
        if sign * end >= sign * self.threshold:
            return result(passed=True)
        if not math.isfinite(found.value + end):
            return result("the value is not a number: fix the scorer and evaluate again")
        by_width = partial(chance_of_interval, found, self.threshold, z=level.z, at_most=at_most)
        needed = fewest_rows(chance or by_width)
        if not needed.unlikely:
            advice = "so few rows cannot tell: more are needed"
            return result(advice, more_rows=needed.n_more, chance=needed.chance)
        unlikely = f"more test rows are unlikely to show it ({100 * needed.chance:.0f} %)"
        return result(instead or f"{unlikely}: more training rows or a better model may", chance=needed.chance)

    def check_share(
        self,
        n_right: int,
        n: int,
        level: ConfidenceLevel,
        *,
        n_rows: int | None = None,
        beside: tuple[int, int] = (0, 0),
    ) -> CheckResult:
        """Return whether the lower end of Wilson's interval reaches it; `n` of `n_rows` rows count, or all.

        `beside`: how many of how many other rows are right.
        """
        n_rows = n if n_rows is None else n_rows
        chance = partial(chance_to_show, n_right, n, self.threshold, level, n_rows, beside=beside)
        return self.check(wilson(n_right, n, confidence=level.confidence), level, chance=chance)


def chance_to_show(
    n_right: int,
    n: int,
    least: float,
    level: ConfidenceLevel,
    n_rows: int,
    n_more: int,
    *,
    beside: tuple[int, int] = (0, 0),
) -> float:
    """Return how likely `n_more` rows more, of which as many count as `n` of `n_rows` now, are to show a share."""
    n_new = n_more * n // max(1, n_rows)
    return chance_of_share(n_right, n, n_new, least, confidence=level.confidence, beside=beside)


class CheckInputs(NamedTuple):
    """What a check may look at."""

    candidate: Evaluation
    """The candidate, or a Router, on the rows that the thresholds are about."""
    level: ConfidenceLevel
    large: Evaluation | None = None
    """The large model; it may cover a sample of the rows."""
    part_rows: int = 1
    """Parts that occur fewer times are not checked."""
    beside: Evaluation | None = None
    """The candidate on rows that decide nothing."""


def _check_accuracy(minimum: float, inputs: CheckInputs) -> CheckResult:
    rows = inputs.candidate.rows
    requirement = Requirement("accuracy_at_least", minimum, f"accuracy at least {minimum:.3f}")
    others = inputs.beside.rows if inputs.beside else ()
    beside = sum(row.correct for row in others), len(others)
    return requirement.check_share(sum(row.correct for row in rows), len(rows), inputs.level, beside=beside)


def _check_metric(name: str, threshold: float, inputs: CheckInputs, *, at_most: bool = False) -> CheckResult:
    """Check the worse end of a metric in [0, 1], or of any with `at_most`; one that the task lacks fails."""
    candidate, level = inputs.candidate, inputs.level
    bound, text = ("at_most", f"at most {threshold:g}") if at_most else ("at_least", f"at least {threshold:.3f}")
    requirement = Requirement(f"{name}_{bound}", threshold, f"{name} {text}")
    if name not in candidate.measures:
        measured = f'{candidate.candidate} has no metric "{name}"{did_you_mean(name, candidate.measures)}'
        known = ", ".join(candidate.measures) or "none"
        return requirement.result(measured, f'metrics of task "{candidate.task}": {known}')
    stored = candidate.measures[name]
    wide = level.widen(stored)
    most = max_lower_bound(wide.n, level)
    ends = {"low": min(wide.low, most), "high": min(wide.high, max(1.0, stored.high))}
    found = wide.model_copy(update={"high": max(wide.high, 1 - most)} if at_most else ends)

    def chance(n_more: int) -> float:
        """Return how likely n rows more are to show it, which they must be enough for if all are right."""
        if max_lower_bound(wide.n + n_more, level) < (1 - threshold if at_most else threshold):
            return 0.0
        return chance_of_interval(wide, threshold, n_more, z=level.z, at_most=at_most)

    return requirement.check(found, level, chance=chance)


def max_lower_bound(n: int, level: ConfidenceLevel) -> float:
    """Return the lower end of Wilson's interval when all `n` rows are right: so few rows show nothing higher."""
    return n / (n + level.z**2)


def _check_each_part(minimum: float, inputs: CheckInputs) -> CheckResult:
    """Check the recall of every part that occurs at least `part_rows` times."""
    requirement = Requirement("each_part_at_least", minimum, f"recall of each part at least {minimum:.3f}")
    parts, part_rows = inputs.candidate.parts, inputs.part_rows
    rare = sorted((part for part in parts if part.n_gold < part_rows), key=lambda part: (part.n_gold, part.name))
    advice = [f"not checked, with fewer than {part_rows} rows: {_counted(rare)}"] if rare else []
    checked = [part for part in parts if part.n_gold >= part_rows]
    if not checked:
        advice = advice or ["a task without labels or fields has none: remove the threshold from the gate"]
        return requirement.result(f"no part has {part_rows} rows", *advice)
    level, n_rows = ConfidenceLevel(inputs.level.comparisons, len(checked)), len(inputs.candidate.rows)
    recalls = [(wilson(_n_right(part), part.n_gold, confidence=level.confidence), part) for part in checked]
    recalls.sort(key=lambda pair: (pair[0].low, pair[1].name))
    worst, part = recalls[0]
    failed = [(recall, part) for recall, part in recalls if recall.low < minimum]
    chances = [partial(chance_to_show, _n_right(one), one.n_gold, minimum, level, n_rows) for _, one in failed]
    measured = f'worst of {len(checked)} is "{part.name}": {level.format(worst)}'
    result = requirement.check(worst, level, measured, chance=lambda n: min(chance(n) for chance in chances))
    if short := [part for recall, part in failed if recall.value >= minimum]:
        advice.insert(0, f"not shown by the rows there are: {_counted(short)}")
    if weak := [f'"{part.name}" {recall.value:.3f}' for recall, part in failed if recall.value < minimum]:
        advice.insert(0, f"below the threshold: {_join(weak)}")
    return result.model_copy(update={"advice": "; ".join(advice)})


def _check_part(name: str, minimum: float, inputs: CheckInputs) -> CheckResult:
    """Check the recall of one part; an unknown name fails with the nearest known one."""
    requirement = Requirement(f"parts_at_least.{name}", minimum, f'recall of "{name}" at least {minimum:.3f}')
    candidate, known = inputs.candidate, {part.name: part for part in inputs.candidate.parts}
    if name not in known:
        measured = f'task "{candidate.task}" has no part "{name}"{did_you_mean(name, known)}'
        names = _join([f'"{part}"' for part in known]) or "none"
        return requirement.result(measured, f"its parts: {names}")
    part = known[name]
    return requirement.check_share(_n_right(part), part.n_gold, inputs.level, n_rows=len(candidate.rows))


def _n_right(part: PartCounts) -> int:
    """Return how often a part was found: one right under another gold answer can be so more often than it was there."""
    return min(part.n_right, part.n_gold)


def _counted(parts: Sequence[PartCounts]) -> str:
    return _join([f'"{part.name}" (n={part.n_gold})' for part in parts])


def _join(names: Sequence[str]) -> str:
    """Join the first MAX_NAMED names with commas and count the others."""
    more = [f"and {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    return ", ".join([*names[:MAX_NAMED], *more])


def _check_not_worse(margin: float, inputs: CheckInputs, *, scores: bool = False) -> CheckResult:
    """Check the difference in accuracy, or in mean graded score, to the large model on the rows that both answered."""
    candidate, level, large, *_ = inputs
    name, text = "not_worse_than_large_by", f"at most {margin:.3f} less accurate than the large model"
    if scores:
        name, text = f"score_{name}", f"score at most {margin:.3f} below the large model's"
    requirement = Requirement(name, -margin, text)
    if large is None:
        return requirement.result("the large model was not measured", _MEASURE_LARGE)
    small, big = candidate.by_key, large.by_key
    keys = sorted(small.keys() & big.keys())  # so that the order of rows changes nothing
    if not keys:
        return requirement.result(f"n=0 of {len(candidate.rows)} rows paired", _MEASURE_LARGE)
    if not scores:
        won, lost = (sum(a[key].correct > b[key].correct for key in keys) for a, b in ((small, big), (big, small)))
        found = intervals.paired_score_interval(won, lost, len(keys), confidence=level.confidence)
    else:
        ours, theirs = ([rows[key].score for key in keys] for rows in (small, big))
        if not all(0 <= score <= 1 for score in (*ours, *theirs)):
            advice = "fix the scorer, then evaluate both models again"
            return requirement.result("a score is not in [0, 1]", advice)
        found = intervals.paired_difference(ours, theirs, confidence=level.confidence)
        low = min(found.low, found.value + max_lower_bound(found.n, level) - 1)  # that of as many perfect rows
        found = found.model_copy(update={"low": low})
    return requirement.check(found, level, level.format(found, f" of {len(candidate.rows)} rows paired"))


def _check_latency(maximum: float, inputs: CheckInputs) -> CheckResult:
    """Check the upper end of the 95th percentile of the latency of requests asked alone, if there are any."""
    level = inputs.level
    requirement = Requirement("p95_ms_at_most", maximum, f"p95 latency at most {maximum:g} ms")
    latencies = inputs.candidate.probes_ms or [row.latency_ms for row in inputs.candidate.rows]
    found = intervals.quantile_interval(latencies, 0.95, confidence=level.confidence)
    measured = f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}] ms n={found.n}{level.note}"
    if found.n and found.value <= maximum and math.isinf(found.high):
        fewest = math.ceil(math.log((1 - level.confidence) / 2) / math.log(0.95))
        return requirement.result(measured, f"{found.n} requests show no upper end; ask at least {fewest}")
    return requirement.check(found, level, measured, instead=_SMALLER)


def _check_cost(maximum: float, inputs: CheckInputs) -> CheckResult:
    level, usd_per_1k = inputs.level, [1000 * row.cost_usd for row in inputs.candidate.rows]
    requirement = Requirement("cost_usd_per_1k_at_most", maximum, f"cost at most ${maximum:g} per 1,000")
    cost = intervals.mean_interval(usd_per_1k, confidence=level.confidence)
    measured = f"${cost.value:.4f} [{cost.low:.4f}, {cost.high:.4f}] per 1,000 n={cost.n}{level.note}"
    return requirement.check(cost, level, measured, instead=_SMALLER)


def _check_bill(maximum: float, inputs: CheckInputs) -> CheckResult | None:
    """Check that a plan costs at most this share of the large model's bill; None without one."""
    level, large = inputs.level, inputs.large
    if large is None or large.cost_usd_per_1k <= 0:
        return None
    requirement = Requirement("cost_at_most", maximum, f"at most {100 * maximum:g} % of the large model's cost")
    bill = share_of_bill(inputs.candidate, large, confidence=level.confidence)
    return requirement.check(bill, level, instead=_SMALLER) if bill else requirement.result("n=0", _MEASURE_LARGE)


def _check_share_small(minimum: float, inputs: CheckInputs) -> CheckResult:
    small, text = inputs.candidate.stays_small, f"share of requests that stay small at least {minimum:.3f}"
    return Requirement("share_small_at_least", minimum, text).check_share(sum(small), len(small), inputs.level)


CHECKS: dict[str, Callable[..., CheckResult | None]] = {
    "accuracy_at_least": _check_accuracy,
    "measures_at_least": _check_metric,
    "measures_at_most": partial(_check_metric, at_most=True),
    "each_part_at_least": _check_each_part,
    "parts_at_least": _check_part,
    "not_worse_than_large_by": _check_not_worse,
    "score_not_worse_than_large_by": partial(_check_not_worse, scores=True),
    "share_small_at_least": _check_share_small,
    "cost_at_most": _check_bill,
    "p95_ms_at_most": _check_latency,
    "cost_usd_per_1k_at_most": _check_cost,
}
"""All checks by field, in the order of their results. They take the threshold, after its name where it has one."""


def run_checks(
    thresholds: Gate | RoutedThresholds, inputs: CheckInputs, *, fields: Iterable[str] = CHECKS
) -> Iterator[CheckResult]:
    """Yield a result for each threshold that is declared in one of these fields."""
    for field in fields:
        declared = getattr(thresholds, field, None)
        each = declared.items() if isinstance(declared, dict) else [] if declared is None else [(declared,)]
        yield from filter(None, (CHECKS[field](*threshold, inputs) for threshold in each))


def _check_clean_rows(leaks: LeakReport, everything: Evaluation, inputs: CheckInputs) -> CheckResult:
    """Check that enough rows are judged that repeat no training row, and say how right the answers to copies are."""
    minimum, level = min_clean_rows(len(everything.rows)), inputs.level
    requirement = Requirement("clean_rows", minimum, f"at least {minimum} test rows that repeat no training row")
    copies = [row.correct for row in everything.rows if row.key in leaks.keys]
    clean = [row.correct for row in inputs.candidate.rows if row.key not in leaks.keys]
    on_copies, on_clean = (wilson(sum(one), len(one), confidence=level.confidence) for one in (copies, clean))
    measured = (
        f"{len(clean)} of {len(everything.rows)}, {len(copies)} left out; accuracy on copies "
        f"{on_copies} n={len(copies)}, on the others {on_clean} n={len(clean)}{level.note}"
    )
    if len(inputs.candidate.rows) == len(clean) >= minimum:  # no copy was judged
        return requirement.result(measured, passed=True)
    pairs = [f"{leak.test} is {leak.train}" for leak in leaks.leaks]
    rows = f"{leaks.n_leaked} test row{' repeats' if leaks.n_leaked == 1 else 's repeat'} a training row"
    advice = f"{rows}: {_join(pairs)}; remove those from the training rows, then  smallfirst run task.yaml"
    return requirement.result(measured, advice)
