"""Recommendations for the person who decides, and warnings about the figures."""

from __future__ import annotations

from smallfirst.pricing import format_usd
from smallfirst.report.data import ReportData
from smallfirst.report.economics import PathCost
from smallfirst.report.formats import accurate, count, path_name, percent, points
from smallfirst.report.text.guarantee import guarantee_state

LEAK_WARNING = 0.005
"""Share of leaked test rows from which the page warns."""


def recommendations(data: ReportData, paths: tuple[PathCost, ...]) -> tuple[str, ...]:
    """Return one to four things to do, most important first."""
    return (_go_live(data, paths), *_repair(data), *_relabel(data))


def _go_live(data: ReportData, paths: tuple[PathCost, ...]) -> str:
    by_name = {path.candidate: path for path in paths}
    path, large = by_name.get(data.smallest_passing or ""), by_name.get("large")
    if path is None or path is large:
        return f"Keep sending every request to the large model.{_nearest(data)}"
    name = path_name(path.candidate)
    if large is None:
        return f"Put “{name}” live. Its saving is unknown: the large model was not measured."
    saved = large.monthly_usd(data.requests_per_month) - path.monthly_usd(data.requests_per_month)
    if saved <= 0:
        return "Keep sending every request to the large model: the smaller path saves nothing at today's prices."
    n_requests = count(data.requests_per_month)
    return f"Put “{name}” live. At {n_requests} requests a month it saves about {format_usd(saved)} a month."


def _nearest(data: ReportData) -> str:
    """Say what the smaller path with the fewest failed checks would need; ties go to one that more rows can help."""
    failed = {v.candidate: v.failed_checks for v in data.verdicts if v.failed_checks and v.candidate != "large"}
    if not failed:
        return ""

    def distance(candidate: str) -> tuple[int, bool, float]:
        evaluation = data.evaluation(candidate)
        hopeless = all(check.more_rows is None for check in failed[candidate])
        return len(failed[candidate]), hopeless, -(evaluation.accuracy.value if evaluation else 0.0)

    candidate = min(failed, key=distance)
    check = min(failed[candidate], key=lambda check: check.more_rows is None)
    advice = f": {check.advice.rstrip('.')}" if check.advice else ""
    return f" The nearest smaller path, “{path_name(candidate)}”, fails “{check.requirement}”{advice}."


def _repair(data: ReportData) -> list[str]:
    found = []
    if guarantee_state(data) == "broken":
        found.append("Do not route by confidence yet: the guarantee did not hold on the test rows. Calibrate again.")
    elif data.certificate is not None and not data.certificate.issued:
        found.append("Do not route by confidence yet: there are too few labelled rows for a guarantee (see below).")
    if data.leaks is not None and data.leaks.share >= LEAK_WARNING:
        found.append("Remove the test rows that are also training rows, then measure again.")
    return found


def _relabel(data: ReportData) -> list[str]:
    if not data.suspects:
        return []
    n = len(data.suspects)
    rows = "1 row whose given answer is" if n == 1 else f"{n:,} rows whose given answers are"
    return [
        f"Look at {rows} probably wrong. To correct test or calibration labels judge every row of the split anew, not "
        "these alone: labels corrected only where models disagree flatter the models."
    ]


def warnings(data: ReportData) -> tuple[str, ...]:
    """Return what to know before trusting the figures; empty if nothing speaks against them."""
    found = []
    if len({(e.accuracy.n, e.dataset_fingerprint) for e in data.evaluations}) > 1:
        found.append("The paths were not all measured on the same rows; compare them with care.")
    if untested := [e.candidate for e in data.evaluations if e.split != "test"]:
        found.append(f"Not measured on test rows: {', '.join(untested)}.")
    if data.leaks is not None and data.leaks.share >= LEAK_WARNING:
        found.append(leak_sentence(data))
    found += [
        f"“{path_name(v.candidate)}” passed by a signed override, not by measurement: {v.signed_by}, because "
        f"“{v.because or 'no reason given'}”."
        for v in data.verdicts
        if v.signed_by
    ]
    return tuple(found)


def leak_sentence(data: ReportData) -> str:
    """Say how many test rows are also training rows, and the accuracy without them; empty if not looked for."""
    leaks = data.leaks
    if leaks is None:
        return ""
    if leaks.n_leaked == 0:
        return f"None of the {leaks.n_test:,} test rows is in the training rows."
    sentence = (
        f"{leaks.n_leaked:,} of {leaks.n_test:,} test rows ({percent(leaks.share)}) are also in the training rows."
    )
    if leaks.accuracy_with is None or leaks.accuracy_without is None:
        return sentence
    return (
        f"{sentence} The {path_name(leaks.candidate)} is right on {accurate(leaks.accuracy_with)} with them and on "
        f"{accurate(leaks.accuracy_without)} without."
    )


def retention_sentences(data: ReportData) -> tuple[str, ...]:
    """Say what the fine-tuned model still answers of general questions, by kind too; empty if not measured."""
    retention = data.retention
    if retention is None:
        return ()
    sentences = [
        f"Of {retention.right_before.n:,} general questions ({retention.prompts}) the small model is right on "
        f"{accurate(retention.right_before)} before fine-tuning and on {accurate(retention.right_after)} after: "
        f"{points(retention.difference)}."
    ]
    if retention.kept is None:
        sentences.append("Before fine-tuning it was not shown to be better than guessing, so there is nothing to keep.")
    else:
        low, high = (f"{end * 100:.0f}" for end in (retention.kept.low, retention.kept.high))
        sentences.append(
            f"Of its ability above guessing {percent(retention.kept.value, digits=0)} is left ({low} to {high}). It "
            "was trained for one task and is not meant to chat; the figure says whether it could serve another one."
        )
    if retention.parts:
        kinds = (f"{one.kind or 'other'} {one.n_before} → {one.n_after} of {one.n}" for one in retention.parts)
        sentences.append(f"Right answers before and after: {', '.join(kinds)}.")
    return tuple(sentences)
