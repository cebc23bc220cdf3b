"""What to do next, in plain words for whoever decides; and what to know before trusting the figures.

Each line follows from one figure of the report. Nothing here repeats a table; the price is that a reader who wants the
reason reads on.
"""

from __future__ import annotations

from smallfirst.report.data import ReportData
from smallfirst.report.economics import PathCost
from smallfirst.report.formats import NAMES, accurate, count, percent, points, usd
from smallfirst.report.text.verdict import promise

LEAK_WORTH_A_WARNING = 0.005


def recommendations(data: ReportData, paths: tuple[PathCost, ...]) -> tuple[str, ...]:
    """One to four things to do, the most important first."""
    return (*_go_live(data, paths), *_repair(data), *_relabel(data))


def _go_live(data: ReportData, paths: tuple[PathCost, ...]) -> list[str]:
    chosen = data.smallest_passing
    by_name = {path.candidate: path for path in paths}
    path, large = by_name.get(chosen or ""), by_name.get("large")
    if chosen is None or path is None or path is large:
        return [f"Keep sending every request to the large model.{_nearest(data)}"]
    name = NAMES.get(chosen, chosen)
    if large is None:
        return [f"Put “{name}” live. What it would save is unknown: the large model was not measured."]
    saved = large.monthly_usd(data.requests_per_month) - path.monthly_usd(data.requests_per_month)
    if saved <= 0:
        return ["Keep sending every request to the large model: the smaller path saves nothing at today's prices."]
    volume = f"{count(data.requests_per_month)} requests a month"
    return [f"Put “{name}” live. At {volume} it saves about {usd(saved)} a month."]


def _nearest(data: ReportData) -> str:
    """What the smaller path with the fewest missed bars would need; of several, first one that rows can help."""
    missed = {v.candidate: v.failed_checks for v in data.verdicts if v.failed_checks and v.candidate != "large"}
    if not missed:
        return ""
    candidate = min(
        missed,
        key=lambda name: (
            len(missed[name]),
            not any("label" in line.advice for line in missed[name]),
            -(found.accuracy.value if (found := data.evaluation(name)) else 0.0),
        ),
    )
    line = min(missed[candidate], key=lambda line: "label" not in line.advice)
    advice = f": {line.advice.rstrip('.')}" if line.advice else ""
    return f" The nearest smaller path, “{NAMES.get(candidate, candidate)}”, misses “{line.requirement}”{advice}."


def _repair(data: ReportData) -> list[str]:
    found = []
    state, _ = promise(data.promise_held, data.certificate)
    if state == "broken":
        found.append("Do not route by confidence yet: the promise did not hold on the test rows. Calibrate again.")
    elif data.certificate is not None and not data.certificate.issued:
        found.append("Do not route by confidence yet: there are too few labelled rows to promise anything (see below).")
    if data.leaks is not None and data.leaks.share.value >= LEAK_WORTH_A_WARNING:
        found.append("Take the test rows that are also training rows out and measure again.")
    return found


def _relabel(data: ReportData) -> list[str]:
    if not data.suspects:
        return []
    n = len(data.suspects)
    rows = "1 row whose given answer is" if n == 1 else f"{n:,} rows whose given answers are"
    return [f"Look at {rows} probably wrong: each one that is mended makes every figure here truer."]


def warnings(data: ReportData) -> tuple[str, ...]:
    """What must be known before the figures are trusted; empty if nothing stands against them."""
    found = []
    if len({e.accuracy.n for e in data.evaluations}) > 1 or len({e.dataset_fingerprint for e in data.evaluations}) > 1:
        found.append("The paths were not all measured on the same rows; compare them with care.")
    if untested := [e.candidate for e in data.evaluations if e.split != "test"]:
        found.append(f"Not measured on test rows: {', '.join(untested)}.")
    if data.leaks is not None and data.leaks.share.value >= LEAK_WORTH_A_WARNING:
        found.append(leak_sentence(data))
    signed = [v for v in data.verdicts if v.signed_by]
    found += [
        f"“{NAMES.get(v.candidate, v.candidate)}” was passed by signature, not by measurement: {v.signed_by}, "
        f"because “{v.because or 'no reason given'}”."
        for v in signed
    ]
    return tuple(found)


def leak_sentence(data: ReportData) -> str:
    """How many test rows are also training rows, and what the accuracy is without them; empty if not looked for."""
    leaks = data.leaks
    if leaks is None:
        return ""
    share = percent(leaks.share.value)
    start = f"{leaks.n_leaked:,} of {leaks.n_test:,} test rows ({share}) are also in the training rows."
    if leaks.n_leaked == 0:
        return f"None of the {leaks.n_test:,} test rows is in the training rows."
    if leaks.accuracy_with is None or leaks.accuracy_without is None:
        return start
    name = NAMES.get(leaks.candidate, leaks.candidate)
    return (
        f"{start} The {name} is right on {accurate(leaks.accuracy_with)} with them and on "
        f"{accurate(leaks.accuracy_without)} without."
    )


def ceiling_sentence(data: ReportData) -> str:
    """What the large model's agreement with itself and with the data says; empty if not measured."""
    ceiling = data.ceiling
    if ceiling is None:
        return ""
    said = (
        f"Asked again, the large model gives the same answer on {accurate(ceiling.itself)} of "
        f"{ceiling.itself.n:,} requests: no model that learns from its answers can be expected to agree with it more."
    )
    if ceiling.gold is not None:
        said += f" The given answers are the large model's on {accurate(ceiling.gold)} of {ceiling.gold.n:,}."
    return f"{said} {ceiling.note}".strip()


def retention_sentences(data: ReportData) -> tuple[str, ...]:
    """What the fine-tuned model still answers of general questions, and of which kinds; empty if not measured."""
    found = data.retention
    if found is None:
        return ()
    before, after, difference = found.right_before, found.right_after, found.difference
    said = []
    if before and after and difference:
        said.append(
            f"Of {before.n:,} general questions ({found.prompts}) the small model is right on {accurate(before)} "
            f"before fine-tuning and on {accurate(after)} after: {points(difference)}."
        )
    if found.kept is None:
        said.append("Before fine-tuning it was not shown to be better than guessing, so there is nothing to keep.")
    else:
        low, high = (f"{end * 100:.0f}" for end in (found.kept.low, found.kept.high))
        said.append(
            f"Of what it could do above guessing {percent(found.kept.value, digits=0)} is left ({low} to {high}). It "
            "was trained for one task and is not meant to chat; the figure says whether it could serve another one."
        )
    parts = ", ".join(f"{part.kind or 'other'} {part.n_before} → {part.n_after} of {part.n}" for part in found.parts)
    return (*said, f"Right answers before and after: {parts}.") if parts else tuple(said)
