"""The content of each section of the page: records, drawn charts and sentences, all computed before the template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from smallfirst.evaluation.results import Evaluation
from smallfirst.pricing.money import format_usd
from smallfirst.project.candidate_registry import FINE_TUNED
from smallfirst.report import economics, measures, sentences
from smallfirst.report.candidates import candidate_table
from smallfirst.report.charts import (
    learning_chart,
    quality_cost_chart,
    quality_frame,
    reliability_chart,
    risk_coverage_chart,
)
from smallfirst.report.data import ReportData
from smallfirst.report.formats import percent
from smallfirst.report.per_class import part_rows
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.certificate.summary import ThresholdPoint

N_WORST_PARTS = 10
MAX_PARTS = 200
MAX_CURVE_POINTS = 120
MAX_SUSPECTS = 100
N_FIRST_SUSPECTS = 8
N_FIRST_CASES = 10
MAX_CASES = 40
MAX_CONFUSED_PAIRS = 8
N_FIRST_MEASURES = 2
MAX_CARDS = 4


class PathCard(NamedTuple):
    """One of the paths on the first screen."""

    evaluation: Evaluation
    monthly_usd: float
    saved_usd: float | None
    """USD a month less than the large path; None for the large path itself or where it was not measured."""
    share_small: float | None
    """Share of requests that stay small; None but for the routed path."""
    passed: bool | None
    state: str
    """What the gate or the certificate says of it; empty if neither does."""


def first_screen(data: ReportData, paths: tuple[economics.PathCost, ...]) -> dict[str, Any]:
    """Return the verdict, what to do, the paths to choose from, and quality against cost."""
    opened = [v for v in data.verdicts if v.candidate == data.focus.candidate] or list(data.verdicts[:1])
    cards = path_cards(data, paths)
    return {
        "headline": sentences.headline(data),
        "comparisons": sentences.comparisons(data),
        "lighter_note": sentences.lighter_note(data),
        "recommendations": sentences.recommendations(data, paths),
        "warnings": [*sentences.warnings(data)],
        "cards": cards,
        "same_rows": len({card.evaluation.accuracy.n for card in cards}) == 1,
        "overview_plot": quality_cost_chart(
            data.evaluations, (), chosen=None, agreement=data.self_agreement, name="overview"
        ),
        "opened_verdicts": opened,
        "other_verdicts": [v for v in data.verdicts if v not in opened],
        "tried": data.trials,
    }


def path_cards(data: ReportData, paths: tuple[economics.PathCost, ...]) -> tuple[PathCard, ...]:
    """Return the paths to choose from, at most four, the one that the page looks into first."""
    cost = {path.candidate: path for path in paths}
    routed, focus = data.evaluation("routed"), data.focus.candidate
    shown = "routed" if routed and (routed.share("large") or data.served == "routed") else None
    wanted = [focus, shown, "large", data.smallest_passing, FINE_TUNED]
    found = list(dict.fromkeys(name for name in (*wanted, *(v.candidate for v in data.verdicts)) if name in cost))
    large = cost["large"].monthly_usd(data.requests_per_month) if "large" in cost else None
    cards = []
    for name in sorted(found[:MAX_CARDS], key=lambda name: (name != focus, name == "large", name == "routed")):
        evaluation, (passed, state) = data.evaluation(name), _state(data, name)
        if evaluation is None:
            continue
        monthly = cost[name].monthly_usd(data.requests_per_month)
        cards.append(
            PathCard(
                evaluation=evaluation,
                monthly_usd=monthly,
                saved_usd=None if large is None or name == "large" else large - monthly,
                share_small=sum(evaluation.stays_small) / len(evaluation.rows) if name == "routed" else None,
                passed=passed,
                state=state,
            )
        )
    return tuple(cards)


def _state(data: ReportData, name: str) -> tuple[bool | None, str]:
    """Return whether a path meets what was asked of it, and in words; None where it does, and nothing goes live."""
    verdict, outcome = data.verdict(name), data.outcome
    if verdict is not None:
        passed = verdict.passed
        state = "meets the requirements" if passed else "misses a requirement"
    elif name == "routed" and data.promised:
        passed, state = True, "under a promise"
    else:
        live = outcome is not None and name == data.served and bool(outcome.live_as)
        return (True, "live") if live else (None, "")
    if outcome is not None and passed and not outcome.goes_live:
        return None, "meets a default gate that task.yaml does not set" if outcome.gate_line else "does not go live"
    if outcome is not None and name == data.served and outcome.live_as:
        return passed, f"live, {state}" if not outcome.signed else f"live by a signature, {state}"
    return passed, state


def evidence(data: ReportData) -> dict[str, Any]:
    """Return the candidates, the routed curve, confidence, mistakes and what the data allow."""
    table = candidate_table(data)
    focus = data.focus
    return {
        "table": table,
        "first_measures": table.measures[:N_FIRST_MEASURES],
        "other_measures": table.measures[N_FIRST_MEASURES:],
        **_routing(data),
        **_mistakes(data, focus),
        **_confidence(data, focus),
        "suspects": data.suspects[:N_FIRST_SUSPECTS],
        "more_suspects": data.suspects[N_FIRST_SUSPECTS:MAX_SUSPECTS],
        "leak_sentence": sentences.leak_sentence(data),
        "latency_rows": tuple(map(measures.latency_row, data.evaluations)),
    }


def _mistakes(data: ReportData, focus: Evaluation) -> dict[str, Any]:
    fields = data.part == "field"
    parts = part_rows(focus, fields=fields)
    one_label = bool(parts and focus.rows) and not fields and not focus.rows[0].gold.startswith("[")
    return {
        "focus": focus,
        "fields": fields,
        "worst_parts": parts[:N_WORST_PARTS],
        "other_parts": parts[N_WORST_PARTS:MAX_PARTS],
        "n_parts_left_out": max(0, len(parts) - MAX_PARTS),
        "confusion": measures.confusion(focus) if one_label else None,
        "pairs": measures.confused_pairs(focus, limit=MAX_CONFUSED_PAIRS) if one_label else (),
        "grades": measures.grades(focus),
        "n_cases": N_FIRST_CASES,
        "surest_errors": () if one_label else measures.surest_errors(focus)[:MAX_CASES],
        "n_errors": sum(not row.correct for row in focus.rows),
    }


def _confidence(data: ReportData, focus: Evaluation) -> dict[str, Any]:
    certificate = data.certificate
    reliability, risks = measures.reliability(focus), measures.risks(focus)
    accepted = None
    if certificate and certificate.issued:
        sure = [row for row in focus.rows if (row.confidence or 0.0) >= certificate.threshold]
        accepted = len(sure) / max(1, len(focus.rows))
    max_error = certificate.guarantee.max_error if certificate else None
    return {
        "calibration": reliability,
        "reliability_plot": reliability_chart(reliability, focus.candidate) if reliability else None,
        "risk_plot": risk_coverage_chart(risks, focus.candidate, max_error=max_error, accepted=accepted)
        if risks
        else None,
    }


def money(data: ReportData, paths: tuple[economics.PathCost, ...]) -> dict[str, Any]:
    """Return costs, break-even, training and learning curve, and what would change the verdict."""
    large = next((p for p in paths if p.candidate == "large"), None)
    return {
        "paths": paths,
        "large_path": large,
        "learning_plot": learning_chart(data.learning_curve) if data.learning_curve else None,
        "outlook": sentences.outlook(data, paths),
    }


def _routing(data: ReportData) -> dict[str, Any]:
    certificate = data.certificate
    curve = _thinned(certificate) if certificate else ()
    chosen = _chosen(certificate, curve) if certificate else None
    return {
        "curve": curve,
        "chosen": chosen,
        "slider": _slider(data, curve),
        "routed_plot": quality_cost_chart(data.evaluations, curve, chosen=chosen) if curve else None,
    }


def _thinned(certificate: Certificate) -> tuple[ThresholdPoint, ...]:
    """Return at most about 120 points of the curve, the ends and the chosen one among them."""
    curve = certificate.curve
    every = max(1, -(-len(curve) // MAX_CURVE_POINTS))
    return tuple(
        point
        for i, point in enumerate(curve)
        if i % every == 0 or i == len(curve) - 1 or point.threshold == certificate.threshold
    )


def _chosen(certificate: Certificate, curve: Sequence[ThresholdPoint]) -> int | None:
    """Return the index of the certified threshold in the curve; the strict end if none is certified."""
    if not curve or not certificate.issued:
        return 0 if curve else None
    distance = [abs(point.threshold - certificate.threshold) for point in curve]
    return distance.index(min(distance))


def _slider(data: ReportData, curve: Sequence[ThresholdPoint]) -> list[dict[str, Any]]:
    if not curve or data.certificate is None:
        return []
    frame = quality_frame(data.evaluations, curve)
    n = max(1, data.certificate.n_labels)
    return [
        {
            "x": frame.x.at(point.routed_cost_usd_per_1k),
            "y": frame.y.at(point.routed_accuracy),
            "threshold": "none kept" if point.threshold > 1 else f"{point.threshold:.3f}",
            "kept": percent(point.n_accepted / n),
            "errors": f"{point.n_errors:,} of {point.n_accepted:,}",
            "bound": percent(point.error_bound, digits=2),
            "accuracy": percent(point.routed_accuracy),
            "cost": format_usd(point.routed_cost_usd_per_1k),
        }
        for point in curve
    ]
