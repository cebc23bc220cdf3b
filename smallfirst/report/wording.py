"""The report's words: figures as a person reads them, and the sentences that say what they mean.

A sentence is chosen by the figures, never written by hand for one result; so "keep the API"
comes out whenever that is what was measured.
"""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup, escape

from smallfirst.report.contents import PromiseHeld, ReportData
from smallfirst.routing.certificate import Certificate
from smallfirst.stats import Estimate

NAMES = {
    "words": "words + linear",
    "encoder": "small encoder + linear",
    "base": "small model, not trained",
    "small": "small model, fine-tuned",
    "routed": "routed: small first",
    "large": "large model",
}
ROLES = {
    "words": "a linear model on words",
    "encoder": "a linear model on a small frozen encoder",
    "base": "a small language model before fine-tuning",
    "small": "a small language model after fine-tuning",
    "routed": "small first, the large model for what it is not sure of",
    "large": "the model to be replaced",
}
LINEAR = ("words", "encoder")
MINUS = "\N{MINUS SIGN}"


class Headline(NamedTuple):
    """What the first screen says."""

    words: str
    sentence: str


def usd(amount: float) -> str:
    """An amount in USD: cents from a dollar up, two significant digits below."""
    if amount < 0:
        return f"{MINUS}{usd(-amount)}"
    if amount >= 99.5:
        return f"${amount:,.0f}"
    if amount >= 0.995 or amount == 0:
        return f"${amount:.2f}"
    # 0.0028 and never 2.8e-03; two significant digits.
    digits = 2
    while round(amount, digits) < 10 ** (1 - digits) and digits < 9:
        digits += 1
    return f"${amount:.{digits}f}"


def usd_tick(amount: float) -> str:
    """An amount at an axis, without trailing zeros: `$0.001`, `$10`, `$1k`."""
    if amount >= 1000:
        return f"${short(amount)}"
    return "$" + f"{amount:.10f}".rstrip("0").rstrip(".")


def short(value: float) -> str:
    """A large number in a few characters: `300k`, `1M`, `2G`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def ms(value: float) -> str:
    """A latency: two digits below 10 ms, whole ms below a second, then seconds."""
    if value >= 1000:
        return f"{value / 1000:.3g}\N{NO-BREAK SPACE}s"
    return f"{value:.2g}\N{NO-BREAK SPACE}ms" if value < 10 else f"{value:.0f}\N{NO-BREAK SPACE}ms"


def rate(per_s: float) -> str:
    """Requests per second: one decimal below 100."""
    return f"{per_s:,.1f}" if per_s < 100 else f"{per_s:,.0f}"


def percent(share: float, *, digits: int = 1) -> str:
    """A share as a percentage: 0.931 → 93.1 %."""
    return f"{share * 100:.{digits}f}\N{NO-BREAK SPACE}%"


def points(difference: Estimate) -> str:
    """A difference of shares in percentage points, signed, with its interval."""
    value, low, high = (x * 100 for x in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]".replace("-", MINUS)


def accurate(estimate: Estimate) -> str:
    """`93.1 % [92.2, 94.0]`."""
    return f"{percent(estimate.value)} [{estimate.low * 100:.1f}, {estimate.high * 100:.1f}]"


def count(n: int | None) -> str:
    """A whole number with thousands separated; `never` for None."""
    return "never" if n is None else f"{n:,}"


def breakable(name: str) -> Markup:
    """A label that may be broken into lines after its underscores, escaped."""
    return escape(name).replace("_", Markup("_<wbr>"))


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


def headline(data: ReportData) -> Headline:
    """The verdict in plain words: what answers, how good, what it costs against the large path."""
    chosen, large = data.smallest_passing, data.evaluation("large")
    evaluation = data.evaluation(chosen) if chosen else None
    if chosen is None or evaluation is None:
        return _nothing_passes(data)
    good = f"right on {accurate(evaluation.accuracy)} of {evaluation.accuracy.n:,} test requests"
    if chosen == "large":
        return Headline(
            "Keep the API.",
            f"No smaller model passes the gate. The large model does: it is {good}, "
            f"at {usd(evaluation.cost_usd_per_1k)} per 1,000 requests.",
        )
    cost = f"{usd(evaluation.cost_usd_per_1k)} per 1,000 requests"
    if large is not None:
        cost = cost_against(evaluation.cost_usd_per_1k, large.cost_usd_per_1k)
        if evaluation.cost_usd_per_1k >= large.cost_usd_per_1k:
            return Headline(
                "Keep the API: smaller is good enough here, but not cheaper.",
                f"“{NAMES.get(chosen, chosen)}” passes the gate ({good}) and costs {cost}.",
            )
    words = {
        "words": "A linear model is enough here.",
        "encoder": "A linear model is enough here.",
        "base": "The small model is good enough, even untrained.",
        "small": "The fine-tuned small model is good enough.",
        "routed": "Small first, the large model for the rest.",
    }.get(chosen, f"{chosen} is good enough.")
    return Headline(words, f"{_who(chosen, data)} is {good} and costs {cost}.")


def _who(chosen: str, data: ReportData) -> str:
    if chosen == "routed":
        routed = data.evaluation("routed")
        kept = percent(1 - routed.share("large"), digits=0) if routed else "part"
        return f"With {kept} of requests answered small, the routed path"
    names = {
        "words": "A linear model on words",
        "encoder": "A linear model on a small frozen encoder",
        "base": "The small model as it came",
    }
    return names.get(chosen, "It")


def _nothing_passes(data: ReportData) -> Headline:
    large, verdict = data.evaluation("large"), data.verdict("large")
    if large is None:
        return Headline(
            "Nothing passes the gate.",
            "No measured path is good enough, and the large model was not measured.",
        )
    good = f"right on {accurate(large.accuracy)} of {large.accuracy.n:,} test requests"
    cost = f"at {usd(large.cost_usd_per_1k)} per 1,000 requests"
    if verdict is not None and not verdict.passed:
        return Headline(
            "Keep the API for now: nothing passes the gate.",
            f"The large model does not pass either; it is {good}, {cost}.",
        )
    return Headline("Keep the API.", f"No smaller model passes the gate. The large model is {good}, {cost}.")


def linear_note(data: ReportData) -> str:
    """What the fine-tune adds when a linear model already passes; empty if none does."""
    chosen = data.smallest_passing
    if chosen not in LINEAR:
        return ""
    comparison = data.comparison("small", chosen)
    start = "The gate asks for the smallest candidate that passes, and that needs no language model."
    if comparison is None:
        return start
    difference = comparison.difference
    gap = f"{points(difference)} on the same {difference.n:,} rows"
    if difference.low > 0:
        return f"{start} The fine-tuned small model is better still, by {gap}."
    if difference.high < 0:
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
    gate = "" if verdict is None or verdict.passed else " It does not pass the gate."
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
