"""Recommendations for the person who decides, and warnings about the figures."""

from __future__ import annotations

from collections.abc import Iterator

from smallfirst.data.quality.leaks import min_clean_rows
from smallfirst.pricing.money import format_usd
from smallfirst.report.data import ReportData
from smallfirst.report.economics import PathCost
from smallfirst.report.formats import accurate, capitalize_first, count, path_name, percent
from smallfirst.routing.certificate.guarantee_check import check_guarantee


def recommendations(data: ReportData, paths: tuple[PathCost, ...]) -> tuple[str, ...]:
    """Return one to four things to do, most important first."""
    return (_go_live(data, paths), *_also(data))


def _go_live(data: ReportData, paths: tuple[PathCost, ...]) -> str:
    by_name = {path.candidate: path for path in paths}
    path, large = by_name.get(data.served or ""), by_name.get("large")
    if data.decided is not None and (needed := data.decided.labels_needed) is not None:
        until = "let the large model answer" if large else "nothing of this goes live"
        price = f", about {format_usd(needed.usd)} by {needed.priced_by}" if needed.usd is not None else ""
        return f"Label {needed.in_words}{price}, and run it again. Until then {until}."
    if path is None or path is large:
        keep = "Keep sending every request to the large model." if large else "Do not put any of them live."
        return f"{keep}{_nearest(data)}"
    name = path_name(data.recommended or "")
    if data.certificate and not data.certificate.issued:
        first = (
            f"Let the large model answer, with “{name}” in shadow"
            if large
            else f"Serve “{name}” for a trial alone (--uncertified)"
        )
        missing = data.certificate.labels_missing
        rows = f"about {missing:,} more calibration rows" if missing else "why it was refused stands below"
        return f"{first}, until a certificate is issued ({rows})."
    if large is None:
        return f"Put “{name}” live. Its saving is unknown: the large model was not measured."
    live = f"Put “{name}” live"
    if path.candidate == "routed":
        live += ", with the large model for what it is not sure of"
    saved = large.monthly_usd(data.requests_per_month) - path.monthly_usd(data.requests_per_month)
    if saved <= 0:
        return "Keep sending every request to the large model: the smaller path saves nothing at today's prices."
    n_requests = count(data.requests_per_month)
    return f"{live}. At {n_requests} requests a month it saves about {format_usd(saved)} a month."


def _nearest(data: ReportData) -> str:
    """Say which requirement the nearest smaller path misses by most, and what would help."""
    verdict = data.verdict(data.focus.candidate)
    if verdict is None or not verdict.failed_checks:
        return ""
    check = max(verdict.failed_checks, key=lambda check: check.shortfall)
    advice = f": {check.advice.rstrip('.')}" if check.advice else ""
    return f" The nearest, “{path_name(verdict.candidate)}”, fails “{check.requirement}”{advice}."


def _also(data: ReportData) -> Iterator[str]:
    smallest, n = data.evaluation(data.smallest_passing), len(data.suspects)
    if smallest is not None and data.recommended != data.smallest_passing:
        yield (
            f"Consider “{path_name(smallest.candidate)}” (routing.small: smallest): it meets the requirements as well, "
            f"right on {accurate(smallest.accuracy)} at {format_usd(smallest.cost_usd_per_1k)} per 1,000 requests."
        )
    if data.guarantee_state == "broken":
        yield "Do not route by confidence yet: the guarantee did not hold on the test rows. Calibrate again."
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


def guarantee_sentence(data: ReportData) -> str:
    """Say whether the guarantee held on the test rows; empty if there is none to check."""
    found = check_guarantee(data.certificate, data.evaluation("routed"))
    if found is None:
        return ""
    error = found.error
    if not error.n:
        return "No test answer was kept small, so the guarantee was not tested."
    counted = (
        f"{found.n_errors:,} of {error.n:,} kept test answers were wrong: "
        f"{percent(error.value, digits=2)} [{error.low * 100:.2f}, {error.high * 100:.2f}]"
    )
    limit = f"the guaranteed {percent(found.max_error)}"
    if found.state == "broken":
        return f"The guarantee did not hold on the test rows. {counted}, above {limit}."
    if found.state == "inconclusive":
        return f"{counted}; above {limit}, but chance could explain it."
    return f"The guarantee held on the test rows. {counted}, within {limit}."


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
