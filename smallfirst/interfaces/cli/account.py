"""Verbs for the books: the ledger, the signed statement of a month, and the machines of a month."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smallfirst.base.progress import format_table
from smallfirst.interfaces.cli.options import (
    JSON,
    LEDGER,
    MOMENT,
    OF_TASK,
    PATH,
    TASK,
    TASKS,
    VerbGroup,
    in_utc,
    load_task_file,
    read_ledger,
    verb,
)
from smallfirst.models.pricing import format_usd
from smallfirst.models.stages import Answerer

if TYPE_CHECKING:
    from smallfirst.deployment.billing.saved import Amount
    from smallfirst.deployment.billing.statement import Statement
    from smallfirst.ledger.ledger import Ledger
    from smallfirst.path.project.task_file import TaskFile

POSITIVE = click.FloatRange(min=0, min_open=True)
_KINDS = ("answers", "attempts", "audits", "feedback", "states", "expenses")


@click.group(
    cls=VerbGroup,
    examples=(
        "smallfirst ledger export november.csv --since 2026-11-01 --until 2026-12-01",
        "smallfirst ledger copy ledger.db postgresql://smallfirst@localhost/smallfirst",
    ),
)
def ledger() -> None:
    """Look after the ledger: see, export, copy.

    Every answer of `serve` and of taken-over tasks is a row of it, and so are audits, verdicts and expenses.
    """


@ledger.command()
@OF_TASK
@LEDGER
@JSON
def info(as_json: bool) -> None:
    """Show where the ledger is and what it holds: entries by kind, first and last day, their cost."""
    with read_ledger() as opened:
        days, kinds = opened.sums(by=("kind",), every="day"), opened.sums(by=("kind",))
    first, last = (days[0].period, days[-1].period) if days else ("", "")
    if as_json:
        found = {one.kind: {"n": one.n, "cost_usd": one.cost_usd, "n_without_row": one.n_without_row} for one in kinds}
        click.echo(json.dumps({"ledger": opened.place, "from": first, "to": last, "kinds": found}, indent=2))
        return
    click.echo(f"{opened.place}: " + (f"{first} to {last} (UTC)" if days else "no entry yet"))
    heading = ("kind", "entries", "cost", "refused, without a row")
    rows = [(one.kind, f"{one.n:,}", f"${one.cost_usd:,.4f}", f"{one.n_without_row:,}") for one in kinds]
    click.echo("\n".join(format_table([heading, *rows], right=range(1, 4))))


@ledger.command()
@click.argument("out", type=PATH)
@click.option("--since", type=MOMENT, help="First day, in UTC. Default: the first there is.")
@click.option("--until", type=MOMENT, help="First day that is left out. Default: none.")
@click.option("--kind", type=click.Choice(_KINDS), default=_KINDS[0], show_default=True)
@OF_TASK
@LEDGER
def export(out: Path, since: datetime | None, until: datetime | None, kind: str) -> None:
    """Write rows to OUT, a CSV file, without the texts that they are about."""
    from smallfirst.ledger.database import KINDS

    with read_ledger() as opened:
        count = opened.export(KINDS[kind], out, since=in_utc(since), until=in_utc(until))
    click.echo(f"{count:,} {kind} in {out}")


@ledger.command()
@click.argument("source")
@click.argument("target")
def copy(source: str, target: str) -> None:
    """Copy everything from one ledger into another, empty one: each a path or postgresql://USER@HOST/DATABASE.

    Stop the servers first. All is copied or nothing.
    """
    from smallfirst.ledger.ledger import Ledger

    places = [place if "://" in place else Path(place) for place in (source, target)]
    with read_ledger(places[0]) as old, closing(Ledger(places[1])) as new:
        for table, count in old.copy_to(new).items():
            click.echo(f"  {table:<14} {count:>12,}")
        click.echo(f"{old.place} is copied\nnext: smallfirst serve --ledger {new.place}")


@verb(
    "smallfirst statement --month 2026-11",
    "smallfirst statement tickets invoices --month 2026-11 --out november",
    "smallfirst statement --public-key",
    "smallfirst statement --verify november --public-key ORPGEAuRr…=",
)
@TASKS
@click.option("--month", help="Year and month in UTC, such as 2026-11. Default: the present one, so far.")
@click.option("--out", type=PATH, help="Folder to write. Default: statement-MONTH.")
@click.option(
    "--verify", type=PATH, metavar="FOLDER", help="Check a statement instead of making one; needs no network."
)
@click.option(
    "--public-key",
    is_flag=False,
    flag_value="own",
    metavar="[KEY]",
    help="Print the public key of this installation; with --verify, the key that must have signed.",
)
@LEDGER
@JSON
def statement(
    task_yamls: tuple[Path, ...],
    month: str | None,
    out: Path | None,
    verify: Path | None,
    public_key: str | None,
    as_json: bool,
) -> None:
    """Write or check the signed statement of a month.

    It says what was asked, promised, proven, paid and saved, with a row for each request: a page, CSV and JSON, signed
    with the key in the state folder. TASK may be the name of a task that was taken over. Without one it is about all
    that the ledger of this folder holds.
    """
    from smallfirst.base.paths import home, state_of
    from smallfirst.deployment.billing import statement as statements
    from smallfirst.deployment.billing.saved import machine_costs
    from smallfirst.path.project.task_file import read_task_file
    from smallfirst.traffic.gateway.page import learnt_folders
    from smallfirst.traffic.task_source import TakeOvers

    taken = {} if verify else learnt_folders(TakeOvers().read())
    learnt = {path: taken[str(path)] for path in task_yamls if str(path) in taken and not path.exists()}
    named = [learnt.get(path, path) for path in task_yamls]
    files = [read_task_file(path) for path in named or ([Path()] if Path("task.yaml").exists() else [])]
    with ExitStack() as opened:
        if files and not learnt:  # the ledger of a server is that of its first task
            opened.enter_context(state_of(files[0].folder))
        if public_key == "own":
            public_key = statements.public_text(statements.signing_key(home()))
            if not verify:
                click.echo(public_key)
                return
        if verify:
            found, signer, page = statements.verify(verify, public_key=public_key or "")
            said = [f"{verify}: {found.figures.n:,} rows, all figures and the signature fit together", page]
            if not public_key:
                said.append(f"signed by {signer}, the key in the folder: it is the sender's if the sender's")
                said.append("  smallfirst statement --public-key  prints the same")
        else:
            rows = opened.enter_context(read_ledger())
            month = month or datetime.now(UTC).strftime("%Y-%m")
            out, (since, until) = out or Path(f"statement-{month}"), statements.month_of(month)
            machines = [
                one
                for file in (files if named else files[:1])
                for one in machine_costs(rows, file.prices, since, until, task=file.name if named else None)
            ]
            found = statements.make(
                rows,
                month,
                out,
                key=statements.signing_key(home()),
                tasks=[file.name for file in files] if named else (),
                evaluated=_evaluated(files, rows),
                machines=machines,
            )
            said = [f"wrote {out / statements.PAGE}, rows.csv and statement.json"]
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(_statement_in_words(found)))
    click.echo("\n".join(said), err=as_json)


def _evaluated(files: Sequence[TaskFile], rows: Ledger) -> dict[str, Amount]:
    """Return the large model's cost in the last evaluation of each task, where there is one."""
    from smallfirst.deployment.billing.saved import evaluated_costs
    from smallfirst.traffic.gateway.page import learnt_folders
    from smallfirst.traffic.task_source import TakeOvers

    served: dict[str, Path | None] = {one.task: None for one in rows.sums(by=("task",)) if one.task}
    named = {file.name: file.folder for file in files}
    return evaluated_costs(served | learnt_folders(TakeOvers().read()) | named)


