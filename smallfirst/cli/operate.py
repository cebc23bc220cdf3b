"""Verbs about this installation: what it has, and shell completion."""

from __future__ import annotations

import json
from pathlib import Path

import click

from smallfirst.cli.options import JSON, OPTIONAL_TASK, as_typed, load_task_file, verb
from smallfirst.progress import format_table

COMPLETION_VARIABLE = "_SMALLFIRST_COMPLETE"


@verb(
    "smallfirst completion bash > ~/.local/share/bash-completion/completions/smallfirst",
    "smallfirst completion zsh >> ~/.zshrc",
    "smallfirst completion fish > ~/.config/fish/completions/smallfirst.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes verbs, options and paths."""
    from click.shell_completion import get_completion_class

    make = get_completion_class(shell)
    assert make is not None
    click.echo(make(ctx.find_root().command, {}, "smallfirst", COMPLETION_VARIABLE).source())


@verb("smallfirst doctor", "smallfirst doctor tickets --ask-large", "smallfirst doctor --json")
@OPTIONAL_TASK
@click.option("--ask-large", is_flag=True, help="Ask the large model's endpoint for its list of models; costs nothing.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to serve at.")
@JSON
@click.pass_context
def doctor(ctx: click.Context, task_yaml: Path | None, ask_large: bool, port: int, as_json: bool) -> None:
    """Look at what this installation has and lacks.

    Machine, packages, state folder, MLflow store, base weights and port; with a TASK also what that needs. Nothing is
    created or downloaded. Exit code 1 if something does not work.
    """
    from smallfirst.pipeline.preflight.installation import examine

    if task_yaml is None and Path("task.yaml").is_file():
        task_yaml = Path("task.yaml")
    found = examine(load_task_file(task_yaml) if task_yaml else None, ask_large=ask_large, port=port)
    if as_json:
        click.echo(json.dumps([one.model_dump() for one in found], indent=2, ensure_ascii=False))
    else:
        for line, one in zip(format_table([(one.level, one.name, one.what) for one in found]), found, strict=True):
            click.echo(line)
            if one.next:
                click.echo(as_typed(ctx, f"      next: {one.next}"))
    if any(one.level == "fail" for one in found):
        ctx.exit(1)
