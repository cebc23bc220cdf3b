"""Bars on how right the answers are: accuracy, and any figure of the task by its name.

A bootstrap over rows that are all right has no width, however few they are. So no figure counts as shown beyond what
that many perfect rows could show, n / (n + z²) (Wilson 1927); the price is that a bar of 0.99 takes 381 rows.
"""

from __future__ import annotations

import math

from smallfirst.errors import did_you_mean
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import CheckResult, ConfidenceLevel, check_minimum, not_measured, rows_for_width
from smallfirst.stats import intervals as stats
from smallfirst.stats.intervals import Estimate
from smallfirst.stats.sample_size import rows_to_show_share

WORDS = {"macro_f1": "macro-F1"}


def check_accuracy(bar: float, candidate: Evaluation, level: ConfidenceLevel) -> CheckResult:
    """The line of the accuracy bar: Wilson's interval over the rows."""
    found = stats.wilson(sum(row.correct for row in candidate.rows), len(candidate.rows), confidence=level.confidence)
    text = (f"accuracy at least {bar:.3f}", level.show(found))
    return check_minimum(bar, found, text, lambda: rows_to_show_share(found.value, bar, confidence=level.confidence))


def check_metric_minimum(name: str, bar: float, candidate: Evaluation, level: ConfidenceLevel) -> CheckResult:
    """The line of a floor under one of the task's own figures; a name the task has not fails and says which it has."""
    text = f"{WORDS.get(name, name)} at least {bar:.3f}"
    if name not in candidate.measures:
        return _no_such_measure(text, name, candidate)
    return floor(text, bar, candidate.measures[name], level)


def check_metric_maximum(name: str, bar: float, candidate: Evaluation, level: ConfidenceLevel) -> CheckResult:
    """The line of a ceiling over one of the task's own figures, such as `invented` or `mean_cost`: the upper end."""
    text = f"{WORDS.get(name, name)} at most {bar:g}"
    if name not in candidate.measures:
        return _no_such_measure(text, name, candidate)
    wide = level.widened(candidate.measures[name])
    found = wide.model_copy(update={"high": max(wide.high, 1 - max_lower_bound(wide.n, level))})
    line = check_minimum(
        -bar, _turned(found), (text, level.show(found)), lambda: _rows(_turned(wide), -bar, level, 1 - bar)
    )
    return line.model_copy(update={"found": found})


def floor(text: str, bar: float, stored: Estimate, level: ConfidenceLevel) -> CheckResult:
    """The line of a floor under a figure in [0, 1] whose interval is stored at 95 %."""
    wide = level.widened(stored)
    ends = {"low": min(wide.low, max_lower_bound(wide.n, level)), "high": min(wide.high, max(1.0, stored.high))}
    found = wide.model_copy(update=ends)
    return check_minimum(bar, found, (text, level.show(found)), lambda: _rows(wide, bar, level, bar))


def max_lower_bound(n: int, level: ConfidenceLevel) -> float:
    """The lower end of Wilson's interval when all of `n` rows are right: nothing higher is shown by so few."""
    return n / (n + level.z**2)


def cap_lower_bound(found: Estimate, level: ConfidenceLevel) -> Estimate:
    """A mean or ratio with its lower end as far below the value as that of so many perfect rows is below 1, or farther.

    Rows that are all alike have no spread, however few they are.
    """
    return found.model_copy(update={"low": min(found.low, found.value + max_lower_bound(found.n, level) - 1)})


def min_perfect_rows(share: float, level: ConfidenceLevel) -> int | None:
    """Fewest rows, all right, that show at least `share`; None if none do."""
    return math.ceil(share * level.z**2 / (1 - share) - 1e-9) if share < 1 else None


def _turned(found: Estimate) -> Estimate:
    """The figure with its sign changed: a ceiling is a floor seen from the other side."""
    return Estimate(value=-found.value, low=-found.high, high=-found.low, n=found.n)


def _rows(wide: Estimate, bar: float, level: ConfidenceLevel, share: float) -> int | None:
    """About the rows that show the bar: narrow enough an interval, and so many that perfect ones could show `share`."""
    by_width, perfect = rows_for_width(wide, bar), min_perfect_rows(share, level)
    return None if by_width is None or perfect is None else max(by_width, perfect)


def _no_such_measure(text: str, name: str, candidate: Evaluation) -> CheckResult:
    if name == "accuracy":
        return not_measured(text, "accuracy is no figure of the task", "it has a bar of its own: accuracy_at_least")
    there = ", ".join(candidate.measures) or "none"
    return not_measured(
        text,
        f'{candidate.candidate} has no figure "{name}"{did_you_mean(name, candidate.measures)}',
        f'figures of task "{candidate.task}": {there}',
    )
