"""`smallfirst ledger`: what it holds."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import click

from smallfirst.cli.options import JSON, LEDGER, OF_TASK, VerbGroup


@click.group(cls=VerbGroup, examples=("smallfirst ledger info",))
def ledger() -> None:
    """Look after the ledger: see what it holds.

    Every answer of `serve` and of taken-over tasks is a row of it, and so are audits, verdicts and expenses.
    """


@ledger.command()
@OF_TASK
@LEDGER
@JSON
def info(ledger: Path | None, as_json: bool) -> None:
    """Show where the ledger is and what it holds: entries by kind, first and last day, their cost."""
    from smallfirst.improvement.harvest.evidence import open_ledger

    with closing(open_ledger(ledger)) as opened:
        days = opened.sums(by=("kind",), every="day")
        kinds = opened.sums(by=("kind",))
    first, last = (days[0].period, days[-1].period) if days else ("", "")
    found = {one.kind: {"n": one.n, "cost_usd": one.cost_usd} for one in kinds}
    if as_json:
        click.echo(json.dumps({"ledger": opened.place, "from": first, "to": last, "kinds": found}, indent=2))
        return
    click.echo(f"{opened.place}: " + (f"{first} to {last} (UTC)" if found else "no entry yet"))
    for kind, one in found.items():
        click.echo(f"  {kind:<14} {one['n']:>12,.0f}  ${one['cost_usd']:,.4f}")
