"""Verbs about this installation: shell completion."""

from __future__ import annotations

import click

from smallfirst.cli.options import verb

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
