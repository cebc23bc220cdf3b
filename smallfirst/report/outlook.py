"""What would change the verdict: more labels, another price, less traffic, other requests."""

from __future__ import annotations

from smallfirst.report.contents import ReportData
from smallfirst.report.economics import (
    PathCost,
    break_even_requests,
    drop_that_ends_it,
    own_machine,
)
from smallfirst.report.wording import NAMES, count, percent, promise, usd


def outlook(data: ReportData, paths: tuple[PathCost, ...]) -> tuple[str, ...]:
    """Sentences on what would change the verdict, the gate's own advice first."""
    return (*_gate(data), *_promise(data), *_money(data, paths), _other_requests(data))


def _gate(data: ReportData) -> list[str]:
    sentences = []
    for verdict in data.verdicts:
        failed = [line for line in verdict.lines if not line.passed]
        if not failed:
            continue
        name = NAMES.get(verdict.candidate, verdict.candidate)
        bars = " and ".join(f"“{line.bar}” (measured {line.measured})" for line in failed)
        advice = " ".join(_sentence(line.advice) for line in failed if line.advice)
        sentences.append(f"{_first_up(name)} would be enough if it met {bars}. {advice}".strip())
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


def _other_requests(data: ReportData) -> str:
    n = max(e.accuracy.n for e in data.evaluations)
    return (
        f"All figures rest on {n:,} test rows. If live requests are unlike them (new labels, "
        "another language, longer texts), measure again."
    )


def _sentence(advice: str) -> str:
    return _first_up(advice).rstrip(".") + "."


def _first_up(words: str) -> str:
    return words[:1].upper() + words[1:]
