"""The verdict in plain words: what answers, how good it is, what it costs, and where the small model loses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from smallfirst.evaluation.results import Evaluation
from smallfirst.pricing.money import format_usd
from smallfirst.project.candidate_registry import CANDIDATES, FINE_TUNED, all_candidates
from smallfirst.report.candidates import difference
from smallfirst.report.data import ReportData
from smallfirst.report.formats import absolute_points, accurate, capitalize_first, path_name, percent, points


class Headline(NamedTuple):
    """What to do, in one sentence, and the figures that it rests on."""

    heading: str
    sentence: str


def headline(data: ReportData) -> Headline:
    """Return what the run decided, and what shows it."""
    if data.outcome is None:
        passing = CANDIDATES.get(data.smallest_passing) if data.smallest_passing in CANDIDATES.names() else None
        found = (passing.headline or f"{passing.role} is good enough") if passing else ""
        by_gate = f": {found[:1].lower()}{found[1:].rstrip('.')} by the gate" if found else ""
        return Headline(f"Nothing is decided yet{by_gate}.", "smallfirst calibrate task.yaml   decides it.")
    return Headline(data.outcome.heading, capitalize_first(data.outcome.proof))


def _cost_against_large(data: ReportData, evaluation: Evaluation) -> str:
    cost, large = evaluation.cost_usd_per_1k, data.evaluation("large")
    text = f"{format_usd(cost)} per 1,000 requests"
    if large is None:
        return text
    large_cost = large.cost_usd_per_1k
    if cost <= 0 or large_cost <= 0:
        return f"{text} against {format_usd(large_cost)} on the large path"
    ratio = large_cost / cost
    if ratio >= 1.05:
        times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
        return f"{text} instead of {format_usd(large_cost)}: {times} times cheaper"
    if cost / large_cost >= 1.05:
        return f"{text}, more than the large path's {format_usd(large_cost)}"
    return f"{text}, about what the large path costs ({format_usd(large_cost)})"


def comparisons(data: ReportData) -> tuple[str, ...]:
    """Say how what answers compares with the large model and with the other ways, and what the fine-tune loses to."""
    return (*_against_large(data), *_alone(data), *_routing(data), *_losses(data))


def _alone(data: ReportData) -> Iterator[str]:
    alone = data.evaluation(data.recommended)
    if alone is not None and alone.candidate != data.served:
        name, cost = path_name(alone.candidate), format_usd(alone.cost_usd_per_1k)
        yield f"Alone, “{name}” is right on {accurate(alone.accuracy)}, at {cost} per 1,000 requests."


def _losses(data: ReportData) -> Iterator[str]:
    if data.focus.candidate != FINE_TUNED:
        return  # `lighter_note` compares it
    rivals = {"large": "the large model"} | {c.name: c.role for c in all_candidates() if c.name != FINE_TUNED}
    for rival, name in rivals.items():
        comparison = difference(data, FINE_TUNED, rival)
        if comparison is not None and (gap := comparison.difference).high < 0:
            yield (
                f"The fine-tuned small model loses to {name}: it is right less often by {absolute_points(gap)} "
                f"on the same {gap.n:,} requests."
            )


def _against_large(data: ReportData) -> Iterator[str]:
    comparison = difference(data, data.served, "large") if data.served not in (None, "large") else None
    if comparison is None:
        return
    gap, name = comparison.difference, capitalize_first(path_name(comparison.first))
    if gap.low <= 0 <= gap.high:
        yield f"No difference from the large model in right answers was found ({points(gap)})."
    elif data.served != FINE_TUNED or gap.low > 0:  # else `_losses` says it
        more = "more" if gap.low > 0 else "less"
        yield f"“{name}” is right {more} often than the large model, by {absolute_points(gap)}."


def _routing(data: ReportData) -> Iterator[str]:
    routed, verdict = data.evaluation("routed"), data.verdict("routed")
    certified = data.certificate is not None and data.certificate.issued
    if routed is None or data.served == "routed" or not certified:
        return
    if routed.share("large"):
        small = percent(1 - routed.share("large"))
        where = f"Routed, {small} of requests stay small and the rest goes to the large model"
    elif not all(routed.stays_small):
        small = percent(sum(routed.stays_small) / max(1, len(routed.rows)))
        where = f"Routed, {small} of requests stay small and the rest is left to a person or refused as out of scope"
    else:
        covered = percent(sum(row.certified for row in routed.rows) / max(1, len(routed.rows)))
        where = f"Routed, every request stays small, {covered} of them covered by the certificate"
    gate = "" if verdict is None or verdict.passed else " It does not meet the requirements."
    yield f"{where}: right on {accurate(routed.accuracy)}, {_cost_against_large(data, routed)}.{gate}"


def lighter_note(data: ReportData) -> Headline | None:
    """Say what the fine-tune adds where a candidate that is no language model goes live; None elsewhere."""
    chosen = data.recommended
    if not (data.outcome and data.outcome.goes_live) or chosen is None or CANDIDATES.get(chosen).is_language_model:
        return None
    found = CANDIDATES.get(chosen)
    heading = (found.headline or f"{found.role} is enough here").rstrip(".")
    said = f"{capitalize_first(found.role)} answers; no language model is needed for it."
    if (comparison := difference(data, FINE_TUNED, chosen)) is not None:
        gap = comparison.difference
        how = "better still, by" if gap.low > 0 else "worse, by" if gap.high < 0 else "not measurably different:"
        said += f" The fine-tuned small model is {how} {points(gap)} on the same {gap.n:,} rows."
    return Headline(capitalize_first(heading), said)
