"""`smallfirst sweep`: other settings of the fine-tune, side by side on a Ray cluster."""

from __future__ import annotations

from pathlib import Path

import click

from smallfirst.cli.options import TASK, load_project, verb


@verb("smallfirst sweep tickets", "smallfirst sweep tickets --trials 20 --workers 4")
@TASK
@click.option("--trials", type=click.IntRange(2), default=8, show_default=True, help="How many settings are tried.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="How many are tried at once.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws other settings.")
def sweep(task_yaml: Path, trials: int, workers: int, seed: int) -> None:
    """Try other settings of the fine-tune at once and stop poor ones."""
    from smallfirst.pipeline.ladder.sweep import sweep_stage

    for line in sweep_stage(load_project(task_yaml), n_trials=trials, n_workers=workers, seed=seed):
        click.echo(line)
