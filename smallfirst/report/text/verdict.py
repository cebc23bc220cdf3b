"""The verdict in plain words: what answers, how good it is, what it costs, and where the small model loses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.routed import stays_small
from smallfirst.gate.verdict import Outcome
from smallfirst.pricing.money import format_usd
from smallfirst.project.candidate_registry import CANDIDATES, FINE_TUNED, all_candidates
from smallfirst.report.candidates import difference
from smallfirst.report.data import ReportData
from smallfirst.report.formats import absolute_points, accurate, capitalize_first, path_name, path_role, percent, points


class Headline(NamedTuple):
    """What to do, in one sentence, and the figures that it rests on."""

    heading: str
    sentence: str


def headline(data: ReportData) -> Headline:
    """Return what to do, how good what answers is, and what it costs against the large path."""
    if data.decided is not None and data.decided.kind != "small alone":
        return _by_outcome(data, data.decided)
    chosen, large, evaluation = data.recommended, data.evaluation("large"), data.evaluation(data.served)
    if chosen is None or evaluation is None:
        return _nothing_passes(data)
    quality, cost_usd = _quality(data, evaluation), evaluation.cost_usd_per_1k
    if chosen == "large":
        return Headline(
            "Keep the large model.",
            f"No smaller model meets the requirements. The large model does: it is {quality}, "
            f"at {format_usd(cost_usd)} per 1,000 requests.",
        )
    cost = _cost_against_large(data, evaluation)
    if large is not None and cost_usd >= large.cost_usd_per_1k:
        return Headline(
            "Keep the large model: a smaller one is good enough here, but not cheaper.",
            f"“{capitalize_first(path_name(evaluation.candidate))}” is {quality} and costs {cost}.",
        )
    subject = "It" if chosen == FINE_TUNED else capitalize_first(path_role(chosen))
    said = f"{subject} is {quality} and costs {cost}."
    if data.served == "routed":
        said = f"Together, each request answered by one of them, they are {quality} and cost {cost}."
    return Headline(_heading(data, chosen), said)


def _by_outcome(data: ReportData, outcome: Outcome) -> Headline:
    """Return the verdict on what goes live, and the outcome's sentence with its proof."""
    proof = capitalize_first(outcome.sentence.partition(": ")[2] or outcome.sentence)
    large, needed = data.evaluation("large") is not None, outcome.labels_needed
    if outcome.kind == "small first" and outcome.candidate and outcome.share_small:
        who, share = path_role(outcome.candidate) or "the small model", percent(outcome.share_small.value, digits=0)
        rest = "the large model" if large else "a person"
        return Headline(f"Small first: {who} answers {share} of requests, {rest} the rest.", proof)
    if outcome.kind == "cannot be told yet" and needed:
        return Headline(f"It cannot be told yet: label about {needed.n_data_rows:,} more rows.", proof)
    return Headline("Keep the large model." if large else "Keep what answers today.", proof)


def _nothing_passes(data: ReportData) -> Headline:
    large, verdict = data.evaluation("large"), data.verdict("large")
    if large is None:
        return Headline(
            "Do not go live yet: nothing meets the requirements.",
            f"The nearest, “{path_name(data.focus.candidate)}”, is {_quality(data, data.focus)}. "
            "The large model was not measured.",
        )
    quality = f"{_quality(data, large)}, at {format_usd(large.cost_usd_per_1k)} per 1,000 requests"
    if verdict is not None and not verdict.passed:
        return Headline(
            "Keep the large model for now: nothing meets the requirements.",
            f"The large model does not meet them either; it is {quality}.",
        )
    sentence = f"The large model is {quality}."
    comparison = difference(data, data.focus.candidate, "large")
    if comparison is None or comparison.difference.high < 0:
        return Headline("Keep the large model: no smaller one meets the requirements.", sentence)
    better = comparison.difference.low > 0
    name = path_name(data.focus.candidate)
    result = f"“{name}” is right more often" if better else f"neither it nor “{name}” is measurably better"
    return Headline(
        "Keep the large model for now: no smaller model meets the requirements.",
        f"{sentence} On the {comparison.difference.n:,} requests that both answered, {result}.",
    )


def _quality(data: ReportData, evaluation: Evaluation) -> str:
    share, n = accurate(evaluation.accuracy), f"{evaluation.accuracy.n:,}"
    if data.part == "field" and data.pass_score >= 1:
        f1 = evaluation.measures.get("field_f1")
        fields = f" (and {percent(f1.value)} of single fields, by field F1)" if f1 else ""
        return f"right in every field on {share} of {n} test requests{fields}"
    return f"right on {share} of {n} test {data.request_noun}"


