"""A task file with all that it names, read once and handed from stage to stage."""

from __future__ import annotations

from typing import NamedTuple

from smallfirst.progress import Progress
from smallfirst.project.added_rows import with_harvested
from smallfirst.project.rows import Rows, read_rows, read_task, with_canonical_answers, with_relabels
from smallfirst.project.task_file import Candidate, TaskFile
from smallfirst.tasks.task import Task


class Project(NamedTuple):
    """A task file with what it names, read once and handed from stage to stage."""

    file: TaskFile
    rows: Rows
    task: Task
    progress: Progress

    @classmethod
    def read(cls, file: TaskFile, progress: Progress | None = None) -> Project:
        """The job of a task file. Raises DataError or ConfigError if rows or settings are wrong."""
        rows = read_rows(file)
        task = read_task(file, rows)
        for path in file.data.harvested:  # labels and schema are those of the file's own rows
            rows = with_harvested(rows, file.path(path), columns=file.data.columns, labels=task.closed)
        return cls(file, with_relabels(with_canonical_answers(rows, task), file, task), task, progress or Progress())

    @property
    def ladder(self) -> tuple[Candidate, ...]:
        """The rungs to measure; linear ones need closed answers."""
        return tuple(c for c in self.file.small.ladder if self.task.closed or c in ("base", "small"))
