"""The verdict in plain words: what answers, how good it is, what it costs, and where the small model loses.

A sentence is chosen by the figures, never written by hand for one result; so "keep the API"
comes out whenever that is what was measured.
"""

from __future__ import annotations

from typing import NamedTuple

from smallfirst.evaluation.results import Evaluation
from smallfirst.report.candidates import difference
from smallfirst.report.data import PromiseHeld, ReportData
from smallfirst.report.formats import NAMES, accurate, fewer, first_up, percent, points, usd
from smallfirst.routing.certificate.certificate import Certificate

LINEAR = ("words", "encoder")


class Headline(NamedTuple):
    """What the first screen says."""

    words: str
    sentence: str


def cost_against(cost: float, large: float) -> str:
    """How a cost compares with the large path's, in words."""
    if cost <= 0 or large <= 0:
        return f"{usd(cost)} per 1,000 requests against {usd(large)} on the large path"
    if large / cost >= 1.05:
        ratio = large / cost
        times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
        return f"{usd(cost)} per 1,000 requests instead of {usd(large)}: {times} times cheaper"
    if cost / large >= 1.05:
        return f"{usd(cost)} per 1,000 requests, more than the large path's {usd(large)}"
    return f"{usd(cost)} per 1,000 requests, about what the large path costs ({usd(large)})"


def good(data: ReportData, evaluation: Evaluation) -> str:
    """How often it is right, in the task's own words: `right on 93.1 % (92.2 to 94.0) of 3,000 test requests`."""
    share, n = accurate(evaluation.accuracy), f"{evaluation.accuracy.n:,}"
    if data.part == "field" and data.pass_score >= 1:
        fields = evaluation.measures.get("field_f1")
        alone = f" (and {percent(fields.value)} of single fields, by field F1)" if fields else ""
        return f"right in every field on {share} of {n} test requests{alone}"
    return f"right on {share} of {n} test {data.request_noun}"


def headline(data: ReportData) -> Headline:
    """The verdict in plain words: what answers, how good, what it costs against the large path."""
    chosen, large = data.smallest_passing, data.evaluation("large")
    evaluation = data.evaluation(chosen) if chosen else None
    if chosen is None or evaluation is None:
        return _nothing_passes(data)
    if chosen == "large":
        return Headline(
            "Keep the API.",
            f"No smaller model meets the bars that were set. The large model does: it is {good(data, evaluation)}, "
            f"at {usd(evaluation.cost_usd_per_1k)} per 1,000 requests.",
        )
    cost = f"{usd(evaluation.cost_usd_per_1k)} per 1,000 requests"
    if large is not None:
        cost = cost_against(evaluation.cost_usd_per_1k, large.cost_usd_per_1k)
        if evaluation.cost_usd_per_1k >= large.cost_usd_per_1k:
            return Headline(
                "Keep the API: smaller is good enough here, but not cheaper.",
                f"“{first_up(NAMES.get(chosen, chosen))}” meets the bars that were set ({good(data, evaluation)}) "
                f"and costs {cost}.",
            )
    words = {
        "words": "A linear model is enough here.",
        "encoder": "A linear model is enough here.",
        "tuned": "A fine-tuned small encoder is good enough.",
        "base": "The small model is good enough, even untrained.",
        "small": "The fine-tuned small model is good enough.",
        "routed": "Small first, the large model for the rest.",
    }.get(chosen, f"{chosen} is good enough.")
    return Headline(words, f"{_who(chosen, data)} is {good(data, evaluation)} and costs {cost}.")


def _who(chosen: str, data: ReportData) -> str:
    if chosen == "routed":
        routed = data.evaluation("routed")
        kept = percent(1 - routed.share("large"), digits=0) if routed else "part"
        return f"With {kept} of requests answered small, the routed path"
    names = {
        "words": "A linear model on words",
        "encoder": "A linear model on a small frozen encoder",
        "tuned": "A fine-tuned sentence encoder with a linear head",
        "base": "The small model as it came",
    }
    return names.get(chosen, "It")


def _nothing_passes(data: ReportData) -> Headline:
    large, verdict = data.evaluation("large"), data.verdict("large")
    if large is None:
        return Headline(
            "Nothing meets the bars.",
            "No measured path is good enough, and the large model was not measured.",
        )
    cost = f"at {usd(large.cost_usd_per_1k)} per 1,000 requests"
    if verdict is not None and not verdict.passed:
        return Headline(
            "Keep the API for now: nothing meets the bars.",
            f"The large model does not meet them either; it is {good(data, large)}, {cost}.",
        )
    sentence = f"No smaller model meets the bars that were set. The large model is {good(data, large)}, {cost}."
    between = difference(data, "small", "large")
    if between is None or between.difference.high < 0:
        return Headline("Keep the API.", sentence)
    rows = f"the {between.difference.n:,} requests that both answered"
    said = "the fine-tuned model is right more often" if between.difference.low > 0 else "neither is measurably better"
    return Headline("Keep the API for now: no smaller model meets the bars.", f"{sentence} On {rows}, {said}.")