def _cost_against_large(data: ReportData, evaluation: Evaluation) -> str:
    cost, large = evaluation.cost_usd_per_1k, data.evaluation("large")
    text = f"{format_usd(cost)} per 1,000 requests"
    if large is None:
        return text
    large_cost = large.cost_usd_per_1k
    if cost <= 0 or large_cost <= 0:
        return f"{text} against {format_usd(large_cost)} on the large path"
    ratio = large_cost / cost
    if ratio >= 1.05:
        times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
        return f"{text} instead of {format_usd(large_cost)}: {times} times cheaper"
    if cost / large_cost >= 1.05:
        return f"{text}, more than the large path's {format_usd(large_cost)}"
    return f"{text}, about what the large path costs ({format_usd(large_cost)})"


def comparisons(data: ReportData) -> tuple[str, ...]:
    """Say how what answers compares with the large model and with the other ways, and what the fine-tune loses to."""
    return (*_against_large(data), *_alone(data), *_routing(data), *_losses(data))


def _alone(data: ReportData) -> Iterator[str]:
    alone = data.evaluation(data.recommended)
    if alone is not None and alone.candidate != data.served:
        name, cost = path_name(alone.candidate), format_usd(alone.cost_usd_per_1k)
        yield f"Alone, “{name}” is right on {accurate(alone.accuracy)}, at {cost} per 1,000 requests."


def _losses(data: ReportData) -> Iterator[str]:
    if data.focus.candidate != FINE_TUNED:
        return  # `linear_note` compares it
    rivals = {"large": "the large model"} | {c.name: c.role for c in all_candidates() if c.name != FINE_TUNED}
    for rival, name in rivals.items():
        comparison = difference(data, FINE_TUNED, rival)
        if comparison is not None and (gap := comparison.difference).high < 0:
            yield (
                f"The fine-tuned small model loses to {name}: it is right less often by {absolute_points(gap)} "
                f"on the same {gap.n:,} requests."
            )


def _against_large(data: ReportData) -> Iterator[str]:
    comparison = difference(data, data.served, "large") if data.served not in (None, "large") else None
    if comparison is None:
        return
    gap, name = comparison.difference, capitalize_first(path_name(comparison.first))
    if gap.low <= 0 <= gap.high:
        yield f"No difference from the large model in right answers was found ({points(gap)})."
    elif data.served != FINE_TUNED or gap.low > 0:  # else `_losses` says it
        more = "more" if gap.low > 0 else "less"
        yield f"“{name}” is right {more} often than the large model, by {absolute_points(gap)}."


def _routing(data: ReportData) -> Iterator[str]:
    routed, verdict = data.evaluation("routed"), data.verdict("routed")
    certified = data.certificate is not None and data.certificate.issued
    if routed is None or data.served == "routed" or not certified:
        return
    if routed.share("large"):
        small = percent(1 - routed.share("large"))
        where = f"Routed, {small} of requests stay small and the rest goes to the large model"
    elif not all(stays_small(routed)):
        small = percent(sum(stays_small(routed)) / max(1, len(routed.rows)))
        where = f"Routed, {small} of requests stay small and the rest is left to a person or refused as out of scope"
    else:
        covered = percent(sum(row.certified for row in routed.rows) / max(1, len(routed.rows)))
        where = f"Routed, every request stays small, {covered} of them covered by the certificate"
    gate = "" if verdict is None or verdict.passed else " It does not meet the requirements."
    yield f"{where}: right on {accurate(routed.accuracy)}, {_cost_against_large(data, routed)}.{gate}"


def linear_note(data: ReportData) -> str:
    """Say what the fine-tune adds when a candidate that is no language model passes; else return an empty string."""
    chosen = data.smallest_passing
    if chosen is None or chosen not in CANDIDATES.names() or CANDIDATES.get(chosen).is_language_model:
        return ""
    start = "The gate picks the cheapest candidate that passes, and that needs no language model."
    if (comparison := difference(data, FINE_TUNED, chosen)) is None:
        return start
    gap = comparison.difference
    how = "better still, by" if gap.low > 0 else "worse, by" if gap.high < 0 else "not measurably different:"
    return f"{start} The fine-tuned small model is {how} {points(gap)} on the same {gap.n:,} rows."


def _heading(data: ReportData, chosen: str) -> str:
    if data.served == "routed" and (routed := data.evaluation("routed")):
        first, small = path_role(chosen) or "a small model", percent(1 - routed.share("large"), digits=0)
        return f"Go live: {first} answers {small} of requests, the large model the rest."
    candidate = CANDIDATES.get(chosen)
    found = (candidate.headline or f"{candidate.role} is good enough").rstrip(".")
    found = found[:1].lower() + found[1:]
    if data.certificate is None or data.certificate.issued:
        return f"Go live: {found}."
    first = "Label more rows first" if data.evaluation("large") is None else "Run it beside the large model for now"
    return f"{first}: {found}, but none of its answers are certified."
