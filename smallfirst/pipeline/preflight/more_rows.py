"""How many rows of data give so many more rows of a part that is split off them."""

from __future__ import annotations

import math

from smallfirst.project.project import Project
from smallfirst.project.rows import SPLIT_OFF
from smallfirst.records import Record
from smallfirst.stats.sample_size import round_up_to_two_digits


class MoreRows(Record):
    """Rows that are missing, and what it takes to get them."""

    part: str
    """`test` or `calibration`."""
    n_rows: int
    """Missing rows of the part."""
    n_data_rows: int
    """About as many more rows of `file` give them, at today's share of rows that come to the part and count."""
    file: str
    """File that they are split off, as task.yaml names it."""

    @property
    def in_words(self) -> str:
        needed = f"{self.n_rows:,} more {self.part} rows"
        data = f"{self.n_data_rows:,} more rows in {self.file}"
        return data if self.n_data_rows == self.n_rows else f"{needed}, which is about {data}"


def more_rows(project: Project, part: str, n_rows: int) -> MoreRows:
    """Return what it takes to have `n_rows` more rows in `part`, `test` or `calibration`."""
    files, rows = project.file.data, project.rows
    validation = [*rows.selection.examples, *rows.calibration.examples, *rows.left_out.examples]
    counted = project.file.routing.selection_share if part == "calibration" else 0.0
    file, n_data, share = files.train, len(rows.train), SPLIT_OFF * (1 - counted)
    if part == "test" and files.test:
        return MoreRows(part=part, n_rows=n_rows, n_data_rows=n_rows, file=str(files.test))
    if part == "calibration" and files.validation:
        file, n_data, share = files.validation, len(validation), 1 - counted
    else:
        n_data += 0 if files.validation else len(validation)
        n_data += 0 if files.test else len(rows.test)
    n_part = len(getattr(rows, part))
    needed = math.ceil(n_rows * n_data / n_part) if n_part else math.ceil(n_rows / share)
    return MoreRows(part=part, n_rows=n_rows, n_data_rows=round_up_to_two_digits(needed), file=str(file))
