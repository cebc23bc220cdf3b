"""What each section of the page is given: records, drawn charts and sentences, all worked out before the template.

A section without anything to show gets None or an empty tuple, and the template leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from smallfirst.evaluation.results import Evaluation
from smallfirst.report import candidates, economics, measures
from smallfirst.report import per_class as parts
from smallfirst.report.charts import cost as money_plots
from smallfirst.report.charts import latency, plots
from smallfirst.report.charts import learning_curve as learning
from smallfirst.report.data import ReportData
from smallfirst.report.formats import percent, usd
from smallfirst.report.text import advice
from smallfirst.report.text import verdict as wording
from smallfirst.report.text.outlook import outlook
from smallfirst.routing.certificate.certificate import Certificate, ThresholdPoint

WORST_PARTS = 10
MOST_PARTS = 200
MOST_CURVE_POINTS = 120
MOST_SUSPECTS = 100
FIRST_SUSPECTS = 8
FIRST_CASES = 10
MOST_PAIRS = 8
FIRST_MEASURES = 2


class PathCard(NamedTuple):
    """One of the paths on the first screen."""

    evaluation: Evaluation
    """Its figures."""
    monthly_usd: float
    """USD for a month of requests, training not included."""
    saved_usd: float | None
    """USD a month less than the large path; None for the large path itself or where it was not measured."""
    share_small: float | None
    """Share of requests that stay small; None but for the routed path."""
    passed: bool | None
    """Whether it met the bars; None if it was not asked."""


def first_screen(data: ReportData, paths: tuple[economics.PathCost, ...]) -> dict[str, Any]:
    """The verdict, what to do, the paths to choose from, and quality against cost."""
    state, held = wording.promise(data.promise_held, data.certificate)
    shown = {data.smallest_passing, "small"} if data.verdicts else set()
    opened = [v for v in data.verdicts if v.candidate in shown] or list(data.verdicts[:1])
    said = [wording.routing_sentence(data), wording.against_large(data), *wording.weaker_than(data)]
    return {
        "headline": wording.headline(data),
        "also": [sentence for sentence in said if sentence],
        "linear_note": wording.linear_note(data),
        "to_do": advice.recommendations(data, paths),
        "warnings": advice.warnings(data),
        "cards": (cards := path_cards(data, paths)),
        "same_rows": len({card.evaluation.accuracy.n for card in cards}) == 1,
        "overview_plot": plots.quality_cost_chart(
            data.evaluations, (), chosen=None, ceiling=data.ceiling, name="overview"
        ),
        "promise_state": state,
        "promise_held": held,
        "opened_verdicts": opened,
        "other_verdicts": [v for v in data.verdicts if v not in opened],
    }


def path_cards(data: ReportData, paths: tuple[economics.PathCost, ...]) -> tuple[PathCard, ...]:
    """The chosen path, then small, routed and large, each once and only if measured."""
    cost = {path.candidate: path for path in paths}
    names = dict.fromkeys([data.smallest_passing or "small", "small", "routed", "large"])
    large = cost["large"].monthly_usd(data.requests_per_month) if "large" in cost else None
    cards = []
    for name in names if names.keys() & cost.keys() else list(cost)[:1]:
        evaluation, verdict = data.evaluation(name), data.verdict(name)
        if evaluation is None:
            continue
        monthly = cost[name].monthly_usd(data.requests_per_month)
        cards.append(
            PathCard(
                evaluation=evaluation,
                monthly_usd=monthly,
                saved_usd=None if large is None or name == "large" else large - monthly,
                share_small=1 - evaluation.share("large") if name == "routed" else None,
                passed=None if verdict is None else verdict.passed,
            )
        )
    return tuple(cards)


def evidence(data: ReportData) -> dict[str, Any]:
    """The ladder, the routed curve, confidence, mistakes and what the data allow."""
    ladder_found = candidates.candidate_table(data)
    return {
        "ladder": ladder_found,
        "first_measures": ladder_found.measures[:FIRST_MEASURES],
        "other_measures": ladder_found.measures[FIRST_MEASURES:],
        **_routing(data),
        **_mistakes(data, focus_of(data)),
        **_confidence(data, focus_of(data)),
        "suspects": data.suspects[:FIRST_SUSPECTS],
        "more_suspects": data.suspects[FIRST_SUSPECTS:MOST_SUSPECTS],
        "ceiling_sentence": advice.ceiling_sentence(data),
        "leak_sentence": advice.leak_sentence(data),
        "latency_rows": latency.latency_rows(data),
        "latency_plot": latency.latency_chart(latency.latency_rows(data)),
    }


def focus_of(data: ReportData) -> Evaluation:
    """The evaluation looked at closely: small, else the smallest passing, else the first."""
    return data.evaluation("small") or data.evaluation(data.smallest_passing or "") or data.evaluations[0]


def _mistakes(data: ReportData, focus: Evaluation) -> dict[str, Any]:
    fields = data.part == "field"
    found = parts.part_rows(focus, fields=fields) if data.part else ()
    labels = bool(found) and not fields
    one_label = labels and not focus.rows[0].gold.startswith("[") if focus.rows else False
    return {
        "focus": focus,
        "fields": fields,
        "worst_parts": found[:WORST_PARTS],
        "other_parts": found[WORST_PARTS:MOST_PARTS],
        "n_parts_left_out": max(0, len(found) - MOST_PARTS),
        "confusion": measures.confusion(focus) if one_label else None,
        "pairs": measures.confused_pairs(focus, most=MOST_PAIRS) if one_label else (),
        "grades": measures.grades(focus),
        "n_cases": FIRST_CASES,
        "surest_errors": () if one_label else measures.surest_errors(focus, most=40),
        "n_errors": sum(not row.correct for row in focus.rows),
    }


def _confidence(data: ReportData, focus: Evaluation) -> dict[str, Any]:
    certificate = data.certificate
    calibration = measures.reliability(focus)
    risks = measures.risks(focus)
    kept = None
    if certificate and certificate.issued:
        sure = [row for row in focus.rows if (row.confidence or 0.0) >= certificate.threshold]
        kept = len(sure) / max(1, len(focus.rows))
    promised = certificate.promised_error if certificate else None
    return {
        "calibration": calibration,
        "reliability_plot": plots.reliability_chart(calibration) if calibration else None,
        "risk_plot": plots.risk_coverage_chart(risks, promised_error=promised, kept=kept) if risks else None,
        "field_trust": parts.field_trust(focus),
    }


def money(data: ReportData, paths: tuple[economics.PathCost, ...]) -> dict[str, Any]:
    """Costs, break-even, training and learning curve, and what would change the verdict."""
    large = next((p for p in paths if p.candidate == "large"), None)
    smaller = tuple(p for p in paths if p.candidate in ("small", "routed"))
    smaller = smaller or tuple(p for p in paths if p is not large)
    tokens = {"prompt_tokens": data.large_prompt_tokens, "completion_tokens": data.large_completion_tokens}
    listed = [(price, economics.list_cost_usd_per_1k(price, **tokens)) for price in data.list_prices]
    alone = None
    if large is not None and smaller:
        evaluation = data.evaluation(smaller[0].candidate)
        rate = evaluation.requests_per_s if evaluation else None
        alone = economics.own_machine(data.machine, smaller[0], large, requests_per_s=rate)
    training = data.training
    return {
        "paths": paths,
        "large_path": large,
        "smaller_paths": smaller,
        "drops": economics.price_drops(smaller, large) if large else (),
        "spending_plot": money_plots.spending_chart(smaller, large, requests_per_month=data.requests_per_month)
        if large and smaller
        else None,
        "listed": sorted(listed, key=lambda item: item[1]),
        "own_machine": alone,
        "loss_plot": money_plots.loss_chart(training) if training and training.loss_curve else None,
        "validation_plot": money_plots.validation_chart(training) if training and training.validation_curve else None,
        "learning_plot": learning.learning_chart(data.learning_curve) if data.learning_curve else None,
        "retention_sentences": advice.retention_sentences(data),
        "outlook": outlook(data, paths),
    }


def _routing(data: ReportData) -> dict[str, Any]:
    """The routed curve with its slider; all empty without a certificate."""
    certificate = data.certificate
    curve = _thinned(certificate) if certificate else ()
    chosen = _chosen(certificate, curve) if certificate else None
    return {
        "curve": curve,
        "chosen": chosen,
        "slider": _slider(data, curve),
        "routed_plot": plots.quality_cost_chart(data.evaluations, curve, chosen=chosen) if curve else None,
    }


def _thinned(certificate: Certificate) -> tuple[ThresholdPoint, ...]:
    """At most 120 points of the curve, the ends and the chosen one among them."""
    curve = certificate.curve
    every = max(1, -(-len(curve) // MOST_CURVE_POINTS))
    return tuple(
        point
        for i, point in enumerate(curve)
        if i % every == 0 or i == len(curve) - 1 or point.threshold == certificate.threshold
    )


def _chosen(certificate: Certificate, curve: Sequence[ThresholdPoint]) -> int | None:
    """Place of the certified threshold in the curve; its strict end if none is certified."""
    if not curve:
        return None
    if not certificate.issued:
        return 0
    distance = [abs(point.threshold - certificate.threshold) for point in curve]
    return distance.index(min(distance))


def _slider(data: ReportData, curve: Sequence[ThresholdPoint]) -> list[dict[str, Any]]:
    """For each threshold its place in the chart and the texts to show."""
    if not curve or data.certificate is None:
        return []
    frame = plots.quality_frame(data.evaluations, curve)
    n = max(1, data.certificate.n_labels)
    return [
        {
            "x": frame.x.at(point.routed_cost_usd_per_1k),
            "y": frame.y.at(point.routed_accuracy),
            "threshold": "none kept" if point.threshold > 1 else f"{point.threshold:.3f}",
            "kept": percent(point.n_kept / n),
            "errors": f"{point.errors_kept:,} of {point.n_kept:,}",
            "bound": percent(point.error_bound, digits=2),
            "accuracy": percent(point.routed_accuracy),
            "cost": usd(point.routed_cost_usd_per_1k),
        }
        for point in curve
    ]
