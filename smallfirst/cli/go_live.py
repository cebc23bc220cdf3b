"""Verbs that change who answers, or take a model elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from smallfirst.cli.options import PATH, RUN, TASK, load_run, load_task_file, verb


@verb("smallfirst promote tickets", "smallfirst promote tickets --candidate words")
@TASK
@RUN
@click.option("--candidate", help="Another that passed, instead of the one that routing.small names.")
def promote(task_yaml: Path, run_name: str | None, candidate: str | None) -> None:
    """Register the candidate that passed and make it champion."""
    from smallfirst.pipeline.run import promote_stage

    project, run_folder = load_run(task_yaml, run_name)
    promoted = promote_stage(project, run_folder, candidate)
    click.echo(f"{promoted.name} version {promoted.version} @champion ({promoted.candidate})")
    click.echo(f"next: smallfirst calibrate {task_yaml}")


@verb("smallfirst rollback tickets")
@TASK
def rollback(task_yaml: Path) -> None:
    """Make the former champion champion again."""
    from smallfirst.registry import versions

    version = versions.rollback(load_task_file(task_yaml).register_to)
    click.echo(f"{version.name} version {version.version} @champion")


@verb("smallfirst export tickets tickets.gguf", "smallfirst export tickets exported --format safetensors")
@TASK
@click.argument("target", type=PATH)
@RUN
@click.option("--format", "kind", type=click.Choice(["safetensors", "gguf"]), default="gguf", show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "f16", "q8_0"]), default="bf16", show_default=True)
@click.option("--rows", "n_rows", type=int, default=64, show_default=True, help="Selection rows to compare on.")
@click.option("--candidate", help="Another candidate of the run than the champion.")
def export(
    task_yaml: Path,
    target: Path,
    run_name: str | None,
    kind: Any,
    precision: Any,
    n_rows: int,
    candidate: str | None,
) -> None:
    """Write the champion for other engines.

    Its answers there are compared with those here. Linear models have no other engine.
    """
    from smallfirst.models.export.export import export as export_model

    project, run_folder = load_run(task_yaml, run_name)
    texts = [example.text for example in project.rows.selection.examples[:n_rows]]
    folder = run_folder.model_folder(candidate or run_folder.live_candidate())
    found = export_model(folder, target, format=kind, precision=precision, texts=texts)
    click.echo(found.model_dump_json(indent=2))
