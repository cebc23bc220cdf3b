"""The report as one offline HTML file: a first screen for a manager, the evidence below it.

The template escapes all outside text, and a content policy inside the page lets nothing load and no script run.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from smallfirst.base.files import write_atomically
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.risk_coverage import risk_coverage_curve
from smallfirst.models.pricing.charge import format_usd
from smallfirst.path.project.candidate_registry import FINE_TUNED
from smallfirst.path.report import charts, economics, formats, measures, mistakes, sentences
from smallfirst.path.report.data import ReportData
from smallfirst.routing.certificate.guarantee import describe_limit

N_WORST_PARTS, MAX_PARTS = 10, 200
N_FIRST_SUSPECTS, MAX_SUSPECTS = 8, 100
N_FIRST_CASES, MAX_CASES = 10, 40
MAX_CONFUSED_PAIRS, N_FIRST_MEASURES, MAX_CARDS = 8, 2, 4

FILTERS = (
    format_usd,
    formats.percent,
    formats.count,
    formats.ms,
    formats.rate,
    formats.breakable,
    formats.p_value,
    formats.measure_name,
    formats.path_name,
    formats.capitalize_first,
    formats.signed,
    describe_limit,
)
FUNCTIONS = (
    mistakes.differences,
    mistakes.differing_fields,
    formats.question_and_context,
    formats.path_explanation,
    economics.break_even,
)


def save(data: ReportData, path: Path) -> Path:
    """Write the whole report to `path` as one HTML file and return the path."""
    return write_atomically(path, render(data).encode())


def render(data: ReportData) -> str:
    """Return the whole report as HTML."""
    training_usd = data.training.cost_usd if data.training else 0.0
    paths = economics.path_costs(data.evaluations, training_usd=training_usd, drafts=data.focus.candidate)
    values = {**_first_screen(data, paths), **_evidence(data), **_mistakes(data), **_confidence(data)}
    return render_page("page.html", data=data, **values)


def render_page(template: str, **values: Any) -> str:
    """Return one of the templates as HTML with the report's style, its filters and these values, escaped."""
    return _environment().get_template(template).render(css=_read("page.css"), **values)


