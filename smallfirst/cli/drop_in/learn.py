"""`smallfirst learn`: train and certify a task of recorded traffic."""

from __future__ import annotations

from pathlib import Path

import click

from smallfirst.cli.options import JSON, PATH, verb


@verb("smallfirst learn discovered/tickets", "smallfirst learn discovered/tickets --minutes 20")
@click.argument("folder", type=PATH)
@click.option("--minutes", type=float, help="How long it may take; left out: every candidate is trained to the end.")
@JSON
def learn(folder: Path, minutes: float | None, as_json: bool) -> None:
    """Learn a discovered task from recorded answers and corrections.

    FOLDER is a task that was drafted from traffic. People's right answers in its corrections.jsonl win over the large
    model's. Afterwards the task is in shadow: the small model is compared with the large one, which answers.
    """
    from smallfirst.gateway.takeover.learning import learn as learn_task
    from smallfirst.progress import Progress

    found = learn_task(folder, progress=Progress(), minutes=minutes)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    click.echo("\n".join(found.in_words))
    click.echo(f"next: smallfirst take-over {found.task} --share 0.1")
