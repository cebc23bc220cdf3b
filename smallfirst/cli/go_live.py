"""Verbs that change who answers, take a model elsewhere, or compare what is served with what was measured."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from smallfirst.cli.options import JSON, PATH, RUN, TASK, load_project, load_run, load_task_file, show, show_steps, verb
from smallfirst.errors import ConfigError, StageMissing


@verb("smallfirst promote tickets", "smallfirst promote tickets --candidate words")
@TASK
@RUN
@click.option("--candidate", help="Another that passed, instead of the one that routing.small names.")
def promote(task_yaml: Path, run_name: str | None, candidate: str | None) -> None:
    """Register the candidate that passed and make it champion.

    It is certified first, unless it is. Exit code 3 if nothing of it may be answered.
    """
    from smallfirst.gate.outcome import Outcome
    from smallfirst.pipeline.next_step import after_outcome
    from smallfirst.pipeline.release import promote_stage
    from smallfirst.project.run_folder import OUTCOME

    project, run_folder = load_run(task_yaml, run_name)
    promoted = promote_stage(project, run_folder, candidate)
    outcome = run_folder.read(Outcome, OUTCOME, next_command="smallfirst promote task.yaml")
    click.echo(outcome.live_as or "nothing went live")
    click.echo(outcome.sentence)
    show_steps(after_outcome(project, outcome))
    if promoted is None:
        sys.exit(3)


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


@verb("smallfirst parity tickets", "smallfirst parity tickets --url http://127.0.0.1:8000/v1 --rows 50")
@TASK
@click.option("--url", help="A running endpoint, up to and including /v1; left out: one is started with the champion.")
@click.option("--model", "name", help="Served name to ask; left out: the task's small model.")
@click.option("--rows", "n_rows", type=click.IntRange(min=1), help="Most rows to ask; left out: as promotion does.")
@click.option("--key-env", default="SMALLFIRST_API_KEY", show_default=True, help="Environment variable of the key.")
@JSON
def parity(task_yaml: Path, url: str | None, name: str | None, n_rows: int | None, key_env: str, as_json: bool) -> None:
    """Compare an endpoint's answers with the measured ones.

    Evaluation rows are asked again over HTTP. Without --url the result is stored with the champion: one that was
    measured with PyTorch may be served through the vLLM of task.yaml once it has passed there. Exit code 3 if the
    answers differ.
    """
    from smallfirst.pipeline.parity import require_parity, served_parity
    from smallfirst.project.run_folder import RunFolder
    from smallfirst.registry import versions
    from smallfirst.serving.loopback import Address

    project = load_project(task_yaml)
    version = versions.resolve(f"{project.file.register_to}@{versions.CHAMPION}")
    run_folder = RunFolder.latest(project.file.name, version.tags.get("run"))
    if not (candidate := version.tags.get("candidate")):
        raise StageMissing(
            f"{version.name} version {version.version} does not say what it was evaluated as",
            hint="smallfirst promote task.yaml",
        )
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {url!r} is no address", hint="for example --url http://127.0.0.1:8000/v1")
    at = url and (Address(url, os.environ.get(key_env, "")), name or f"{project.file.name}-small")
    found = served_parity(project, run_folder, version, candidate, n_rows=n_rows, at=at or None)
    show(found, as_json)
    require_parity(found)
