"""Verbs that train: the candidates, and their learning curve."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from smallfirst.cli.options import RESUME, RUN, TASK, load_project, load_run, verb


@verb("smallfirst train tickets", "smallfirst train tickets --resume", "smallfirst train tickets --workers 4 --shard")
@TASK
@RESUME
@click.option(
    "--workers", type=click.IntRange(1), default=1, help="Processes that train the language model together, by Ray."
)
@click.option("--shard", is_flag=True, help="Divide weights and optimizer state among them (FSDP2).")
def train(task_yaml: Path, resume: bool, workers: int, shard: bool) -> None:
    """Fine-tune the small model and fit the linear ones."""
    from smallfirst.pipeline.run import train_stage
    from smallfirst.project.run_folder import RunFolder
    from smallfirst.training.distributed import torchrun

    with torchrun.joined() if torchrun.is_launched() else nullcontext(True) as leads:
        if not leads:
            return
        project = load_project(task_yaml)._replace(n_workers=workers, shard=shard)
        resume = resume or (torchrun.is_restarted() and RunFolder.unfinished(project.file.name) is not None)
        run_folder = train_stage(project, resume=resume)
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
