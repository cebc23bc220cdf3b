"""`smallfirst jobs`: list fine-tunes, create one, show one with its events, cancel or resume them.

Looking restarts a job whose process died, so listing may start processes. Nothing heavy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallfirst.base.progress import format_duration, format_table
from smallfirst.interfaces.cli.options import JSON, Verb, VerbGroup

if TYPE_CHECKING:
    from smallfirst.interfaces.jobs.job_folder import JobFolder

NAMES = click.argument("names", nargs=-1, required=True)
DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
COLUMNS = ("NAME", "STATUS", "BASE", "PROGRESS", "AGE")


@click.group(
    cls=VerbGroup, invoke_without_command=True, examples=("smallfirst jobs", "smallfirst jobs show NAME --follow")
)
@JSON
@click.pass_context
def jobs(ctx: click.Context, as_json: bool) -> None:
    """List fine-tuning jobs; create, show, cancel or resume them.

    The newest stands first. Those whose process was killed are restarted.
    """
    if ctx.invoked_subcommand:
        return
    from smallfirst.interfaces.jobs import queue

    found = queue.all_jobs()
    if as_json:
        click.echo(json.dumps([as_values(job) for job in found], indent=2))
    elif found:
        click.echo("\n".join(table(found)))
    else:
        click.echo("no job yet: smallfirst jobs create ROWS CATALOG.SCHEMA.MODEL submits one")


@jobs.command(cls=Verb, examples=("smallfirst jobs create texts/ main.texts.tales --follow",))
@click.argument("rows")
@click.argument("register_to")
@click.option("--base", default=DEFAULT_BASE, show_default=True, help="Base model: name or folder.")
@click.option("--duration", default="3ep", show_default=True, help="3ep: epochs, 300ba: batches.")
@click.option("--max-tokens", default=512, show_default=True, help="Longest row; text is cut into windows of so many.")
@click.option("--follow", is_flag=True, help="Print events as they happen, until the job has ended.")
def create(rows: str, register_to: str, base: str, duration: str, max_tokens: int, follow: bool) -> None:
    """Fine-tune a model on conversations, or on texts to continue, and register it as REGISTER_TO.

    ROWS of text alone (a folder of .txt files, JSON lines of `text`) make a model that continues text; rows of
    messages, or of prompt and response, make a chat model. No task, gate or router is involved.
    """
    from smallfirst.base.records import parse_record
    from smallfirst.data.sources.load import load_rows
    from smallfirst.interfaces.jobs import queue
    from smallfirst.interfaces.jobs.job_folder import (
        JobRows,
        JobSpec,
        new_job_name,
        read_rows,
        require_training_packages,
        user_name,
        utc_now,
    )
    from smallfirst.registry.versions import check_name
    from smallfirst.training.config import TrainConfig

    require_training_packages()
    check_name(register_to)
    config = parse_record(TrainConfig, {"duration": duration, "max_seq_tokens": max_tokens}, where="options")
    train = load_rows(rows)
    spec = JobSpec(
        name=new_job_name(base),
        recipe="text" if train.examples[0].shape == "text" else "chat",
        model=base,
        train_rows=str(Path(rows).absolute()) if Path(rows).exists() else rows,
        register_to=register_to,
        experiment=register_to,
        config=config,
        created_by=user_name(),
        created_at=utc_now(),
    )
    job = queue.submit(spec, JobRows(read_rows(spec.train_rows, spec), None))
    click.echo(f"{job.name}: submitted")
    if not follow:
        click.echo(f"next: smallfirst jobs show {job.name} --follow")
        return
    for event in queue.follow(job):
        click.echo(event.in_one_line)
    if job.result:
        name = register_to.rpartition(".")[2]
        click.echo(f"next: smallfirst serve --model {name}={job.result.reference}")


@jobs.command()
@click.argument("name")
@click.option("--follow", is_flag=True, help="Print events as they happen, until the job has ended.")
@JSON
def show(name: str, follow: bool, as_json: bool) -> None:
    """Show one job: its specification, its files and its events."""
    from smallfirst.interfaces.jobs import queue

    job = queue.find(name)
    if as_json:
        events = [{"type": event.kind, "time": event.at, "message": event.message} for event in job.events]
        click.echo(json.dumps({**as_values(job), "events": events}, indent=2))
        return
    for what, value in as_values(job).items():
        if value is not None:
            click.echo(f"{what:<15}{value}")
    click.echo()
    for event in queue.follow(job) if follow else job.events:
        click.echo(event.in_one_line)
    if job.state in ("FAILED", "STOPPED"):
        click.echo(f"next: smallfirst jobs resume {name}")


@jobs.command()
@NAMES
def cancel(names: tuple[str, ...]) -> None:
    """Ask jobs to stop; each does so within one step and can be resumed."""
    from smallfirst.interfaces.jobs import queue

    for job in [queue.find(name, restart_dead=False) for name in names]:
        stopped = queue.cancel(job)
        click.echo(f"{job.name}: asked to stop" if stopped else f"{job.name}: can no longer be stopped, {job.state}")


@jobs.command()
@NAMES
def resume(names: tuple[str, ...]) -> None:
    """Resume jobs that stopped, failed or died from their last checkpoint."""
    from smallfirst.interfaces.jobs import queue
    from smallfirst.interfaces.jobs.job_folder import user_name

    for job in [queue.find(name, restart_dead=False) for name in names]:
        resumed = queue.resume(job, by=user_name())
        click.echo(f"{job.name}: resumed" if resumed else f"{job.name}: has a living process, {job.state}")


def as_values(job: JobFolder) -> dict[str, Any]:
    """Return a job as plain values; times in ISO 8601, progress in [0, 1]."""
    spec, progress, result = job.spec, job.progress, job.result
    return {
        "name": job.name,
        "status": job.state,
        "base": spec.model,
        "rows": spec.submitted.get("train_data_path", spec.train_rows),
        "duration": spec.config.duration,
        "progress": progress.share if progress else None,
        "eta": job.estimated_end.isoformat() if job.estimated_end else None,
        "created_at": spec.created_at.isoformat(),
        "created_by": spec.created_by,
        "ended_at": job.ended_at.isoformat() if job.ended_at else None,
        "register_to": spec.register_to,
        "model_version": result.version if result else None,
        "mlflow_run_id": job.tracking.run_id if job.tracking else None,
        "folder": str(job.folder),
        "details": job.events[-1].message if job.events else None,
    }


def table(jobs: Sequence[JobFolder]) -> list[str]:
    """Return a line of headings and one line for each job, in aligned columns."""
    rows = [COLUMNS]
    for job in jobs:
        now, end = datetime.now(UTC), job.estimated_end
        left = f", {format_duration(end - now)} left" if end else ""
        share = f"{job.progress.share:.0%}{left}" if job.progress else "-"
        rows.append((job.name, job.state, job.spec.model, share, format_duration(now - job.spec.created_at)))
    return format_table(rows)
