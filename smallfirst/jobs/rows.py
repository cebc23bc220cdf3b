"""The rows of a job: read once from where the order says, then kept in the job's folder.

A job that waits, or that goes on after a crash, must not meet a file that has been edited since. The price is a copy of
the rows on disk; each row still tells the file and line that it came from.
"""

from __future__ import annotations

from pathlib import Path

from smallfirst.data.dataset import Dataset, RowFormat
from smallfirst.data.row_formats import ROW_FORMATS
from smallfirst.data.sources.resolve import open_source
from smallfirst.errors import DataError, Problem
from smallfirst.jobs.job_folder import JobFolder
from smallfirst.jobs.spec import JobSpec

RECIPE_SHAPES: dict[str, tuple[RowFormat, ...]] = {"chat": ("chat", "prompt", "question"), "text": ("text",)}
"""Which rows a lesson takes."""


class JobRows:
    """Training and evaluation rows of one job."""

    def __init__(self, train: Dataset, evaluation: Dataset | None) -> None:
        self.train, self.evaluation = train, evaluation

    @classmethod
    def read(cls, order: JobSpec) -> JobRows:
        """From where the order says. Raises DataError naming every bad row."""
        evaluation = read_rows(order.eval_rows, order.lesson) if order.eval_rows else None
        return cls(read_rows(order.train_rows, order.lesson), evaluation)

    @classmethod
    def of(cls, job: JobFolder) -> JobRows:
        """The rows kept in the job's folder; read and kept first if need be."""
        if not (job.folder / "rows" / "train.json").is_file():
            cls.read(job.order).keep(job.folder)
        evaluation = job.folder / "rows" / "evaluation.json"
        train = Dataset.load(job.folder / "rows" / "train.json")
        return cls(train, Dataset.load(evaluation) if evaluation.is_file() else None)

    def keep(self, folder: Path) -> None:
        """Nothing back; the rows are in the job's folder, the training rows written last."""
        if self.evaluation is not None:
            self.evaluation.save(folder / "rows" / "evaluation.json")
        self.train.save(folder / "rows" / "train.json")


def read_rows(address: str, lesson: str) -> Dataset:
    """The rows at an address that `data.sources` knows, of a shape that the lesson takes.

    Raises DataError naming every bad row, ConfigError or MissingExtra as `open_source` does.
    """
    data = open_source(address)
    if wrong := [e for e in data.examples if e.shape not in RECIPE_SHAPES[lesson]]:
        told = "chat messages or prompt + response" if lesson == "chat" else "text alone"
        problems = [
            Problem(e.path, e.line, f"a row of {ROW_FORMATS[e.shape]}; this lesson takes {told}") for e in wrong
        ]
        raise DataError(f"{address}: {len(wrong)} of {len(data)} rows do not fit the lesson", problems)
    return data
