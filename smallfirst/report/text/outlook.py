"""What would change the verdict: another threshold, more rows, another price, other traffic, other requests."""

from __future__ import annotations

from collections.abc import Iterator

from smallfirst.evaluation.learning_curve import forecast
from smallfirst.pricing.money import format_usd
from smallfirst.report.data import ReportData
from smallfirst.report.economics import HOURS_PER_MONTH, PathCost, break_even, max_price_drop
from smallfirst.report.formats import accurate, capitalize_first, count, path_name, percent, signed


def outlook(data: ReportData, paths: tuple[PathCost, ...]) -> tuple[str, ...]:
    """Return sentences on what would change the verdict, the gate's own advice first."""
    n = max(evaluation.accuracy.n for evaluation in data.evaluations)
    return (
        *_failed_checks(data),
        *_accuracy_threshold(data),
        *_rows(data),
        *_guarantee(data),
        *_prices(data, paths),
        *_traffic(data),
        f"All figures rest on {n:,} test rows. If live requests differ from them (new labels, another language, longer "
        "texts), measure again.",
    )


def _failed_checks(data: ReportData) -> Iterator[str]:
    for verdict in data.verdicts:
        if failed := verdict.failed_checks:
            requirements = " and ".join(f"“{check.requirement}”" for check in failed)
            advice = dict.fromkeys(capitalize_first(check.advice).rstrip(".") + "." for check in failed if check.advice)
            name = capitalize_first(path_name(verdict.candidate))
            yield f"“{name}” would be enough if it met {requirements}. {' '.join(advice)}".strip()


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


def _rows(data: ReportData) -> Iterator[str]:
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


def _guarantee(data: ReportData) -> Iterator[str]:
    if data.certificate is None:
        yield "No certificate was made, so no share of answers is guaranteed to be right."
    elif not data.certificate.issued:
        yield data.certificate.why


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
        f"(to {format_usd(large.after_drop(drop))} per 1,000 requests)."
    )
    if needed := break_even(path, large):
        yield f"Below {count(needed)} requests in all, training is not paid back."


def _traffic(data: ReportData) -> Iterator[str]:
    chosen, assumed, busy = data.evaluation(data.recommended), data.requests_per_month, data.machine.utilisation
    if chosen is None or chosen.candidate == "large" or not chosen.requests_per_s:
        return
    capacity = round(chosen.requests_per_s * HOURS_PER_MONTH * 3600 * busy)
    then = f"{capacity / assumed:,.1f} times the traffic assumed; beyond that it takes a second one."
    if capacity < assumed:
        then = f"fewer than the {count(assumed)} assumed: it takes more than one."
    share = percent(busy, digits=0)
    yield f"One machine, busy {share} of the time, answers about {count(capacity)} requests a month, {then}"