def weaker_than(data: ReportData) -> tuple[str, ...]:
    """One sentence for each rival that the fine-tuned small model is measurably worse than."""
    rivals = {
        "large": "the large model",
        "encoder": "a linear model on a small frozen encoder",
        "tuned": "a fine-tuned small encoder",
        "words": "a linear model on words",
        "base": "itself before fine-tuning",
    }
    found = []
    for rival, name in rivals.items():
        if rival == data.smallest_passing and rival in LINEAR:
            continue  # the note on the linear model says it
        between = difference(data, "small", rival)
        if between is not None and between.difference.high < 0:
            found.append(
                f"The fine-tuned small model loses to {name}: it is right less often by {fewer(between.difference)} "
                f"on the same {between.difference.n:,} requests."
            )
    return tuple(found)


def against_large(data: ReportData) -> str:
    """How the chosen path compares with the large one in right answers; empty where `weaker_than` says it."""
    chosen = data.smallest_passing
    if chosen in (None, "large"):
        return ""
    between = difference(data, chosen or "", "large")
    if between is None:
        return ""
    gap = between.difference
    if gap.low > 0:
        return f"It is right more often than the large model, by {fewer(gap)}."
    if gap.high < 0:
        return "" if chosen == "small" else f"It is right less often than the large model, by {fewer(gap)}."
    return f"No difference from the large model in right answers was found ({points(gap)})."


def linear_note(data: ReportData) -> str:
    """What the fine-tune adds when a linear model already passes; empty if none does."""
    chosen = data.smallest_passing
    if chosen not in LINEAR:
        return ""
    comparison = difference(data, "small", chosen)
    start = "The gate asks for the smallest candidate that passes, and that needs no language model."
    if comparison is None:
        return start
    gap = f"{points(comparison.difference)} on the same {comparison.difference.n:,} rows"
    if comparison.difference.low > 0:
        return f"{start} The fine-tuned small model is better still, by {gap}."
    if comparison.difference.high < 0:
        return f"{start} The fine-tuned small model is worse, by {gap}."
    return f"{start} The fine-tuned small model is not measurably different: {gap}."


def routing_sentence(data: ReportData) -> str:
    """What the routed path gives, if it is certified, measured and not already the headline."""
    routed, large = data.evaluation("routed"), data.evaluation("large")
    certified = data.certificate is not None and data.certificate.issued
    if routed is None or data.smallest_passing == "routed" or not certified:
        return ""
    cost = f"{usd(routed.cost_usd_per_1k)} per 1,000 requests"
    if large is not None:
        cost = cost_against(routed.cost_usd_per_1k, large.cost_usd_per_1k)
    kept, verdict = percent(1 - routed.share("large")), data.verdict("routed")
    gate = "" if verdict is None or verdict.passed else " It does not meet the bars that were set."
    if routed.share("large"):
        where = f"Routed, {kept} of requests stay small and the rest goes to the large model"
    else:
        sure = percent(sum(row.certified for row in routed.rows) / max(1, len(routed.rows)))
        where = f"Routed, every request stays small, {sure} of them covered by the certificate"
    return f"{where}: right on {accurate(routed.accuracy)}, {cost}.{gate}"


def promise(held: PromiseHeld | None, certificate: Certificate | None) -> tuple[str, str]:
    """(`held`, `open` or `broken`, the sentence) for the promise on test rows; else empty."""
    if held is None or certificate is None or not certificate.issued:
        return "", ""
    error = held.error
    counted = (
        f"{held.errors_kept:,} of {held.n_kept:,} kept test answers were wrong: "
        f"{percent(error.value, digits=2)} [{error.low * 100:.2f}, {error.high * 100:.2f}]"
    )
    bar = f"the promised {percent(certificate.promised_error)}"
    if held.n_kept == 0:
        return "open", "No test answer was kept small, so the promise was not tried."
    if error.low > certificate.promised_error:
        return "broken", f"The promise did not hold on the test rows. {counted}, above {bar}."
    if error.value > certificate.promised_error:
        return "open", f"{counted}; above {bar}, but within what chance allows."
    return "held", f"The promise held on the test rows. {counted}, within {bar}."
