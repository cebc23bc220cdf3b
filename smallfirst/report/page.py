"""The report as one offline HTML file: a first screen for a manager, the evidence below it.

Everything is drawn when the page is made, so it reads the same in ten years, on paper and
without JavaScript; the only script moves a point along a curve and opens what is folded before printing. All text that
came from outside is escaped by the template, and a content policy inside the page lets nothing load and no other
script run.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2

from smallfirst.files import write_atomically
from smallfirst.report import economics, excerpts, formats, json_differences, sections
from smallfirst.report.charts import plots
from smallfirst.report.data import (
    ListPrice,
    OutOfScopeRequests,
    PromiseHeld,
    ReportData,
    TrainingSummary,
)
from smallfirst.routing.certificate.guarantee import describe_limit as limit_in_words

__all__ = [
    "ListPrice",
    "OutOfScopeRequests",
    "PromiseHeld",
    "ReportData",
    "TrainingSummary",
    "render",
    "save",
]


def save(data: ReportData, path: Path) -> Path:
    """The path written to: the whole report as one HTML file."""
    return write_atomically(path, render(data).encode())


def render(data: ReportData) -> str:
    """The whole report as HTML."""
    script = _packaged("page.js")
    training_usd = data.training.cost_usd if data.training else 0.0
    paths = economics.path_costs(data.evaluations, training_usd=training_usd)
    return (
        _templates()
        .get_template("template.html")
        .render(
            data=data,
            css=_packaged("page.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            excerpt=excerpts.Excerpts(),
            **sections.first_screen(data, paths),
            **sections.evidence(data),
            **sections.money(data, paths),
        )
    )


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
        usd=formats.usd,
        percent=formats.percent,
        count=formats.count,
        ms=formats.ms,
        rate=formats.rate,
        breakable=formats.breakable,
        accurate=formats.accurate,
        p_value=formats.p_value,
        measure_name=formats.measure_name,
        path_name=formats.path_name,
        first_up=formats.first_up,
        signed=formats.signed,
        limit_in_words=limit_in_words,
    )
    environment.globals.update(
        roles=formats.ROLES,
        interval_bar=plots.interval_bar,
        small_reliability=plots.reliability_sparkline,
        between=json_differences.between,
        differing=json_differences.differing,
        side_by_side=json_differences.side_by_side,
        question_and_context=excerpts.question_and_context,
    )
    return environment
