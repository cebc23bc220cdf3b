"""Bars on single labels or fields: a good mean can hide a label that is never found.

Looking at many parts at once widens each interval (Bonferroni over the parts that have rows enough), so 77 labels of
40 rows each can show a floor of 0.77 at most. Parts below `part_rows` are not held against the bar, but named.
"""

from __future__ import annotations

from collections.abc import Sequence

from smallfirst.errors import did_you_mean
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import (
    MAX_ADVISED_ROWS,
    CheckResult,
    ConfidenceLevel,
    check_minimum,
    not_measured,
    round_up_to_two_digits,
)
from smallfirst.gate.metrics import min_perfect_rows
from smallfirst.stats import intervals as stats
from smallfirst.stats.intervals import Estimate
from smallfirst.stats.sample_size import rows_to_show_share
from smallfirst.tasks.task import PartCounts

NAMED = 5
"""So many parts are named in a line; the others are counted."""


def check_each_part(bar: float, candidate: Evaluation, level: ConfidenceLevel, *, part_rows: int) -> CheckResult:
    """The line of the recall floor under every part that was there at least `part_rows` times."""
    text = f"recall of each part at least {bar:.3f}"
    if not candidate.parts:
        return _no_parts(text, candidate)
    thin = [part for part in candidate.parts if part.n_gold < part_rows]
    checked = [part for part in candidate.parts if part.n_gold >= part_rows]
    together = level.of_parts(len(checked))
    unseen = _unseen(thin, part_rows, min_perfect_rows(bar, together))
    if not checked:
        return not_measured(text, f"no part has {part_rows} rows", unseen)
    found = sorted(((_recall(part, together), part) for part in checked), key=lambda pair: (pair[0].low, pair[1].name))
    missed = [(recall, part) for recall, part in found if recall.low < bar]
    worst, where = found[0]
    return CheckResult(
        bar=text,
        measured=f'worst of {len(checked)} is "{where.name}": {together.show(worst)}',
        passed=not missed,
        advice="; ".join(filter(None, (*_missed(missed, bar, together), unseen))),
        found=worst,
    )


def check_named_part(name: str, bar: float, candidate: Evaluation, level: ConfidenceLevel) -> CheckResult:
    """The line of the recall floor under one part; a name that is none fails and says what is near."""
    text = f'recall of "{name}" at least {bar:.3f}'
    if not candidate.parts:
        return _no_parts(text, candidate)
    there = {part.name: part for part in candidate.parts}
    if name not in there:
        names = ", ".join(_some([f'"{part}"' for part in there]))
        return not_measured(
            text,
            f'task "{candidate.task}" has no part "{name}"{did_you_mean(name, there)}',
            f"its parts: {names}",
        )
    part = there[name]
    found = _recall(part, level)
    return check_minimum(bar, found, (text, level.show(found)), lambda: _rows_for(part, bar, level))


def _recall(part: PartCounts, level: ConfidenceLevel) -> Estimate:
    return stats.wilson(min(part.n_right, part.n_gold), part.n_gold, confidence=level.confidence)


def _rows_for(part: PartCounts, bar: float, level: ConfidenceLevel) -> int | None:
    share = min(part.n_right, part.n_gold) / max(1, part.n_gold)
    return rows_to_show_share(share, bar, confidence=level.confidence)


def _missed(missed: Sequence[tuple[Estimate, PartCounts]], bar: float, level: ConfidenceLevel) -> list[str]:
    """What to do about the parts that miss the bar: those that are too weak, and those with too few rows to tell."""
    weak = [f'"{part.name}" {recall.value:.3f}' for recall, part in missed if recall.value < bar]
    short = [_more(part, _rows_for(part, bar, level)) for recall, part in missed if recall.value >= bar]
    said = []
    if weak:
        said.append(f"below the bar, where only a better model would help: {', '.join(_some(weak))}")
    if short:
        said.append(f"cannot be shown with the rows there are: {', '.join(_some(short))}")
    return said


def _unseen(thin: Sequence[PartCounts], part_rows: int, perfect: int | None) -> str:
    """The parts that have too few rows to be held against the bar, and how many to label."""
    names = [_more(part, max(part_rows, perfect or 0)) for part in sorted(thin, key=lambda p: (p.n_gold, p.name))]
    return f"not looked at, under {part_rows} rows, cannot be shown: {', '.join(_some(names))}" if names else ""


def _more(part: PartCounts, needed: int | None) -> str:
    if needed is None or needed > MAX_ADVISED_ROWS:
        return f'"{part.name}" (n={part.n_gold}, too close to the bar for any number)'
    return f'"{part.name}" (n={part.n_gold}, label about {round_up_to_two_digits(needed - part.n_gold)} more)'


def _some(names: Sequence[str]) -> list[str]:
    more = len(names) - NAMED
    return [*names[:NAMED], f"and {more} more"] if more > 0 else list(names)


def _no_parts(text: str, candidate: Evaluation) -> CheckResult:
    return not_measured(
        text,
        f'task "{candidate.task}" has no labels or fields to look at',
        "take the bar out of the gate, or measure a task that has parts",
    )
