"""Verbs that train: the whole path, the candidates alone, and their learning curve."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from smallfirst.cli.options import (
    JSON,
    PATH,
    RESUME,
    RUN,
    TASK,
    TYPED_TASK,
    WORKERS,
    load_project,
    load_run,
    load_task_file,
    show_steps,
    verb,
)
from smallfirst.errors import SmallfirstError
from smallfirst.progress import Progress


@verb(
    "smallfirst run tickets",
    "smallfirst run tickets --minutes 20",
    "smallfirst run tickets --resume",
    "smallfirst run tickets --json --report report.html",
)
@TASK
@JSON
@RESUME
@click.option("--report", "report_path", type=PATH, help="Copy the report here.")
@click.option("--despite-check", is_flag=True, help="Run although the check of the rows says NO.")
@click.option("--minutes", type=float, help="How long the run may take, instead of minutes in task.yaml.")
@click.option("--max-usd", type=float, help="Most that the large model's answers may cost, instead of large.max_usd.")
@WORKERS
def run(
    task_yaml: Path,
    as_json: bool,
    resume: bool,
    report_path: Path | None,
    despite_check: bool,
    minutes: float | None,
    max_usd: float | None,
    workers: int,
) -> None:
    """Train, measure, gate, promote, certify and report."""
    from smallfirst.pipeline import run as pipeline
    from smallfirst.pipeline.summary import RunError, RunSummary, format_summary

    error: BaseException | None
    ctx = click.get_current_context()
    try:
        file = load_task_file(task_yaml)
        if max_usd is not None:
            file = file.with_max_usd(max_usd)
        if minutes is not None:
            file = file.with_minutes(minutes)
        outcome, error = pipeline.try_run(
            file,
            task=ctx.meta[TYPED_TASK],
            progress=Progress(),
            resume=resume,
            despite_check=despite_check,
            workers=workers,
        )
    except SmallfirstError as wrong:
        outcome, error = RunSummary(task=str(task_yaml), error=RunError.of(wrong)), wrong
    if report_path and outcome.report:
        shutil.copyfile(outcome.report, report_path)
        outcome = outcome.model_copy(update={"report": str(report_path)})
    if as_json:
        click.echo(outcome.model_dump_json(indent=2))
    if error is not None:
        raise error
    if not as_json:
        click.echo(f"\n{format_summary(outcome)}\nreport: {outcome.report}\n")
        show_steps(outcome.next_steps)


@verb("smallfirst train tickets", "smallfirst train tickets --resume", "smallfirst train tickets --workers 4")
@TASK
@RESUME
@WORKERS
def train(task_yaml: Path, resume: bool, workers: int) -> None:
    """Fine-tune the small model and fit the linear ones."""
    from smallfirst.pipeline.train import train_stage

    project = load_project(task_yaml)._replace(n_workers=workers)
    run_folder = train_stage(project, resume=resume)
    click.echo(f"run {run_folder.path.name}\nnext: smallfirst evaluate {task_yaml}")


@verb("smallfirst curve tickets")
@TASK
@RUN
@click.option("--small", is_flag=True, help="Fine-tune on parts of the rows as well: takes as long as some runs.")
@WORKERS
def curve(task_yaml: Path, run_name: str | None, small: bool, workers: int) -> None:
    """Measure how accuracy grows with rows, and what more would bring."""
    from smallfirst.pipeline.learning_curve import forecast_lines, measure_curve

    project, run_folder = load_run(task_yaml, run_name)
    project = project._replace(n_workers=workers)
    measured = measure_curve(project, run_folder, all_candidates=small)
    for line in forecast_lines(measured, len(project.rows.train)):
        click.echo(line)
