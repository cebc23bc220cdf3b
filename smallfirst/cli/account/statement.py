"""`smallfirst statement`: the signed statement of a month, and its check."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smallfirst.cli.options import JSON, LEDGER, PATH, TASKS, verb
from smallfirst.pricing.money import format_usd
from smallfirst.progress import Progress, format_table

if TYPE_CHECKING:
    from smallfirst.billing.saved import Amount
    from smallfirst.billing.statement import Statement
    from smallfirst.project.task_file import TaskFile
    from smallfirst.serving.ledger.ledger import Ledger


@verb(
    "smallfirst statement --month 2026-11",
    "smallfirst statement tickets invoices --month 2026-11 --out november",
    "smallfirst statement --public-key",
    "smallfirst statement --verify november --public-key ORPGEAuRr…=",
    "smallfirst statement --verify november --against-ledger",
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
@click.option("--against-ledger", is_flag=True, help="With --verify: compare each row with the ledger as well.")
@LEDGER
@JSON
def statement(
    task_yamls: tuple[Path, ...],
    month: str | None,
    out: Path | None,
    verify: Path | None,
    public_key: str | None,
    against_ledger: bool,
    as_json: bool,
) -> None:
    """Write or check the signed statement of a month.

    It says what was asked, promised, proven, paid and saved, with a row for each request: a page, CSV and JSON, signed
    with the key in the state folder. Without a TASK it is about all that the ledger of this folder holds.
    """
    from smallfirst.billing import statement as statements
    from smallfirst.billing.machines import machine_costs
    from smallfirst.billing.statement_page import write_page
    from smallfirst.improvement.harvest.evidence import open_ledger
    from smallfirst.paths import home, state_of
    from smallfirst.project.task_file import read_task_file

    files = [read_task_file(path) for path in task_yamls or ([Path()] if Path("task.yaml").exists() else [])]
    with ExitStack() as opened:
        if files:  # the ledger of a server is that of its first task
            opened.enter_context(state_of(files[0].folder))
        own = statements.signing_key(home()) if public_key == "own" or not verify else None
        if own and public_key == "own":
            public_key = statements.public_text(own)
            if not verify:
                click.echo(public_key)
                return
        rows = opened.enter_context(closing(open_ledger())) if against_ledger or not verify else None
        done = opened.enter_context(Progress().bar("rows", None))
        if verify:
            found, signer = statements.verify(verify, public_key=public_key or "", ledger=rows, progress=done)
            shown = f"{verify}: {found.figures.n:,} rows, all figures and the signature fit together"
            shown += ", and with the ledger" if rows else ""
            if not public_key:
                shown += f"\nsigned by {signer}; its sender's  smallfirst statement --public-key  must print the same"
        else:
            assert own
            assert rows
            month = month or datetime.now(UTC).strftime("%Y-%m")
            since, until = statements.month_of(month)
            found = statements.make(
                rows,
                month,
                out := out or Path(f"statement-{month}"),
                key=own,
                tasks=[file.name for file in files] if task_yamls else (),
                evaluated=_evaluated(files, rows),
                machines=[
                    one
                    for file in (files if task_yamls else files[:1])
                    for one in machine_costs(rows, file.prices, since, until, task=file.name if task_yamls else None)
                ],
                progress=done,
            )
            shown = f"wrote {write_page(found, out, statements.public_text(own))}, rows.csv and statement.json"
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join((*_in_words(found), shown)))


def _evaluated(files: Sequence[TaskFile], rows: Ledger) -> dict[str, Amount]:
    """Return the large model's cost in the last evaluation of each task, where there is one."""
    from smallfirst.billing.saved import evaluated_cost
    from smallfirst.paths import state_of

    found = {one.task: evaluated_cost(one.task) for one in rows.sums(by=("task",)) if one.task}
    for file in files:
        with state_of(file.folder):
            found[file.name] = evaluated_cost(file.name)
    return {task: cost for task, cost in found.items() if cost}


def _in_words(found: Statement) -> list[str]:
    bill = [(what, f"{n:,}", format_usd(usd)) for what, (n, usd) in found.bill.items()]
    bill += [("own machines, time no row carries", "", format_usd(found.uncharged_usd))] if found.machines else []
    bill += [("all", f"{found.figures.n:,}", format_usd(found.total_usd))]
    lines = [f"{found.month}{' so far' if found.so_far else ''} (UTC)", *(f"  {row}" for row in format_table(bill))]
    if found.n_cost_unknown:
        lines.append(f"  and {found.n_cost_unknown:,} with work whose cost nobody knows")
    lines += [f"{one.task}: {one.in_words}" for one in found.figures.savings]
    return [*lines, *([f"after training, labels and idle machines: {found.net_usd}"] if found.net_usd else [])]
