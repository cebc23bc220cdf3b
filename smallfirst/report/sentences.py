"""Sentences of the report: the verdict and how the paths compare, what to do, warnings, and what would change it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from smallfirst.data.quality.leaks import min_clean_rows
from smallfirst.evaluation.learning_curve import forecast
from smallfirst.pricing.money import format_usd
from smallfirst.project.candidate_registry import CANDIDATES, FINE_TUNED, all_candidates
from smallfirst.report.candidates import difference
from smallfirst.report.data import ReportData
from smallfirst.report.economics import PathCost, max_price_drop
from smallfirst.report.formats import (
    absolute_points,
    accurate,
    capitalize_first,
    count,
    path_name,
    percent,
    points,
    signed,
)


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


def comparisons(data: ReportData) -> tuple[str, ...]:
    """Say how what answers compares with the large model, and what the fine-tune loses to."""
    return (*_against_large(data), *_losses(data))


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


def recommendations(data: ReportData, paths: tuple[PathCost, ...]) -> tuple[str, ...]:
    """Return one to four things to do, most important first."""
    return (_go_live(data, paths), *_also(data))


def _go_live(data: ReportData, paths: tuple[PathCost, ...]) -> str:
    outcome, by_name = data.outcome, {path.candidate: path for path in paths}
    if outcome is None:
        return "Let it be decided: smallfirst calibrate task.yaml."
    if not outcome.goes_live:
        open_ = outcome.gate_line or outcome.labels_needed
        return outcome.to_do if open_ else f"{outcome.to_do}{_nearest(data)}"
    path, large = by_name.get(data.served or ""), by_name.get("large")
    if large is None or path is None:
        return f"{outcome.to_do} Its saving is unknown: the large model was not measured."
    saved = large.monthly_usd(data.requests_per_month) - path.monthly_usd(data.requests_per_month)
    if saved <= 0:
        return f"{outcome.to_do} It saves nothing at today's prices."
    n = count(data.requests_per_month)
    return f"{outcome.to_do} At {n} requests a month it saves about {format_usd(saved)} a month."


def _nearest(data: ReportData) -> str:
    """Say which requirement the nearest smaller path misses by most, and what would help."""
    verdict = data.verdict(data.focus.candidate)
    check = verdict.furthest_off if verdict else None
    if verdict is None or check is None:
        return ""
    advice = f": {check.advice.rstrip('.')}" if check.advice else ""
    return f" The nearest, “{path_name(verdict.candidate)}”, fails “{check.requirement}”{advice}."


def _also(data: ReportData) -> Iterator[str]:
    smallest, n = data.evaluation(data.smallest_passing), len(data.suspects)
    if smallest is not None and data.recommended not in (None, data.smallest_passing):
        yield (
            f"Consider “{path_name(smallest.candidate)}” (leave routing.small out): it meets the requirements as well, "
            f"right on {accurate(smallest.accuracy)} at {format_usd(smallest.cost_usd_per_1k)} per 1,000 requests."
        )
    if n:
        rows = "1 row whose given answer is" if n == 1 else f"{n:,} rows whose given answers are"
        yield (
            f"Look at {rows} probably wrong. To correct test or calibration labels judge every row of the split anew, "
            "not these alone: labels corrected only where models disagree flatter the models."
        )


def warnings(data: ReportData) -> Iterator[str]:
    """Yield what to know before trusting the figures; nothing if nothing speaks against them."""
    if len({(e.accuracy.n, e.dataset_fingerprint) for e in data.evaluations}) > 1:
        yield "The paths were not all measured on the same rows; compare them with care."
    if untested := [e.candidate for e in data.evaluations if e.split != "test"]:
        yield f"Not measured on test rows: {', '.join(untested)}."
    if data.leaks and (clean := data.leaks.n_test - data.leaks.n_leaked) < min_clean_rows(data.leaks.n_test):
        yield f"{leak_sentence(data)} Too few other rows are left to judge by: {clean:,}."
    for verdict in data.verdicts:
        if verdict.signed_by:
            yield (
                f"“{path_name(verdict.candidate)}” passed by a signed override, not by measurement: "
                f"{verdict.signed_by}, because “{verdict.because or 'no reason given'}”."
            )


def leak_sentence(data: ReportData) -> str:
    """Say how many test rows are also training rows, and the accuracy without them; empty if not looked for."""
    leaks = data.leaks
    if leaks is None:
        return ""
    if leaks.n_leaked == 0:
        return f"None of the {leaks.n_test:,} test rows is in the training rows."
    sentence = (
        f"{leaks.n_leaked:,} of {leaks.n_test:,} test rows ({percent(leaks.share)}) are also in the training rows; the "
        "gate judges the others."
    )
    if leaks.accuracy_with is None or leaks.accuracy_without is None:
        return sentence
    return (
        f"{sentence} “{capitalize_first(path_name(leaks.candidate))}” is right on {accurate(leaks.accuracy_with)} with "
        f"them and on {accurate(leaks.accuracy_without)} without."
    )


def outlook(data: ReportData, paths: tuple[PathCost, ...]) -> tuple[str, ...]:
    """Return what would change the verdict: another threshold, more rows, another price, other requests."""
    n = max(evaluation.accuracy.n for evaluation in data.evaluations)
    return (
        *_accuracy_threshold(data),
        *_more_rows(data),
        *_prices(data, paths),
        f"All figures rest on {n:,} test rows. If live requests differ from them (new labels, another language, longer "
        "texts), measure again.",
    )


def _accuracy_threshold(data: ReportData) -> Iterator[str]:
    verdict = data.verdict(data.focus.candidate)
    for check in verdict.checks if verdict else ():
        if check.name != "accuracy_at_least" or check.estimate is None or check.threshold is None:
            continue
        name, low, now = path_name(data.focus.candidate), f"{check.estimate.low:.3f}", f"{check.threshold:.3f}"
        if check.passed:
            yield f"Up to an accuracy threshold of {low} (now {now}) “{name}” would still pass."
        else:
            yield (
                f"With the accuracy threshold at {low} or lower (now {now}) “{name}” would pass. "
                "Only the people who bear the errors can say whether that is good enough."
            )


def _more_rows(data: ReportData) -> Iterator[str]:
    candidate, accuracy = data.focus.candidate, data.focus.accuracy
    name, curve = path_name(candidate), [point for point in data.learning_curve if point.candidate == candidate]
    if len(curve) > 1:
        before, last = sorted(curve, key=lambda point: point.n_rows)[-2:]
        found = forecast(curve, 2 * last.n_rows)
        yield (
            f"From {before.n_rows:,} to {last.n_rows:,} training rows “{name}” changed by "
            f"{signed(last.accuracy.value - before.accuracy.value)} points, to {accurate(last.accuracy)}. "
            f"{'Forecast' if found.accuracy else 'No forecast for twice the rows'}: {found.why}."
        )
    yield (
        f"The accuracy of “{name}” is known to about ±{(accuracy.high - accuracy.low) * 50:.1f} points from "
        f"{accuracy.n:,} test rows; {4 * accuracy.n:,} would halve that."
    )


def _prices(data: ReportData, paths: tuple[PathCost, ...]) -> Iterator[str]:
    by_name = {path.candidate: path for path in paths}
    large, path = by_name.get("large"), by_name.get(data.served or "")
    if large is None or path is None or path is large:
        return
    if (drop := max_price_drop(path, large)) is None:
        yield (
            f"“{path_name(path.candidate)}” costs {format_usd(path.cost_usd_per_1k)} per 1,000 requests and the large "
            f"path {format_usd(large.cost_usd_per_1k)}: it would have to become cheaper to run, or the large one more "
            "expensive."
        )
        return
    yield (
        f"The saving is gone if the large model's price falls by {percent(drop)} "
        f"(to {format_usd((1 - drop) * large.cost_usd_per_1k)} per 1,000 requests)."
    )
