"""`smallfirst take-over`: let a learnt task's small model answer."""

from __future__ import annotations

import click

from smallfirst.cli.options import verb


@verb("smallfirst take-over tickets --share 0.1", "smallfirst take-over tickets --share 1")
@click.argument("task")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.1, show_default=True)
@click.option("--accept-format", is_flag=True, help="Also where recorded answers do not come back byte for byte.")
def take_over(task: str, share: float, accept_format: bool) -> None:
    """Let the small model answer a share of a learnt task's requests.

    Of that share it answers what its certificate covers, in the large model's format; everything else passes. A
    running proxy follows within a second.
    """
    from smallfirst.gateway.takeover.takeovers import TakeOvers

    file = TakeOvers()
    taken = file.get(task)
    if not accept_format:
        taken.check_format()
    file.put(taken.moved("live", cause="person", why="taken over by a person", share=share))
    click.echo(f"{task}: the small model answers what its certificate covers, in {share:.0%} of the requests")
    click.echo(f"promise: {taken.promise}")
    click.echo(f"next: smallfirst give-back {task}   lets the large model answer everything again")
