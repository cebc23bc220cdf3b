"""Verbs that train: the candidates, and their learning curve."""

from __future__ import annotations

from pathlib import Path

import click

from smallfirst.cli.options import RESUME, RUN, TASK, load_project, load_run, verb


@verb("smallfirst train tickets", "smallfirst train tickets --resume")
@TASK
@RESUME
def train(task_yaml: Path, resume: bool) -> None:
    """Fine-tune the small model and fit the linear ones."""
    from smallfirst.pipeline.run import train_stage

    run_folder = train_stage(load_project(task_yaml), resume=resume)
    click.echo(f"run {run_folder.path.name}\nnext: smallfirst evaluate {task_yaml}")


@verb("smallfirst curve tickets")
@TASK
@RUN
@click.option("--small", is_flag=True, help="Fine-tune on parts of the rows as well: takes as long as some runs.")
def curve(task_yaml: Path, run_name: str | None, small: bool) -> None:
    """Measure how accuracy grows with rows, and what more would bring."""
    from smallfirst.pipeline.learning_curve import forecast_lines, measure_curve

    project, run_folder = load_run(task_yaml, run_name)
    measured = measure_curve(project, run_folder, all_candidates=small)
    for line in forecast_lines(measured, len(project.rows.train)):
        click.echo(line)
