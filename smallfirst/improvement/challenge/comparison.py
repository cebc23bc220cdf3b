"""The rule by which a challenger beats the champion, declared before anything is measured.

On the same test rows, at level 1 - 0.05 / (k (k + 1)) for the k-th challenge of this champion (Tango's paired interval,
1998), the difference in accuracy is shown above 0, or it is shown above -MARGIN and the Router is shown to keep more
test rows small under the challenger's certificate. The levels of all challenges add up to 0.05, so looking at the same
test rows again and again makes no winner.
"""

from __future__ import annotations

from smallfirst.evaluation.evaluate import Evaluation
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, mcnemar, paired_score_interval
from smallfirst.stats.sequential import spent_level

MARGIN = 0.01
"""Accuracy, in [0, 1], that a challenger may lose if it keeps more of the requests small."""


class ChampionComparison(Record):
    """A challenger compared with the champion on the same test rows."""

    look: int
    """Number of the challenge of this champion, from 1."""
    level: float
    """Confidence level of both intervals, in (0, 1)."""
    difference: Estimate
    """Accuracy of the challenger minus that of the champion, in [-1, 1]."""
    only_challenger: int
    only_champion: int
    p_value: float
    """Exact two-sided McNemar, not corrected for the number of challenges."""
    kept: Estimate | None
    """Share of rows kept small under the challenger's certificate minus that under the champion's; None if one of the
    two Routers was not measured on them."""
    won: bool
    why: str


def compare_to_champion(
    challenger: Evaluation, champion: Evaluation, *, routed: tuple[Evaluation, Evaluation] | None, look: int
) -> ChampionComparison:
    """Compare the two on the rows that both answered; `routed` are the Routers over them, in this order."""
    level = 1 - spent_level(0.05, look)
    ours, theirs = _flags(challenger, "correct"), _flags(champion, "correct")
    difference, only_ours, only_theirs = _paired(ours, theirs, level)
    kept = _paired(_flags(routed[0], "certified"), _flags(routed[1], "certified"), level)[0] if routed else None
    won, why = _decided(difference, kept if kept and kept.n else None)
    return ChampionComparison(
        look=look,
        level=level,
        difference=difference,
        only_challenger=only_ours,
        only_champion=only_theirs,
        p_value=mcnemar(only_ours, only_theirs),
        kept=kept,
        won=won,
        why=f"{why}; {100 * level:.4g} % intervals, challenge {look} of this champion",
    )


def _decided(difference: Estimate, kept: Estimate | None) -> tuple[bool, str]:
    shown = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] n={difference.n}"
    if difference.n and difference.low > 0:
        return True, f"more accurate than the champion: {shown}"
    if not difference.n or difference.low < -MARGIN:
        return False, f"neither shown better than the champion nor at most {MARGIN:g} worse: {shown}"
    if kept is None:
        return False, f"at most {MARGIN:g} less accurate, {shown}, but what stays small was not measured for both"
    small = f"{kept.value:+.3f} [{kept.low:+.3f}, {kept.high:+.3f}] of requests stay small"
    if kept.low > 0:
        return True, f"at most {MARGIN:g} less accurate, {shown}, and more stays small: {small}"
    return False, f"not shown better, {shown}, nor that more stays small: {small}"


def _flags(evaluation: Evaluation, name: str) -> dict[str, bool]:
    return {key: bool(getattr(row, name)) for key, row in evaluation.by_key.items()}


def _paired(ours: dict[str, bool], theirs: dict[str, bool], level: float) -> tuple[Estimate, int, int]:
    both = ours.keys() & theirs.keys()
    only_ours = sum(ours[key] and not theirs[key] for key in both)
    only_theirs = sum(theirs[key] and not ours[key] for key in both)
    return paired_score_interval(only_ours, only_theirs, len(both), confidence=level), only_ours, only_theirs
