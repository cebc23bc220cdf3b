"""`smallfirst report --live`: a served task from its ledger, in words, as JSON or as a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from smallfirst.billing.live import LiveReport, live_report
from smallfirst.billing.saved import evaluated_cost
from smallfirst.cli.options import load_task_file
from smallfirst.files import write_atomically
from smallfirst.improvement.harvest.evidence import open_ledger
from smallfirst.pricing.money import format_usd
from smallfirst.progress import format_table
from smallfirst.report.formats import count, ms, percent
from smallfirst.report.page import render_page

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def show(task_yaml: Path, last: str, *, html: Path | None, as_json: bool) -> None:
    """Print the report on the `last` hours, days or weeks (`24h`, `30d`) and write its page. Raise BadParameter."""
    if not (found := re.fullmatch(r"(\d{1,4})([hdw])", last.strip())):
        raise click.BadParameter(f"{last!r} is no time: write 24h, 7d or 4w", param_hint="--live")
    until, file = datetime.now(UTC), load_task_file(task_yaml)
    since = until - int(found[1]) * _UNITS[found[2]]
    with closing(open_ledger()) as opened:
        report = live_report(opened, file.name, file.prices, since, until, evaluated=evaluated_cost(file.name))
        place = opened.place
    if html is not None:
        write_atomically(html, render_page("live.html", report=report).encode())
    if as_json:
        click.echo(report.model_dump_json(indent=2))
        return
    click.echo("\n".join(in_words(report)))
    if not report.models:
        click.echo(f"in {place}; a server of several tasks writes to the ledger of its first one: --ledger PATH")
    if html is not None:
        click.echo(f"\npage: {html}")


def in_words(report: LiveReport) -> Iterator[str]:
    """Yield the lines of the report for a terminal."""
    yield f"{report.task}, {report.since:%Y-%m-%d %H:%M} to {report.until:%Y-%m-%d %H:%M} UTC\n"
    if not report.models:
        yield "no answers in this time"
        return
    heading = ("stage", "answered by", "answers", "share", "cost", "per 1,000", "p50", "p95")
    rows = [
        (m.stage, m.model, count(m.n), percent(m.share), format_usd(m.cost_usd), format_usd(m.usd_per_1k), ms(m.p50_ms),
         ms(m.p95_ms))
        for m in report.models
    ]  # fmt: skip
    yield from format_table([heading, *rows])
    yield ""
    yield from format_table(report.facts)
    yield f"\n{report.verdict}"
    if report.forecast and (changes := report.forecast.sensitivity):
        yield "\nA month would save, if one thing were different:"
        yield from format_table([(f"  {what}", format_usd(usd)) for what, usd in changes.items()])
