"""`smallfirst ledger`: what it holds; rows to a file, old rows away, everything to another database."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from smallfirst.cli.options import JSON, LEDGER, OF_TASK, PATH, VerbGroup

_DAY = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M"])
_KINDS = ("answers", "attempts", "audits", "drafts", "feedback", "states", "expenses")


@click.group(
    cls=VerbGroup,
    examples=(
        "smallfirst ledger export november.parquet --since 2026-11-01 --until 2026-12-01",
        "smallfirst ledger copy ledger.db postgresql://smallfirst@localhost/smallfirst",
    ),
)
def ledger() -> None:
    """Look after the ledger: see, export, expire, copy.

    Every answer of `serve` and of taken-over tasks is a row of it, and so are audits, verdicts and expenses.
    """


@ledger.command()
@OF_TASK
@LEDGER
@JSON
def info(as_json: bool) -> None:
    """Show where the ledger is and what it holds: entries by kind, first and last day, their cost."""
    from smallfirst.improvement.harvest.evidence import open_ledger

    with closing(open_ledger()) as opened:
        days = opened.sums(by=("kind",), every="day")
        kinds = opened.sums(by=("kind",))
    first, last = (days[0].period, days[-1].period) if days else ("", "")
    found = {one.kind: {"n": one.n, "cost_usd": one.cost_usd, "n_without_row": one.n_without_row} for one in kinds}
    if as_json:
        click.echo(json.dumps({"ledger": opened.place, "from": first, "to": last, "kinds": found}, indent=2))
        return
    click.echo(f"{opened.place}: " + (f"{first} to {last} (UTC)" if found else "no entry yet"))
    for one in kinds:
        beyond = f"  {one.n_without_row:,} refused ones have no row" if one.n_without_row else ""
        click.echo(f"  {one.kind:<14} {one.n:>12,}  ${one.cost_usd:,.4f}{beyond}")


@ledger.command()
@click.argument("out", type=PATH)
@click.option("--since", type=_DAY, help="First day, in UTC. Default: the first there is.")
@click.option("--until", type=_DAY, help="First day that is left out. Default: none.")
@click.option("--kind", type=click.Choice(_KINDS), default=_KINDS[0], show_default=True)
@OF_TASK
@LEDGER
def export(out: Path, since: datetime | None, until: datetime | None, kind: str) -> None:
    """Write rows to OUT, a .csv or .parquet file, without the texts that they are about."""
    from smallfirst.improvement.harvest.evidence import open_ledger
    from smallfirst.serving.ledger.transfer import KINDS
    from smallfirst.serving.ledger.transfer import export as export_rows

    first, end = (moment and moment.replace(tzinfo=UTC) for moment in (since, until))
    with closing(open_ledger()) as opened:
        count = export_rows(opened, KINDS[kind], out, since=first, until=end)
    click.echo(f"{count:,} {kind} in {out}")


@ledger.command()
@click.option("--keep-rows-days", "days", type=click.IntRange(min=1), required=True)
@click.option("--rows-to", type=PATH, metavar="FOLDER", help="Write them to CSV files in this folder first.")
@OF_TASK
@LEDGER
def expire(days: int, rows_to: Path | None) -> None:
    """Delete rows of requests that are older; their sums, audits, states and expenses stay."""
    from smallfirst.improvement.harvest.evidence import open_ledger

    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with closing(open_ledger()) as opened:
        count = opened.expire_rows(today - timedelta(days=days), export_to=rows_to)
    click.echo(f"{count:,} rows deleted" + (f", after they were written to {rows_to}" if rows_to and count else ""))


@ledger.command()
@click.argument("source")
@click.argument("target")
def copy(source: str, target: str) -> None:
    """Copy everything from one ledger into another, empty one: each a path or postgresql://USER@HOST/DATABASE.

    Stop the servers first. All is copied or nothing.
    """
    from smallfirst.improvement.harvest.evidence import open_ledger
    from smallfirst.serving.ledger.ledger import Ledger
    from smallfirst.serving.ledger.transfer import copy as copy_all

    places = [place if "://" in place else Path(place) for place in (source, target)]
    with closing(open_ledger(places[0])) as old, closing(Ledger(places[1])) as new:
        for table, count in copy_all(old, new).items():
            click.echo(f"  {table:<14} {count:>12,}")
        click.echo(f"{old.place} is copied\nnext: smallfirst serve --ledger {new.place}")
