"""What verbs share: arguments, options and what they load, and help that ends with examples."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from smallfirst.ledger.ledger import Ledger
    from smallfirst.path.project.project import Project
    from smallfirst.path.project.run_folder import RunFolder
    from smallfirst.path.project.task_file import TaskFile
    from smallfirst.path.summary import NextStep

TASK_HELP = "A task.yaml or its folder; left out: task.yaml of the current folder."

PATH = click.Path(path_type=Path)
TYPED_TASK = "smallfirst.typed_task"
"""Key of the context's `meta` under which the TASK stands as it was typed, ready for a shell."""

ARGUMENTS = "smallfirst.arguments"
"""Key of the context's `meta` under which the arguments of the verb stand."""


def _remember(
    ctx: click.Context, _: click.Parameter, value: Path | tuple[Path, ...] | None
) -> Path | tuple[Path, ...] | None:
    paths = value if isinstance(value, tuple) else (value or "task.yaml",)
    ctx.meta[TYPED_TASK] = shlex.join(map(str, paths)) or "task.yaml"
    return value


def as_typed(ctx: click.Context, text: str) -> str:
    """Return `text` with the TASK that was typed in place of `task.yaml` in the commands that it names."""
    typed = ctx.meta.get(TYPED_TASK, "task.yaml")
    return re.sub(r"(smallfirst [a-z-]+) task\.yaml", lambda found: f"{found[1]} {typed}", text)


def show_steps(steps: Iterable[NextStep]) -> None:
    """Print what to do next."""
    ctx = click.get_current_context()
    click.echo("next:")
    for line in (line for step in steps for line in step.lines):
        click.echo(f"  {as_typed(ctx, line)}")


TASK = click.argument("task_yaml", type=PATH, default="task.yaml", metavar="[TASK]", callback=_remember)
OPTIONAL_TASK = click.argument("task_yaml", type=PATH, required=False, metavar="[TASK]", callback=_remember)
TASKS = click.argument("task_yamls", type=PATH, nargs=-1, metavar="[TASK]...", callback=_remember)
RUN = click.option("--run", "run_name", default=None, help="A run other than the latest.")
RESUME = click.option("--resume", is_flag=True, help="Continue a training that was interrupted.")
WORKERS = click.option(
    "--workers", type=click.IntRange(1), default=1, help="Processes that train the language model together, by Ray."
)
MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M"])
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show(found: Any, as_json: bool, in_words: Callable[[Any], Iterable[str]] | None = None) -> None:
    """Print a record as JSON, or as the lines of `in_words`; left out, its own."""
    lines = () if as_json else in_words(found) if in_words else found.in_words
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(lines))


def in_utc(moment: datetime | None) -> datetime | None:
    """Return a time of an option, which is in UTC."""
    return moment.replace(tzinfo=UTC) if moment else None


def read_ledger(place: str | Path | None = None) -> closing[Ledger]:
    """Return the ledger that exists at a place, or where the command has it. Raise ConfigError without one."""
    from smallfirst.traffic.harvest import open_ledger

    return closing(open_ledger(place))


def _enter_ledger(context: click.Context, option: click.Parameter, place: str | None) -> None:
    from smallfirst.base.paths import ledger_at

    if place and re.search(r"://[^/@]*:[^/@]+@", place):
        raise click.BadParameter(
            "a password in a command line is seen by other users: leave it out, and set PGPASSWORD, or write"
            " …?password_env=NAME"
        )
    if place:
        context.with_resource(ledger_at(place))


LEDGER = click.option(
    "--ledger",
    metavar="PATH|URL",
    expose_value=False,
    callback=_enter_ledger,
    help="The ledger: a file, or postgresql://USER@HOST/DATABASE. Default: $SMALLFIRST_LEDGER, or in the state folder.",
)


class _WithExamples(click.Command):
    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if any(parameter.metavar in ("[TASK]", "[TASK]...") for parameter in self.params):
            with formatter.section("Arguments"):
                formatter.write_dl([("TASK", TASK_HELP)])
        super().format_options(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


class Verb(_WithExamples):
    """A command with examples, which keeps its arguments so that another process can be given them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note the arguments in the context's `meta` and parse them."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


class VerbGroup(_WithExamples, click.Group):
    """A group of commands with examples."""


def verb(*examples: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return the decorator that makes a function a verb whose help shows these command lines."""
    return click.command(cls=Verb, examples=examples)


def _enter_state(context: click.Context, option: click.Parameter, task_yaml: Path | None) -> None:
    if task_yaml is not None:
        load_task_file(task_yaml)


OF_TASK = click.option(
    "--task",
    type=PATH,
    expose_value=False,
    callback=_enter_state,
    help="The task that it is about: a task.yaml or its folder. Default: that of the current folder.",
)


def load_task_file(path: Path) -> TaskFile:
    """Return the record of a task.yaml; its state folder is that of the command from now on."""
    from smallfirst.base.paths import state_of
    from smallfirst.path.project.task_file import read_task_file

    file = read_task_file(path)
    click.get_current_context().with_resource(state_of(file.folder))
    return file


def named_in_task(path: Path, file: TaskFile) -> str:
    """Return the path as task.yaml has to name it: relative to its own folder."""
    return str(path) if path.is_absolute() else os.path.relpath(path, file.folder)


def load_project(path: Path) -> Project:
    """Return the project of a task.yaml, its rows read; progress goes to standard error."""
    from smallfirst.base.progress import Progress
    from smallfirst.path.project.project import Project

    return Project.read(load_task_file(path), Progress())


def load_run(path: Path, run_name: str | None) -> tuple[Project, RunFolder]:
    """Return the project of a task.yaml and its latest finished run, or the run of this name."""
    from smallfirst.path.project.run_folder import RunFolder

    project = load_project(path)
    return project, RunFolder.latest(project.file.name, run_name)
