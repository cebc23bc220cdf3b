"""What would change the verdict: another threshold, more rows, another price, other traffic, other requests."""

from __future__ import annotations

from smallfirst.evaluation.learning_curve import forecast
from smallfirst.pricing.money import format_usd
from smallfirst.report.data import ReportData
from smallfirst.report.economics import HOURS_PER_MONTH, PathCost, break_even, max_price_drop
from smallfirst.report.formats import accurate, capitalize_first, count, path_name, percent, signed
from smallfirst.report.text.guarantee import guarantee_sentence, guarantee_state


def outlook(data: ReportData, paths: tuple[PathCost, ...]) -> tuple[str, ...]:
    """Return sentences on what would change the verdict, the gate's own advice first."""
    return (
        *_failed_checks(data),
        *_accuracy_threshold(data),
        *_training_rows(data),
        *_test_rows(data),
        *_guarantee(data),
        *_prices(data, paths),
        *_traffic(data),
        _other_requests(data),
    )


def _failed_checks(data: ReportData) -> list[str]:
    sentences = []
    for verdict in data.verdicts:
        if failed := verdict.failed_checks:
            requirements = " and ".join(f"“{check.requirement}”" for check in failed)
            advice = dict.fromkeys(capitalize_first(check.advice).rstrip(".") + "." for check in failed if check.advice)
            name = capitalize_first(path_name(verdict.candidate))
            sentences.append(f"“{name}” would be enough if it met {requirements}. {' '.join(advice)}".strip())
    return sentences


def _accuracy_threshold(data: ReportData) -> list[str]:
    sentences = []
    checks = (
        (verdict.candidate, check)
        for verdict in data.verdicts
        if verdict.candidate == data.focus.candidate
        for check in verdict.checks
        if check.name == "accuracy_at_least"
    )
    for candidate, check in checks:
        if check.estimate is None or check.threshold is None:
            continue
        name, low, now = path_name(candidate), f"{check.estimate.low:.3f}", f"{check.threshold:.3f}"
        if check.passed:
            sentences.append(f"Up to an accuracy threshold of {low} (now {now}) “{name}” would still pass.")
        else:
            sentences.append(
                f"With the accuracy threshold at {low} or lower (now {now}) “{name}” would pass. "
                "Only the people who bear the errors can say whether that is good enough."
            )
    return sentences


def _training_rows(data: ReportData) -> list[str]:
    name = data.focus.candidate
    curve = sorted((p for p in data.learning_curve if p.candidate == name), key=lambda p: p.n_rows)
    if len(curve) < 2:
        return []
    before, last = curve[-2:]
    found = forecast(curve, 2 * last.n_rows)
    return [
        f"From {before.n_rows:,} to {last.n_rows:,} training rows “{path_name(name)}” changed by "
        f"{signed(last.accuracy.value - before.accuracy.value)} points, to {accurate(last.accuracy)}. "
        f"{'Forecast' if found.accuracy else 'No forecast for twice the rows'}: {found.why}."
    ]


def _test_rows(data: ReportData) -> list[str]:
    accuracy = data.focus.accuracy
    half = (accuracy.high - accuracy.low) / 2
    return [
        f"The accuracy of “{path_name(data.focus.candidate)}” is known to about ±{half * 100:.1f} points from "
        f"{accuracy.n:,} test rows; {4 * accuracy.n:,} would halve that."
    ]


def _guarantee(data: ReportData) -> list[str]:
    if data.certificate is None:
        return ["No certificate was made, so no share of answers is guaranteed to be right."]
    if not data.certificate.issued:
        return [data.certificate.why]
    if guarantee_state(data) == "broken":
        return [f"{guarantee_sentence(data)} Calibrate again with more rows before you trust the routed path."]
    return []


def _prices(data: ReportData, paths: tuple[PathCost, ...]) -> list[str]:
    by_name = {path.candidate: path for path in paths}
    large, path = by_name.get("large"), by_name.get(data.served or "")
    if large is None or path is None or path is large:
        return []
    drop = max_price_drop(path, large)
    if drop is None:
        return [
            f"“{path_name(path.candidate)}” costs {format_usd(path.cost_usd_per_1k)} per 1,000 requests and the large "
            f"path {format_usd(large.cost_usd_per_1k)}: it would have to become cheaper to run, or the large one more "
            "expensive."
        ]
    sentences = [
        f"The saving is gone if the large model's price falls by {percent(drop)} "
        f"(to {format_usd(large.after_drop(drop))} per 1,000 requests)."
    ]
    if needed := break_even(path, large):
        sentences.append(f"Below {count(needed)} requests in all, training is not paid back.")
    return sentences


def _traffic(data: ReportData) -> list[str]:
    chosen = data.evaluation(data.recommended)
    if chosen is None or chosen.candidate == "large" or not chosen.requests_per_s:
        return []
    busy = data.machine.utilisation
    capacity = round(chosen.requests_per_s * HOURS_PER_MONTH * 3600 * busy)
    sentence = (
        f"One machine, busy {percent(busy, digits=0)} of the time, answers about {count(capacity)} requests a month"
    )
    if capacity < data.requests_per_month:
        return [f"{sentence}, fewer than the {count(data.requests_per_month)} assumed: it takes more than one."]
    times = capacity / data.requests_per_month
    return [f"{sentence}, {times:,.1f} times the traffic assumed; beyond that it takes a second one."]


def _other_requests(data: ReportData) -> str:
    n = max(e.accuracy.n for e in data.evaluations)
    return (
        f"All figures rest on {n:,} test rows. If live requests differ from them (new labels, another language, longer "
        "texts), measure again."
    )
