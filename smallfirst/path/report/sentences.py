"""Sentences of the report that take a decision: what to do, warnings, and what would change the verdict."""

from __future__ import annotations

from collections.abc import Iterator

from smallfirst.data.copies import min_clean_rows
from smallfirst.measuring.learning_curve import forecast
from smallfirst.models.pricing.charge import format_usd
from smallfirst.path.report.data import ReportData
from smallfirst.path.report.economics import PathCost
from smallfirst.path.report.formats import accurate, count, path_name, percent, points, signed
from smallfirst.path.report.measures import difference

UNDECIDED = "Nothing is decided yet."


def recommendations(data: ReportData, paths: tuple[PathCost, ...]) -> Iterator[str]:
    """Yield one to three things to do, most important first."""
    outcome, smallest = data.outcome, data.evaluation(data.smallest_passing)
    if outcome is None:
        yield "Let it be decided: smallfirst calibrate task.yaml."
    elif outcome.goes_live:
        yield f"{outcome.to_do} {_saving(data, paths)}"
    else:
        yield outcome.to_do + ("" if outcome.gate_line or outcome.labels_needed else _nearest(data))
    if smallest is not None and data.recommended not in (None, data.smallest_passing):
        yield (
            f"Consider “{path_name(smallest.candidate)}” (leave routing.small out): it meets the requirements as well, "
            f"right on {accurate(smallest.accuracy)} at {format_usd(smallest.cost_usd_per_1k)} per 1,000 requests."
        )
    if n := len(data.suspects):
        yield (
            f"Look at the {n:,} rows whose given answers are probably wrong. To correct test or calibration labels "
            "judge every row of the split anew: labels corrected only where models disagree flatter the models."
        )


def _saving(data: ReportData, paths: tuple[PathCost, ...]) -> str:
    by_name = {path.candidate: path for path in paths}
    path, large = by_name.get(data.served or ""), by_name.get("large")
    if large is None or path is None:
        return "Its saving is unknown: the large model was not measured."
    saved = large.monthly_usd(data.requests_per_month) - path.monthly_usd(data.requests_per_month)
    if saved <= 0:
        return "It saves nothing at today's prices."
    return f"At {count(data.requests_per_month)} requests a month it saves about {format_usd(saved)} a month."


def _nearest(data: ReportData) -> str:
    """Say which requirement the nearest smaller path misses by most, and what would help."""
    verdict = data.verdict(data.focus.candidate)
    check = verdict.furthest_off if verdict else None
    if verdict is None or check is None:
        return ""
    advice = f": {check.advice.rstrip('.')}" if check.advice else ""
    return f" The nearest, “{path_name(verdict.candidate)}”, fails “{check.requirement}”{advice}."


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
    share = percent(leaks.n_leaked / max(1, leaks.n_test))
    sentence = (
        f"{leaks.n_leaked:,} of {leaks.n_test:,} test rows ({share}) are also in the training rows; the gate judges "
        "the others."
    )
    if leaks.accuracy_with is None or leaks.accuracy_without is None:
        return sentence
    return (
        f"{sentence} “{path_name(leaks.candidate)}” is right on {accurate(leaks.accuracy_with)} with them and on "
        f"{accurate(leaks.accuracy_without)} without."
    )


def outlook(data: ReportData) -> Iterator[str]:
    """Yield what would change the verdict: another threshold, more rows, other requests."""
    name, accuracy, verdict = path_name(data.focus.candidate), data.focus.accuracy, data.verdict(data.focus.candidate)
    for check in verdict.checks if verdict else ():
        if check.name == "accuracy_at_least" and check.estimate is not None:
            would, low = "would still pass" if check.passed else "would pass", f"{check.estimate.low:.3f}"
            yield f"Up to an accuracy threshold of {low} (now {check.threshold:.3f}) “{name}” {would}."
    curve = sorted((p for p in data.learning_curve if p.candidate == data.focus.candidate), key=lambda p: p.n_rows)
    if len(curve) > 1:
        before, last = curve[-2:]
        found = forecast(curve, 2 * last.n_rows)
        yield (
            f"From {before.n_rows:,} to {last.n_rows:,} training rows “{name}” changed by "
            f"{signed(last.accuracy.value - before.accuracy.value)} points, to {accurate(last.accuracy)}. "
            f"{'Forecast' if found.accuracy else 'No forecast for twice the rows'}: {found.why}."
        )
    yield (
        f"The accuracy of “{name}” is known to about ±{(accuracy.high - accuracy.low) * 50:.1f} points from "
        f"{accuracy.n:,} test rows; {4 * accuracy.n:,} would halve that. If live requests differ from them (new "
        "labels, another language, longer texts), measure again."
    )


def against_large(data: ReportData) -> str:
    """Say how what answers compares with the large model; empty where one of them was not measured."""
    comparison = difference(data, data.served, "large")
    if comparison is None:
        return ""
    gap = comparison.difference
    if gap.low <= 0 <= gap.high:
        return f"No difference from the large model in right answers was found ({points(gap)})."
    more = "more" if gap.low > 0 else "less"
    return f"“{path_name(comparison.first)}” is right {more} often than the large model, by {points(gap)}."
