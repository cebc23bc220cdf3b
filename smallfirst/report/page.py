"""The report as one offline HTML file: a first screen for a manager, the evidence below it.

The template escapes all outside text, and a content policy inside the page lets nothing load and no other script run.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from smallfirst.files import write_atomically
from smallfirst.pricing.money import format_usd
from smallfirst.report import economics, formats, json_differences, sections
from smallfirst.report.data import ReportData
from smallfirst.routing.certificate.guarantee import describe_limit

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
    json_differences.differences_between,
    json_differences.differing_fields,
    json_differences.compare_fields,
    formats.question_and_context,
    formats.path_explanation,
    economics.break_even,
)


def save(data: ReportData, path: Path) -> Path:
    """Write the whole report to `path` as one HTML file and return the path."""
    return write_atomically(path, render(data).encode())


def render(data: ReportData) -> str:
    """Return the whole report as HTML."""
    script = _read("page.js")
    training_usd = data.training.cost_usd if data.training else 0.0
    paths = economics.path_costs(data.evaluations, training_usd=training_usd, drafts=data.focus.candidate)
    return render_page(
        "page.html",
        data=data,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **sections.first_screen(data, paths),
        **sections.evidence(data),
        **sections.money(data, paths),
    )


def render_page(template: str, **values: Any) -> str:
    """Return one of the templates as HTML with the report's style, its filters and these values, escaped."""
    return _environment().get_template(template).render(css=_read("page.css"), **values)


def _read(name: str) -> str:
    return resources.files("smallfirst.report").joinpath("templates", name).read_text(encoding="utf-8")


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