def _statement_in_words(found: Statement) -> list[str]:
    bill = [(what, f"{n:,}", format_usd(usd)) for what, (n, usd) in found.bill.items()]
    bill += [("own machines, time no row carries", "", format_usd(found.uncharged_usd))] if found.machines else []
    bill += [("all", f"{found.figures.n:,}", format_usd(found.total_usd))]
    lines = [f"{found.month}{' so far' if found.so_far else ''} (UTC)", *(f"  {row}" for row in format_table(bill))]
    if found.n_cost_unknown:
        lines.append(f"  and {found.n_cost_unknown:,} with work whose cost nobody knows")
    lines += [f"{one.task}: {one.in_words}" for one in found.figures.savings]
    lines += [f"{one.task}: {one.in_words}" for one in found.figures.audits if one.n_missing]
    lines += [f"after training, labels and idle machines: {found.net_usd}"] if found.net_usd else []
    return [*lines, found.verdict]


@verb("smallfirst plan tickets", "smallfirst plan tickets --requests-per-month 30e6 --peak 5 --requests-per-s 120")
@TASK
@click.option("--requests-per-month", type=POSITIVE, help="Such as 30e6. Default: task.yaml's requests_per_month.")
@click.option("--peak", type=POSITIVE, default=3.0, show_default=True, help="Busiest hour over the mean rate.")
@click.option("--headroom", type=click.FloatRange(min=1), default=2.0, show_default=True, help="Spare at that hour.")
@click.option("--requests-per-s", type=POSITIVE, help="Of one machine. Default: the last evaluation's.")
@click.option("--machine", default="", help="Its name under prices.machines. Default: prices.machine.")
@JSON
def plan(
    task_yaml: Path, requests_per_month: float | None, requests_per_s: float | None, machine: str, peak: float,
    headroom: float, as_json: bool,
) -> None:  # fmt: skip
    """Say how many machines a month takes, or to keep the API.

    Machines: requests a second in the busiest hour times the headroom, over what one machine answers. That figure is
    the last run's evaluation of what goes live, which knows neither HTTP nor the ledger, or your load test's.
    """
    from smallfirst.base.errors import ConfigError
    from smallfirst.path.project.run_folder import RunFolder
    from smallfirst.path.report.formats import count, percent
    from smallfirst.path.report.measures import HOURS_PER_MONTH, large_part_usd_per_1k

    file = load_task_file(task_yaml)
    price, run, source = file.prices.machine_named(machine), RunFolder.latest(file.name), "--requests-per-s"
    if requests_per_s is None:
        name = run.live_candidate()
        evaluation = run.evaluation(name, "test")
        requests_per_s = evaluation.requests_per_s if evaluation else None
        source = f'the last evaluation of "{name}", without HTTP and ledger'
    if requests_per_s is None:
        raise ConfigError(
            "no rate of this task's model is known",
            hint="smallfirst plan task.yaml --requests-per-s N   what a load test of yours showed",
        )
    month = requests_per_month or file.requests_per_month
    peak_per_s = month / (HOURS_PER_MONTH * 3600) * peak
    machines = max(1, math.ceil(peak_per_s * headroom / requests_per_s))
    rent_usd = machines * price.usd_per_hour * HOURS_PER_MONTH
    routed, large = run.evaluation("routed", "test"), run.evaluation("large", "test")
    share_large = routed.share(Answerer.LARGE) if routed else 0.0
    large_usd = month * large_part_usd_per_1k(routed, large) / 1000 if routed and large else 0.0
    api_usd = month * large.cost_usd_per_1k / 1000 if large else None
    keep_api = api_usd is not None and api_usd <= rent_usd + large_usd
    if as_json:
        told = {
            "requests_per_month": month, "requests_per_s": requests_per_s, "source": source, "peak_per_s": peak_per_s,
            "machines": machines, "machines_usd": rent_usd, "share_large": share_large,
            "large_usd": large_usd if large else None, "api_usd": api_usd, "keep_api": keep_api,
        }  # fmt: skip
        click.echo(json.dumps(told, indent=2))
        return
    number = f"{count(machines)} machine{'s' * (machines > 1)}"
    used = percent(peak_per_s / requests_per_s / machines, digits=0)
    click.echo(f"{month:,.0f} requests a month, {peak_per_s:,.3g}/s in the busiest hour")
    click.echo(f"{number}, {used} used in that hour: one answers {requests_per_s:,.3g}/s ({source})")
    if api_usd is None:
        click.echo(f"{format_usd(rent_usd)} a month of rent; the large model was not evaluated, its bill is unknown")
        return
    bill = f"{format_usd(large_usd)} the large model's for {percent(share_large)} of the requests"
    click.echo(f"{format_usd(rent_usd)} a month of rent, {bill}; it alone would bill {format_usd(api_usd)}")
    click.echo("verdict: keep the API" if keep_api else f"verdict: take {number}")
