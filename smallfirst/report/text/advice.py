"""Recommendations for the person who decides, and warnings about the figures."""

from __future__ import annotations

from collections.abc import Iterator

from smallfirst.data.quality.leaks import min_clean_rows
from smallfirst.pricing.money import format_usd
from smallfirst.report.data import ReportData
from smallfirst.report.economics import PathCost
from smallfirst.report.formats import accurate, capitalize_first, count, path_name, percent


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
