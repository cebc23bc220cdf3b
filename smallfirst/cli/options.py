"""Arguments and options that several commands share, and what they load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smallfirst.project.project import Project
    from smallfirst.project.run_folder import RunFolder
    from smallfirst.project.task_file import TaskFile

PATH = click.Path(path_type=Path)
TASK = click.argument("task_yaml", type=PATH, default="task.yaml")
RUN = click.option("--run", "run_name", default=None, help="A run other than the latest.")
RESUME = click.option("--resume", is_flag=True, help="Continue a training that was interrupted.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
LEDGER = click.option("--ledger", type=PATH, help="A ledger other than that of the state folder.")


def load_task_file(path: Path) -> TaskFile:
    """Return the record of a task.yaml."""
    from smallfirst.project.task_file import read_task_file

    return read_task_file(path)


def load_project(path: Path) -> Project:
    """Return the project of a task.yaml, its rows read; progress goes to standard error."""
    from smallfirst.progress import Progress
    from smallfirst.project.project import Project

    return Project.read(load_task_file(path), Progress())


def load_run(path: Path, run_name: str | None) -> tuple[Project, RunFolder]:
    """Return the project of a task.yaml and its latest finished run, or the run of this name."""
    from smallfirst.project.run_folder import RunFolder

    project = load_project(path)
    return project, RunFolder.latest(project.file.name, run_name)
