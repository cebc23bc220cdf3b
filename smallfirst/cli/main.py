"""The command line: a verb per stage of work. Results go to standard output, progress to standard error.

Exit codes: 0 done · 1 error · 2 wrong settings or usage · 3 the gate said no.
"""

from __future__ import annotations

from typing import Any

import click

import smallfirst
from smallfirst.errors import SmallfirstError, as_missing_extra
from smallfirst.extensions import Registry
from smallfirst.progress import disable_tqdm_in_pipes

STAGES = {
    "prepare": ("init", "check", "record", "models"),
    "train": ("run", "train", "learn", "jobs"),
    "judge": ("evaluate", "gate", "override", "calibrate", "report"),
    "go live": ("promote", "serve", "parity", "rollback", "export"),
    "watch": ("explain", "queue"),
    "improve": ("label", "suspects", "harvest", "challenge"),
    "operate": ("keys",),
}
"""The verbs by stage of work, in the order of the path; those of installed packages belong to the last stage."""

LAST_STAGE = "operate"

_OWN_MODULE = {"run", "jobs", "serve", "parity", "keys"}

COMMANDS: Registry[click.Command] = Registry(
    "smallfirst.commands",
    {
        verb: f"smallfirst.cli.{verb if verb in _OWN_MODULE else stage.replace(' ', '_')}:{verb}"
        for stage, verbs in STAGES.items()
        for verb in verbs
    },
    noun="command",
)
"""All verbs; installed packages add their own."""


class CommandGroup(click.Group):
    """Lists the verbs of COMMANDS by stage, and prints user errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS.names())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command of this name, loading it; None if it is unknown."""
        return COMMANDS.get(name) if name in COMMANDS.names() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs with their summaries in a section for each stage of work."""
        of = {verb: stage for stage, verbs in STAGES.items() for verb in verbs}
        for stage in STAGES:
            verbs = [verb for verb in COMMANDS.names() if of.get(verb, LAST_STAGE) == stage]
            width = formatter.width - formatter.current_indent - 14
            with formatter.section(stage.capitalize()):
                formatter.write_dl([(verb, COMMANDS.get(verb).get_short_help_str(width)) for verb in verbs])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn a SmallfirstError or an absent extra into a message and an exit code."""
        disable_tqdm_in_pipes()  # before task.yaml loads candidates, whose modules may import PyTorch
        try:
            return super().invoke(ctx)
        except (SmallfirstError, ModuleNotFoundError) as error:
            known = as_missing_extra(error) if isinstance(error, ModuleNotFoundError) else error
            if not isinstance(known, SmallfirstError):
                raise
            click.echo(f"{type(known).__name__}: {known}", err=True)
            ctx.exit(known.exit_code)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(smallfirst.__version__, prog_name="smallfirst")
def main() -> None:
    """Small first: the smallest model that is proven good enough answers; everything else goes to the big one."""


if __name__ == "__main__":
    main()
