"""The command line: a verb per stage of work. Results go to standard output, progress to standard error.

Exit codes: 0 done · 1 error · 2 wrong settings or usage · 3 the gate said no · 130 interrupted (Ctrl-C).
"""

from __future__ import annotations

from typing import Any

import click

import smallfirst
from smallfirst.base.errors import SmallfirstError, as_full_disk, as_missing_extra
from smallfirst.base.extensions import Registry
from smallfirst.base.progress import disable_tqdm_in_pipes
from smallfirst.interfaces.cli.options import as_typed

STAGES = {
    "prepare": ("demo", "init", "check", "record", "models"),
    "train": ("run", "train", "jobs"),
    "judge": ("evaluate", "gate", "override", "calibrate", "report"),
    "go live": ("promote", "serve", "parity", "rollback", "export"),
    "improve": ("explain", "review", "label", "harvest"),
    "drop in": ("proxy", "discover", "learn", "take-over", "give-back", "tasks"),
    "account": ("ledger", "statement", "plan"),
    "operate": ("score", "doctor", "keys", "forget", "mcp"),
}
"""The verbs by stage of work, in the order of the path; those of installed packages belong to the last stage."""

LAST_STAGE = "operate"
INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell: 128 + SIGINT."""
MAX_SUMMARY = 64
"""Most characters of a summary, so that it stands on one line of 80 columns."""

_MODULES = {"train": "path", "judge": "path", "go live": "path"} | {verb: verb for verb in ("jobs", "serve", "doctor")}
_MODULES |= {"drop in": "drop_in", "score": "serve"}
"""Module of a verb, or of all verbs of a stage; the others stand in that of their stage."""

COMMANDS: Registry[click.Command] = Registry(
    "smallfirst.commands",
    {
        verb: f"smallfirst.interfaces.cli.{_MODULES.get(verb, _MODULES.get(stage, stage))}:{verb.replace('-', '_')}"
        for stage, verbs in STAGES.items()
        for verb in verbs
    },
    noun="command",
)
"""All verbs; installed packages add their own."""


class CommandGroup(click.Group):
    """Lists the verbs of COMMANDS by stage, and prints user errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS.names())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return COMMANDS.get(name) if name in COMMANDS.names() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs with their summaries in a section for each stage of work."""
        of = {verb: stage for stage, verbs in STAGES.items() for verb in verbs}
        names = COMMANDS.names()
        width = max(map(len, names))
        for stage in STAGES:
            verbs = [verb for verb in names if of.get(verb, LAST_STAGE) == stage]
            with formatter.section(stage.capitalize()):
                shown = [(f"{verb:<{width}}", COMMANDS.get(verb).get_short_help_str(MAX_SUMMARY)) for verb in verbs]
                formatter.write_dl(shown)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn a SmallfirstError, an absent extra or Ctrl-C into a message and an exit code."""
        disable_tqdm_in_pipes()  # before task.yaml loads candidates, whose modules may import PyTorch
        try:
            return super().invoke(ctx)
        except Exception as error:
            known = as_missing_extra(error) if isinstance(error, ModuleNotFoundError) else as_full_disk(error) or error
            if not isinstance(known, SmallfirstError):
                raise
            click.echo(as_typed(ctx, f"{type(known).__name__}: {known}"), err=True)
            ctx.exit(known.exit_code)
        except KeyboardInterrupt:
            verb = ctx.invoked_subcommand or ""
            command = self.get_command(ctx, verb)
            resume = any(parameter.name == "resume" for parameter in command.params) if command else False
            click.echo("\ninterrupted; what was done or answered is kept", err=True)
            if resume:
                click.echo(as_typed(ctx, f"  next: smallfirst {verb} task.yaml --resume"), err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(smallfirst.__version__, prog_name="smallfirst")
def main() -> None:
    """Small first: the smallest model that is proven good enough answers; everything else goes to the big one.

    Begin with  smallfirst init FOLDER --from ROWS, then  smallfirst run FOLDER.
    """


if __name__ == "__main__":
    main()
