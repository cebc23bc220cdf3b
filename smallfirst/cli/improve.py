"""Verbs that make better models: labels, label errors, harvested rows, challengers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from smallfirst.cli.options import (
    JSON,
    LEDGER,
    PATH,
    TASK,
    load_project,
    load_task_file,
    named_in_task,
    show,
    verb,
)
from smallfirst.errors import ConfigError
from smallfirst.progress import Progress


@verb("smallfirst label tickets new.jsonl --cap-usd 2", "smallfirst label tickets new.jsonl --yes --min-confidence 0.9")
@TASK
@click.argument("rows", type=PATH)
@click.option("--out", type=PATH, default="labelled.jsonl", show_default=True)
@click.option("--cap-usd", type=float, help="Most that the answers may cost in all.")
@click.option("--yes", is_flag=True, help="Accept the estimated cost without a cap.")
@click.option("--min-confidence", type=float, default=0.0, show_default=True, help="Least confidence of a kept answer.")
@click.option("--teacher", type=PATH, help="Folder of a model of this task.")
@JSON
def label(task_yaml: Path, rows: Path, as_json: bool, **settings: Any) -> None:
    """Have the large model label ROWS under a price cap.

    Those it is sure of become training rows. Run again, it asks only what is missing.
    """
    from smallfirst.improvement.labelling import LabelOptions
    from smallfirst.improvement.labelling import label as label_stage
    from smallfirst.records import parse_record

    options = parse_record(LabelOptions, settings, where="options")
    show(label_stage(load_task_file(task_yaml), rows, options=options, progress=Progress()), as_json)


@verb("smallfirst suspects tickets --out suspects.jsonl")
@TASK
@click.option("--out", type=PATH, default="suspects.jsonl", show_default=True)
def suspects(task_yaml: Path, out: Path) -> None:
    """List training rows whose label is probably wrong.

    They are written to a file for a person to fill in.
    """
    from smallfirst.pipeline.diagnostics import export_suspects

    project = load_project(task_yaml)
    if n := export_suspects(project, out):
        click.echo(f"{n} probable label errors in {out}: fill in `answer` where the given one is wrong")
        setting = f"relabels: {named_in_task(out, project.file)}"
        click.echo(f"then add  {setting}  under data: in task.yaml\nnext: smallfirst run {task_yaml}")
    else:
        click.echo(f"no probable label errors: label more rows\nnext: smallfirst run {task_yaml}")


@verb("smallfirst harvest tickets --since 2026-01-31")
@TASK
@click.option("--out", type=PATH, default="harvested.jsonl", show_default=True)
@LEDGER
@click.option(
    "--since", help="Only answers given or judged from then on, such as 2026-01-31 or 2026-01-31T12:00+01:00."
)
@JSON
def harvest(task_yaml: Path, out: Path, since: str | None, as_json: bool) -> None:
    """Turn served answers into training rows.

    Only those that somebody judged, or that the large model gave.
    """
    from smallfirst.improvement.harvest import harvest as harvest_stage

    found = harvest_stage(load_project(task_yaml), out=out, since=_moment(since) if since else None)
    show(found, as_json)
    if found.n_rows and not as_json:
        click.echo(f"next: smallfirst challenge {task_yaml} --rows {out}")


@verb("smallfirst challenge tickets", "smallfirst challenge tickets --rows harvested.jsonl")
@TASK
@click.option("--rows", type=PATH, default="harvested.jsonl", show_default=True)
@JSON
def challenge(task_yaml: Path, rows: Path, as_json: bool) -> None:
    """Train a challenger with harvested rows.

    It becomes champion only if it passes the gate and is shown more accurate than the champion on the same test rows;
    each challenge of a champion has to show more than the one before. Exit code 3 if the gate said no.
    """
    from smallfirst.improvement.challenge import challenge as challenge_stage

    project = load_project(task_yaml)
    found = challenge_stage(project, rows)
    show(found, as_json)
    if found.won and not as_json:
        named = named_in_task(rows, project.file)
        click.echo(f"next: name {named} under data.harvested in task.yaml, so that later runs learn from it as well")
    if found.version is None:
        click.get_current_context().exit(3)


def _moment(text: str) -> datetime:
    """A moment in ISO 8601; UTC where no zone is named. Raises ConfigError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--since {text!r} is no date or time in ISO 8601", hint="--since 2026-01-31") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
