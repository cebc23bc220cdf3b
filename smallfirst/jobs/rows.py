"""The rows of a job: read once from their addresses, then kept in its folder, so that a later edit changes nothing."""

from __future__ import annotations

from pathlib import Path

from smallfirst.data.dataset import Dataset
from smallfirst.data.row_formats import ROW_FORMATS
from smallfirst.data.sources.load import load_rows
from smallfirst.errors import DataError, Problem
from smallfirst.jobs.job_folder import JobFolder
from smallfirst.jobs.spec import JobSpec
from smallfirst.training.recipes import RECIPES


class JobRows:
    """Training and evaluation rows of one job."""

    def __init__(self, train: Dataset, evaluation: Dataset | None) -> None:
        self.train, self.evaluation = train, evaluation

    @classmethod
    def read(cls, spec: JobSpec) -> JobRows:
        evaluation = read_rows(spec.eval_rows, spec.recipe) if spec.eval_rows else None
        return cls(read_rows(spec.train_rows, spec.recipe), evaluation)

    @classmethod
    def load(cls, job: JobFolder) -> JobRows:
        """Return the rows kept in the job's folder; read and keep them first if there are none."""
        if not (job.folder / "rows" / "train.json").is_file():
            cls.read(job.spec).save(job.folder)
        evaluation = job.folder / "rows" / "evaluation.json"
        train = Dataset.load(job.folder / "rows" / "train.json")
        return cls(train, Dataset.load(evaluation) if evaluation.is_file() else None)

    def save(self, folder: Path) -> None:
        """Write the rows into a job's folder, the training rows last: they mark the copy as complete."""
        if self.evaluation is not None:
            self.evaluation.save(folder / "rows" / "evaluation.json")
        self.train.save(folder / "rows" / "train.json")


def read_rows(address: str, recipe: str, *, max_rows: int | None = None) -> Dataset:
    """Return the rows at an address. Raise DataError naming those that do not fit the recipe, and as `load_rows`."""
    data = load_rows(address, max_rows=max_rows)
    kind = RECIPES.get(recipe)
    if wrong := [e for e in data.examples if e.shape not in kind.row_formats]:
        problems = [
            Problem(e.path, e.line, f"a row of {ROW_FORMATS[e.shape]}; this recipe takes {kind.rows_in_words}")
            for e in wrong
        ]
        raise DataError(f"{address}: {len(wrong)} of {len(data)} rows do not fit the recipe", problems)
    return data
