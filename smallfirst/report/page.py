"""The report as one offline HTML file: a first screen for a manager, the evidence below it.

Everything is drawn when the page is made, so it reads the same in ten years, on paper and
without JavaScript; the only script moves a point along a curve. All text that came from outside
is escaped by the template, and a content policy inside the page lets nothing load and no other
script run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from smallfirst.evaluation.evaluation import Evaluation
from smallfirst.records import write_atomically
from smallfirst.report import economics, measures, money_plots, plots, wording
from smallfirst.report.contents import (
    ListPrice,
    OpenEnded,
    PromiseHeld,
    ReportData,
    TrainingSummary,
)
from smallfirst.report.outlook import outlook
from smallfirst.routing.certificate import Certificate, ThresholdPoint

__all__ = [
    "ListPrice",
    "OpenEnded",
    "PromiseHeld",
    "ReportData",
    "TrainingSummary",
    "render",
    "save",
]

WORST_CLASSES = 10
MOST_CURVE_POINTS = 120


def save(data: ReportData, path: Path) -> Path:
    """The path written to: the whole report as one HTML file."""
    return write_atomically(path, render(data).encode())


def render(data: ReportData) -> str:
    """The whole report as HTML."""
    script = _packaged("page.js")
    return (
        _templates()
        .get_template("template.html")
        .render(
            data=data,
            css=_packaged("page.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **_first_screen(data),
            **_evidence(data),
            **_money(data),
        )
    )


def _first_screen(data: ReportData) -> dict[str, Any]:
    state, held = wording.promise(data.promise_held, data.certificate)
    shown = {data.smallest_passing, "small"} if data.verdicts else set()
    opened = [v for v in data.verdicts if v.candidate in shown] or list(data.verdicts[:1])
    return {
        "headline": wording.headline(data),
        "linear_note": wording.linear_note(data),
        "routing_sentence": wording.routing_sentence(data),
        "promise_state": state,
        "promise_held": held,
        "opened_verdicts": opened,
        "other_verdicts": [v for v in data.verdicts if v not in opened],
        "ns_differ": len({e.accuracy.n for e in data.evaluations}) > 1,
        "rows_differ": len({e.dataset_fingerprint for e in data.evaluations}) > 1,
        "not_test": [e.candidate for e in data.evaluations if e.split != "test"],
    }


def _evidence(data: ReportData) -> dict[str, Any]:
    focus = _focus(data)
    certificate = data.certificate
    curve = _thinned(certificate) if certificate else ()
    chosen = _chosen(certificate, curve) if certificate else None
    calibration = measures.reliability(focus)
    risks = measures.risk_coverage(focus)
    kept = None
    if certificate and certificate.issued:
        sure = [r for r in focus.rows if (r.confidence or 0.0) >= certificate.threshold]
        kept = len(sure) / len(focus.rows)
    promised = certificate.promised_error if certificate else None
    labelled = measures.answers_are_labels(focus)
    classes = measures.class_rows(focus) if labelled else ()
    return {
        "focus": focus,
        "quality_plot": plots.quality_cost(data.evaluations, curve, chosen=chosen),
        "curve": curve,
        "chosen": chosen,
        "slider": _slider(data, curve),
        "calibration": calibration,
        "reliability_plot": plots.reliability_diagram(calibration) if calibration else None,
        "risk_plot": plots.risk_by_coverage(risks, promised_error=promised, kept=kept) if risks else None,
        "worst_classes": classes[:WORST_CLASSES],
        "other_classes": classes[WORST_CLASSES:],
        "pairs": measures.confused_pairs(focus) if labelled else (),
        "surest_errors": () if labelled else measures.surest_errors(focus),
        "latency_plot": plots.latency_chart(data.evaluations),
        "loss_plot": money_plots.loss_chart(data.training) if data.training and data.training.loss_curve else None,
        "validation_plot": money_plots.validation_chart(data.training)
        if data.training and data.training.validation_curve
        else None,
    }


def _money(data: ReportData) -> dict[str, Any]:
    training_usd = data.training.cost_usd if data.training else 0.0
    paths = economics.path_costs(data.evaluations, training_usd=training_usd)
    large = next((p for p in paths if p.candidate == "large"), None)
    smaller = tuple(p for p in paths if p.candidate in ("small", "routed"))
    smaller = smaller or tuple(p for p in paths if p is not large)
    listed = [
        (
            price,
            economics.list_cost_usd_per_1k(
                price,
                prompt_tokens=data.large_prompt_tokens,
                completion_tokens=data.large_completion_tokens,
            ),
        )
        for price in data.list_prices
    ]
    alone = None
    if large is not None and smaller:
        evaluation = data.evaluation(smaller[0].candidate)
        rate = evaluation.requests_per_s if evaluation else None
        alone = economics.own_machine(data.machine, smaller[0], large, requests_per_s=rate)
    return {
        "paths": paths,
        "large_path": large,
        "smaller_paths": smaller,
        "drops": economics.price_drops(smaller, large) if large else (),
        "spending_plot": money_plots.spending(smaller, large, requests_per_month=data.requests_per_month)
        if large and smaller
        else None,
        "listed": sorted(listed, key=lambda item: item[1]),
        "own_machine": alone,
        "outlook": outlook(data, paths),
    }


def _focus(data: ReportData) -> Evaluation:
    """The evaluation looked at closely: small, else the smallest passing, else the first."""
    return data.evaluation("small") or data.evaluation(data.smallest_passing or "") or data.evaluations[0]


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
            "threshold": f"{point.threshold:.3f}",
            "kept": wording.percent(point.n_kept / n),
            "errors": f"{point.errors_kept:,} of {point.n_kept:,}",
            "bound": wording.percent(point.error_bound, digits=2),
            "accuracy": wording.percent(point.routed_accuracy),
            "cost": wording.usd(point.routed_cost_usd_per_1k),
        }
        for point in curve
    ]


def _packaged(name: str) -> str:
    return resources.files("smallfirst.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_packaged),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        usd=wording.usd,
        percent=wording.percent,
        count=wording.count,
        points=wording.points,
        ms=wording.ms,
        rate=wording.rate,
        breakable=wording.breakable,
    )
    environment.globals.update(roles=wording.ROLES, interval_bar=plots.interval_bar)
    return environment
