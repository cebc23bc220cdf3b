"""`smallfirst give-back`: let the large model answer a task again."""

from __future__ import annotations

import click

from smallfirst.cli.options import verb


@verb("smallfirst give-back tickets")
@click.argument("task")
def give_back(task: str) -> None:
    """Let the large model answer all of a task's requests again."""
    from smallfirst.gateway.takeover.takeovers import TakeOvers

    file = TakeOvers()
    file.put(file.get(task).moved("shadow", cause="person", why="given back by a person", share=0.0))
    click.echo(f"{task}: the large model answers; the small one is compared with it")
