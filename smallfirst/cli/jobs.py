"""`smallfirst jobs`: the fine-tunes as a table, one of them with its events, stopped, or gone on with.

Looking brings back a job whose process died, so a table may start processes. Nothing heavy is imported for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from smallfirst.interfaces.databricks.training_run import TrainingRun

JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
NAMES = click.argument("names", nargs=-1, required=True)
COLUMNS = ("NAME", "STATUS", "BASE", "PROGRESS", "AGE")


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def jobs(ctx: click.Context, as_json: bool) -> None:
    """List fine-tunes, newest first; those whose process was killed go on."""
    if ctx.invoked_subcommand:
        return
    from smallfirst.interfaces.databricks import foundation_model as fm

    runs = list(fm.list(limit=None))
    if as_json:
        click.echo(json.dumps([told(run) for run in runs], indent=2))
    elif runs:
        click.echo("\n".join(table(runs)))
    else:
        click.echo("no job yet: foundation_model.create(…) submits one")


@jobs.command()
@click.argument("name")
@click.option("--follow", is_flag=True, help="Print events as they happen, until the job has ended.")
@JSON
def show(name: str, follow: bool, as_json: bool) -> None:
    """Show one job: what was asked for, where its files are, what happened."""
    from smallfirst.interfaces.databricks.training_run import TrainingRun, training_events
    from smallfirst.jobs import queue

    job = queue.find(name)
    run = TrainingRun.of(job)
    events = training_events(job.events)
    if as_json:
        happened = [{"type": e.type, "time": e.time.isoformat(), "message": e.message} for e in events]
        click.echo(json.dumps({**told(run), "events": happened}, indent=2))
        return
    click.echo("\n".join(described(run)) + "\n")
    if follow:
        from smallfirst.interfaces.databricks import foundation_model as fm

        events = fm.get_events(name, follow=True)
    else:
        click.echo("\n".join(f"{e.time.astimezone():%Y-%m-%d %H:%M:%S}  {e.type:<18}{e.message}" for e in events))
    if events[-1].type in ("FAILED", "STOPPED"):
        click.echo(f"next: smallfirst jobs resume {name}")


@jobs.command()
@NAMES
def cancel(names: tuple[str, ...]) -> None:
    """Ask jobs to stop; each does so within one step and can be resumed."""
    from smallfirst.jobs import queue

    for job in [queue.find(name, restart_dead=False) for name in names]:
        stopped = queue.cancel(job)
        click.echo(f"{job.name}: asked to stop" if stopped else f"{job.name}: has ended already, {job.state}")


@jobs.command()
@NAMES
def resume(names: tuple[str, ...]) -> None:
    """Have jobs that stopped, failed or died go on from their last checkpoint."""
    from smallfirst.jobs import queue
    from smallfirst.jobs.spec import user_name

    for job in [queue.find(name, restart_dead=False) for name in names]:
        goes_on = queue.resume(job, by=user_name())
        click.echo(f"{job.name}: goes on" if goes_on else f"{job.name}: has a living process, {job.state}")


def told(run: TrainingRun) -> dict[str, Any]:
    """The run as plain values for a program; times in ISO 8601, the share done in [0, 1]."""
    return {
        "name": run.name,
        "status": str(run.status),
        "base": run.model,
        "progress": run.progress,
        "eta": run.estimated_end_time.isoformat() if run.estimated_end_time else None,
        "created_at": run.created_at.isoformat() if run.created_at else None,
        "created_by": run.created_by,
        "ended_at": run.completed_at.isoformat() if run.completed_at else None,
        "register_to": run.register_to,
        "model_version": run.model_version,
        "mlflow_run_id": run.run_id,
        "folder": run.save_folder,
        "says": run.details,
    }


def table(runs: Sequence[TrainingRun]) -> list[str]:
    """A line of headings and one a run, in columns as wide as their widest value."""
    rows = [COLUMNS, *((run.name, str(run.status), run.model or "", _progress(run), _age(run)) for run in runs)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    return ["  ".join(f"{value:<{width}}" for value, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def described(run: TrainingRun) -> list[str]:
    """What was asked for and what became of it, a line each; what is not known is left out."""
    version = f"/{run.model_version}" if run.model_version else " (not registered yet)"
    lines = {
        "name": run.name,
        "status": f"{run.status} {_progress(run)}".rstrip(" -"),
        "base": run.model,
        "rows": run.train_data_path,
        "training": f"{run.training_duration}, learning rate {run.learning_rate:g}",
        "model": f"{run.register_to}{version}",
        "submitted": f"{run.created_at.astimezone():%Y-%m-%d %H:%M:%S} by {run.created_by}" if run.created_at else None,
        "MLflow": f"{run.experiment_path}, run {run.run_id}" if run.run_id else None,
        "folder": run.save_folder,
    }
    return [f"{name:<10}{value}" for name, value in lines.items() if value]


def _progress(run: TrainingRun) -> str:
    if run.progress is None:
        return "-"
    left = f", {run.formatted_eta} left" if run.formatted_eta else ""
    return f"{run.progress:.0%}{left}"


def _age(run: TrainingRun) -> str:
    from smallfirst.interfaces.databricks.training_run import format_duration

    return format_duration(datetime.now(UTC) - run.created_at) if run.created_at else "-"