def _read(name: str) -> str:
    return resources.files("smallfirst.path.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update({function.__name__: function for function in FILTERS})
    environment.globals.update({function.__name__: function for function in FUNCTIONS})
    return environment


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


def path_cards(data: ReportData, paths: tuple[economics.PathCost, ...]) -> list[PathCard]:
    """Return the paths to choose from, at most four, the one that the page looks into first."""
    monthly = {path.candidate: path.monthly_usd(data.requests_per_month) for path in paths}
    routed, focus = data.evaluation("routed"), data.focus.candidate
    shown = "routed" if routed and (routed.share("large") or data.served == "routed") else None
    wanted = [focus, shown, "large", data.smallest_passing, FINE_TUNED, *(v.candidate for v in data.verdicts)]
    found = {name: e for name in dict.fromkeys(wanted) if (e := data.evaluation(name))}
    names = sorted([*found][:MAX_CARDS], key=lambda name: (name != focus, name == "large", name == "routed"))
    return [
        PathCard(
            found[name],
            monthly[name],
            None if "large" not in monthly or name == "large" else monthly["large"] - monthly[name],
            sum(found[name].stays_small) / len(found[name].rows) if name == "routed" else None,
            *_state(data, name),
        )
        for name in names
        if name is not None
    ]


def _state(data: ReportData, name: str) -> tuple[bool | None, str]:
    """Return whether a path meets what was asked of it, and in words; None where it does, and nothing goes live."""
    verdict, outcome = data.verdict(name), data.outcome
    live = outcome is not None and name == data.served and bool(outcome.live_as)
    if verdict is not None:
        passed, state = verdict.passed, "meets the requirements" if verdict.passed else "misses a requirement"
    elif name == "routed" and data.promised:
        passed, state = True, "under a promise"
    else:
        return (True, "live") if live else (None, "")
    if outcome is not None and passed and not outcome.goes_live:
        return None, "meets a default gate that task.yaml does not set" if outcome.gate_line else "does not go live"
    signed = " by a signature" if outcome is not None and outcome.signed else ""
    return passed, f"live{signed}, {state}" if live else state


def _first_screen(data: ReportData, paths: tuple[economics.PathCost, ...]) -> dict[str, Any]:
    opened = [v for v in data.verdicts if v.candidate == data.focus.candidate] or list(data.verdicts[:1])
    cards = path_cards(data, paths)
    return {
        "heading": data.outcome.heading if data.outcome else sentences.UNDECIDED,
        "proof": data.outcome.proof if data.outcome else "smallfirst calibrate task.yaml   decides it.",
        "against_large": sentences.against_large(data),
        "recommendations": [*sentences.recommendations(data, paths)],
        "warnings": [*sentences.warnings(data)],
        "cards": cards,
        "same_rows": len({card.evaluation.accuracy.n for card in cards}) == 1,
        "overview_plot": charts.quality_cost_chart(data.evaluations, agreement=data.self_agreement, name="overview"),
        "opened_verdicts": opened,
        "other_verdicts": [v for v in data.verdicts if v not in opened],
        "paths": paths,
        "large_path": next((p for p in paths if p.candidate == "large"), None),
    }


def _evidence(data: ReportData) -> dict[str, Any]:
    reference, pairs = measures.paired_candidates(data)
    names = [*dict.fromkeys(name for evaluation in data.evaluations for name in evaluation.measures)]
    certificate = data.certificate
    curve = certificate.curve if certificate else ()
    # The certified threshold; the strict end of the curve if none is certified.
    at = min(curve, key=lambda point: abs(point.threshold - certificate.threshold)) if certificate and curve else None
    if certificate and curve and not certificate.issued:
        at = curve[0]
    return {
        "reference": reference if pairs else None,
        "pairs": pairs,
        "first_measures": names[:N_FIRST_MEASURES],
        "other_measures": names[N_FIRST_MEASURES:],
        "at_threshold": at,
        "routed_plot": charts.quality_cost_chart(data.evaluations, curve, chosen=at) if curve else None,
        "suspects": data.suspects[:N_FIRST_SUSPECTS],
        "more_suspects": data.suspects[N_FIRST_SUSPECTS:MAX_SUSPECTS],
        "leak_sentence": sentences.leak_sentence(data),
        "learning_plot": charts.learning_chart(data.learning_curve) if data.learning_curve else None,
        "outlook": [*sentences.outlook(data)],
    }


def _mistakes(data: ReportData) -> dict[str, Any]:
    focus, fields = data.focus, data.part == "field"
    parts = mistakes.part_rows(focus, fields=fields)
    one_label = bool(parts and focus.rows) and not fields and not focus.rows[0].gold.startswith("[")
    return {
        "focus": focus,
        "fields": fields,
        "worst_parts": parts[:N_WORST_PARTS],
        "other_parts": parts[N_WORST_PARTS:MAX_PARTS],
        "n_parts_left_out": max(0, len(parts) - MAX_PARTS),
        "confused": mistakes.confused_pairs(focus, limit=MAX_CONFUSED_PAIRS) if one_label else (),
        "n_cases": N_FIRST_CASES,
        "surest_errors": () if one_label else mistakes.surest_errors(focus)[:MAX_CASES],
        "n_errors": sum(not row.correct for row in focus.rows),
    }


def _confidence(data: ReportData) -> dict[str, Any]:
    focus, certificate = data.focus, data.certificate
    reliability = measures.reliability(focus)
    risks = risk_coverage_curve([row.confidence for row in focus.rows], [row.correct for row in focus.rows])
    accepted = max_error = risk_plot = None
    if certificate:
        max_error = certificate.guarantee.max_error
        sure = [row for row in focus.rows if (row.confidence or 0.0) >= certificate.threshold]
        accepted = len(sure) / max(1, len(focus.rows)) if certificate.issued else None
    if risks:
        risk_plot = charts.risk_coverage_chart(risks, focus.candidate, max_error=max_error, accepted=accepted)
    return {
        "calibration": reliability,
        "reliability_plot": charts.reliability_chart(reliability, focus.candidate) if reliability else None,
        "risk_plot": risk_plot,
    }
