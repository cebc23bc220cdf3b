"""What would change the verdict: another bar, more rows, another price, other traffic, other requests.

Each sentence turns one figure of the report until the verdict tips; what is a guess is called one.
"""

from __future__ import annotations

import re

from smallfirst.report.charts.learning_curve import learning_sentence
from smallfirst.report.data import ReportData
from smallfirst.report.economics import (
    HOURS_PER_MONTH,
    PathCost,
    break_even_requests,
    drop_that_ends_it,
    own_machine,
)
from smallfirst.report.formats import NAMES, count, first_up, percent, usd
from smallfirst.report.text.verdict import promise


def outlook(data: ReportData, paths: tuple[PathCost, ...]) -> tuple[str, ...]:
    """Sentences on what would change the verdict, the gate's own advice first."""
    return (
        *_gate(data),
        *_bar(data),
        *_rows(data),
        *_promise(data),
        *_money(data, paths),
        *_traffic(data),
        _other_requests(data),
    )


def _gate(data: ReportData) -> list[str]:
    sentences = []
    for verdict in data.verdicts:
        failed = [line for line in verdict.checks if not line.passed]
        if not failed:
            continue
        name = NAMES.get(verdict.candidate, verdict.candidate)
        bars = " and ".join(f"“{line.requirement}”" for line in failed)
        advice = " ".join(dict.fromkeys(_sentence(line.advice) for line in failed if line.advice))
        sentences.append(f"{first_up(name)} would be enough if it met {bars}. {advice}".strip())
    return sentences


def _bar(data: ReportData) -> list[str]:
    """How far the accuracy bar could be moved before the verdict on each candidate tips."""
    sentences = []
    for verdict in data.verdicts:
        for line in verdict.checks:
            at_least = re.match(r"accuracy at least ([\d.]+)", line.requirement)
            if not at_least or line.estimate is None or verdict.candidate not in (data.smallest_passing, "small"):
                continue
            name, low = NAMES.get(verdict.candidate, verdict.candidate), f"{line.estimate.low:.3f}"
            if line.passed:
                sentences.append(f"Up to an accuracy bar of {low} (now {at_least[1]}) the {name} would still meet it.")
            else:
                sentences.append(
                    f"With the accuracy bar at {low} or lower (now {at_least[1]}) the {name} would meet it. "
                    "Whether that is good enough is for whoever bears the errors to say."
                )
    return sentences


def _rows(data: ReportData) -> list[str]:
    """More rows to train on, from the learning curve; more rows to test on, from the width of the interval."""
    sentences = [said] if (said := learning_sentence(data.learning_curve, "small")) else []
    small = data.evaluation("small")
    if small is not None and small.accuracy.n:
        half = (small.accuracy.high - small.accuracy.low) / 2
        sentences.append(
            f"The accuracy of the small model is known to about ±{half * 100:.1f} points from {small.accuracy.n:,} "
            f"test rows; {4 * small.accuracy.n:,} would halve that."
        )
    return sentences


def _promise(data: ReportData) -> list[str]:
    if data.certificate is None:
        return ["No certificate was made, so no share of answers is promised to be right."]
    if not data.certificate.issued:
        return [data.certificate.why]
    state, sentence = promise(data.promise_held, data.certificate)
    if state == "broken":
        return [f"{sentence} Calibrate again with more rows before you trust the routed path."]
    return []


def _money(data: ReportData, paths: tuple[PathCost, ...]) -> list[str]:
    by_name = {path.candidate: path for path in paths}
    large = by_name.get("large")
    path = by_name.get(data.smallest_passing or "")
    if large is None or path is None or path is large:
        return []
    name = NAMES.get(path.candidate, path.candidate)
    drop = drop_that_ends_it(path, large)
    if drop is None:
        return [
            f"“{name}” costs {usd(path.cost_usd_per_1k)} per 1,000 requests and the large path "
            f"{usd(large.cost_usd_per_1k)}: it would have to be cheaper to run, or the large one "
            "dearer."
        ]
    sentences = [
        f"The saving is gone if the large model's price falls by {percent(drop)} "
        f"(to {usd(large.after_drop(drop))} per 1,000 requests)."
    ]
    needed = break_even_requests(path.training_usd, path.cost_usd_per_1k, large.cost_usd_per_1k)
    if needed:
        sentences.append(f"Below {count(needed)} requests in all, training is not paid back.")
    evaluation = data.evaluation(path.candidate)
    rate = evaluation.requests_per_s if evaluation else None
    alone = own_machine(data.machine, path, large, requests_per_s=rate)
    alone_words = "On a machine of its own that is never switched off"
    if alone.break_even_per_month is None:
        sentences.append(f"{alone_words}, this path is never cheaper than the large one.")
    elif alone.break_even_per_month > data.requests_per_month:
        sentences.append(
            f"{alone_words}, it takes {count(alone.break_even_per_month)} requests a month to be "
            f"cheaper; {count(data.requests_per_month)} are assumed. "
            "The figures above hold only while other work shares the machine."
        )
    else:
        sentences.append(f"{alone_words}, it is cheaper from {count(alone.break_even_per_month)} requests a month.")
    return sentences


def _traffic(data: ReportData) -> list[str]:
    """From how many requests on one machine is too little."""
    chosen = data.evaluation(data.smallest_passing or "")
    if chosen is None or chosen.candidate == "large" or not chosen.requests_per_s:
        return []
    most = round(chosen.requests_per_s * HOURS_PER_MONTH * 3600 * data.machine.utilisation)
    if most >= data.requests_per_month:
        times = most / data.requests_per_month
        return [
            f"One machine, busy {percent(data.machine.utilisation, digits=0)} of the time, answers about {count(most)} "
            f"requests a month, {times:,.1f} times the traffic assumed; beyond that it takes a second one."
        ]
    return [
        f"One machine, busy {percent(data.machine.utilisation, digits=0)} of the time, answers about {count(most)} "
        f"requests a month, fewer than the {count(data.requests_per_month)} assumed: it takes more than one."
    ]


def _other_requests(data: ReportData) -> str:
    n = max(e.accuracy.n for e in data.evaluations)
    return (
        f"All figures rest on {n:,} test rows. If live requests are unlike them (new labels, "
        "another language, longer texts), measure again."
    )


def _sentence(advice: str) -> str:
    return first_up(advice).rstrip(".") + "."
