"""`smallfirst tasks`: what was found, learnt and taken over, what it costs and what it saves."""

from __future__ import annotations

from pathlib import Path

import click

from smallfirst.cli.options import JSON, PATH, verb
from smallfirst.progress import format_table


@verb("smallfirst tasks", "smallfirst tasks --json")
@click.argument("discovered", type=PATH, default=Path("discovered"), metavar="[FOLDER]")
@click.option("--days", type=click.IntRange(1), default=30, show_default=True, help="Days to count over.")
@JSON
def tasks(discovered: Path, days: int, as_json: bool) -> None:
    """List the tasks of the traffic: bill, state, promise, savings.

    FOLDER is where `discover` wrote its tasks. A running proxy shows the same on its page at /, and as JSON under
    /v1/smallfirst/tasks.
    """
    from smallfirst.gateway.task_table import HEADING, read_task_table
    from smallfirst.paths import state_folder

    table = read_task_table(state_folder(), discovered, days=days)
    if as_json:
        click.echo(table.model_dump_json(indent=2))
        return
    if not table.tasks:
        click.echo("no task yet\nnext: smallfirst discover   finds them in what was captured, or in logs")
        return
    click.echo("\n".join(format_table([HEADING, *(line.cells for line in table.tasks)])))
    for line in table.tasks:
        if line.state == "stepped back":
            click.echo(f"{line.task} has stepped back: {line.why}")
