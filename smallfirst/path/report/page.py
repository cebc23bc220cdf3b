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
from smallfirst.base.stats.intervals import wilson
from smallfirst.data.copies import min_clean_rows
from smallfirst.measuring.calibration import expected_calibration_error, risk_coverage_curve
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.models.pricing import format_usd
from smallfirst.models.stages import Answerer
from smallfirst.path.project.candidate_registry import FINE_TUNED
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.report import formats, measures
from smallfirst.path.report.charts import risk_coverage_chart
from smallfirst.path.report.data import ReportData, report_data
from smallfirst.registry import runs
from smallfirst.routing.certificate.certificate import describe_limit

N_WORST_PARTS, MAX_PARTS = 10, 200
N_FIRST_CASES, MAX_CASES = 10, 40
MAX_PASSAGES = 12
"""Shown of a document."""
N_FIRST_MEASURES, MAX_CARDS = 2, 4

FILTERS = (
    format_usd,
    formats.percent,
    formats.count,
    formats.ms,
    formats.breakable,
    formats.measure_name,
    formats.path_name,
    formats.capitalize_first,
    formats.signed,
    formats.accurate,
    describe_limit,
)
FUNCTIONS = (
    measures.differing_fields,
    formats.question_and_context,
    formats.path_explanation,
    min_clean_rows,
)


@shown_as("writing the report")
def report_stage(project: Project, run_folder: RunFolder) -> Path:
    """Write the report of everything measured so far to the run folder and to MLflow; return its path."""
    path = save(report_data(project, run_folder), run_folder.path / "report.html")
    tracked = runs.resume_run(run_folder.mlflow_run_id())
    tracked.log_artifact(path)
    tracked.finish()
    project.progress.log(f"report: {path}")
    return path


def save(data: ReportData, path: Path) -> Path:
    """Write the whole report to `path` as one HTML file and return the path."""
    return write_atomically(path, render(data).encode())


def render(data: ReportData) -> str:
    """Return the whole report as HTML."""
    return render_page("page.html", data=data, **_first_screen(data), **_evidence(data), **_focus(data))


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
    cost: measures.PathCost
    share_small: float | None
    """Share of requests that stay small; None but for the routed path."""
    passed: bool | None
    state: str
    """What the gate or the certificate says of it; empty if neither does."""


def path_cards(data: ReportData, costs: tuple[measures.PathCost, ...]) -> list[PathCard]:
    """Return the paths to choose from, at most four, the one that the page looks into first."""
    routed, focus, cost = data.evaluation("routed"), data.focus.candidate, {one.candidate: one for one in costs}
    shown = "routed" if routed and (routed.share(Answerer.LARGE) or data.served == "routed") else None
    wanted = [focus, shown, "large", data.gate.winner, FINE_TUNED, *(v.candidate for v in data.gate.verdicts)]
    found = {name: e for name in dict.fromkeys(wanted) if name and (e := data.evaluation(name))}
    names = sorted([*found][:MAX_CARDS], key=lambda name: (name != focus, name == "large", name == "routed"))
    shares = {"routed": sum(routed.stays_small) / len(routed.rows)} if routed else {}
    if data.outcome is not None and data.outcome.counted != "requests" and data.outcome.share_small:
        shares["routed"] = data.outcome.share_small.value
    return [PathCard(found[name], cost[name], shares.get(name), *_state(data, name)) for name in names]


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


def _first_screen(data: ReportData) -> dict[str, Any]:
    costs, focus = measures.path_costs(data), data.focus
    cards, opened = path_cards(data, costs), data.verdict(focus.candidate)
    kept = [row.correct for row in focus.rows if data.leaks is None or row.key not in data.leaks.keys]
    return {
        "against_large": measures.difference(data, data.served, "large"),
        "cards": cards,
        "clean": wilson(sum(kept), len(kept)),
        "same_rows": len({card.evaluation.accuracy.n for card in cards}) == 1,
        "one_source": len({(e.accuracy.n, e.dataset_fingerprint) for e in data.evaluations}) == 1,
        "opened": opened,
        "other_verdicts": [verdict for verdict in data.gate.verdicts if verdict is not opened],
        "costs": costs,
        "cost_of": {one.candidate: one for one in costs},
    }


def _evidence(data: ReportData) -> dict[str, Any]:
    reference, pairs = measures.paired_candidates(data)
    names = [*dict.fromkeys(name for evaluation in data.evaluations for name in evaluation.measures)]
    certificate = data.certificate
    curve = certificate.report.curve if certificate else ()
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
    }


def _focus(data: ReportData) -> dict[str, Any]:
    """Return mistakes and confidence of the candidate that the page looks into."""
    focus, fields, certificate = data.focus, data.part == "field", data.certificate
    parts = measures.part_rows(focus, fields=fields)
    known = [(row.confidence, row.correct) for row in focus.rows if row.confidence is not None]
    one_label = bool(parts and focus.rows) and not fields and not focus.rows[0].gold.startswith("[")
    risks = risk_coverage_curve([row.confidence for row in focus.rows], [row.correct for row in focus.rows])
    accepted = max_error = None
    if certificate:
        max_error = certificate.guarantee.max_error
        sure = [row for row in focus.rows if (row.confidence or 0.0) >= certificate.threshold]
        accepted = len(sure) / max(1, len(focus.rows)) if certificate.issued else None
    limits = {"max_error": max_error, "accepted": accepted}
    return {
        "focus": focus,
        "fields": fields,
        "documents": measures.marked_documents(focus),
        "worst_parts": parts[:N_WORST_PARTS],
        "other_parts": parts[N_WORST_PARTS:MAX_PARTS],
        "n_parts_left_out": max(0, len(parts) - MAX_PARTS),
        "n_cases": N_FIRST_CASES,
        "n_passages": MAX_PASSAGES,
        "surest_errors": () if one_label else measures.surest_errors(focus)[:MAX_CASES],
        "n_errors": sum(not row.correct for row in focus.rows),
        "n_confident": len(known),
        "ece": expected_calibration_error([said for said, _ in known], [right for _, right in known]),
        "risk_plot": risk_coverage_chart(risks, focus.candidate, **limits) if risks else None,
    }
