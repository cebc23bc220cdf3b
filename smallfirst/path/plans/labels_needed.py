"""How many rows to label: one number for what a run left open, and the chance that as many decide it.

A part (test or calibration) that is split off a file grows with the file, so the number is of rows to add to the files
as the user has them. Something goes live by a gate or by a certificate, so of these open questions the one that takes
fewest rows decides. What no number of rows is likely to decide (`sample_size.UNLIKELY`) is left out, and said where it
failed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from smallfirst.base.stats.sample_size import RowsNeeded, round_up_to_two_digits
from smallfirst.measuring.outcome import LabelsNeeded
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import SPLIT_OFF
from smallfirst.path.project.run_folder import CERTIFICATE, RunFolder
from smallfirst.routing.certificate.certificate import Certificate

PROMISE = "routing.guarantee"
"""Name of the check that a certificate is issued."""


class OpenQuestion(NamedTuple):
    """What too few rows of a part left open."""

    part: Literal["test", "calibration"]
    needed: RowsNeeded
    """Rows more of the part."""
    n_now: int
    """Rows of the part that were counted."""


def labels_needed(project: Project, run_folder: RunFolder, *, live: bool = False) -> LabelsNeeded | None:
    """Return the fewest rows that are likely to put something live, or to show a promise; None if no number is.

    `live`: something goes live, and only a promise may be open.
    """
    ways = [rows_to_label(project, [one]) for one in _open(project, run_folder, live=live)]
    return min(filter(None, ways), key=lambda way: way.n_data_rows, default=None)


def rows_to_label(project: Project, questions: Sequence[OpenQuestion]) -> LabelsNeeded | None:
    """Return the rows to add to the data files, with their price, that are likely to decide all questions."""
    likely = [one for one in questions if not one.needed.unlikely]
    if not likely:
        return None
    files: dict[str, int] = {}
    for file, n_rows in (_in_file(project, one) for one in likely):
        files[file] = max(n_rows, files.get(file, 0))
    n, price, chance = sum(files.values()), project.file.prices.usd_per_label, min(one.needed.chance for one in likely)
    return LabelsNeeded(n_data_rows=n, chance=chance, files=files, usd=None if price is None else n * price)


def _open(project: Project, run_folder: RunFolder, *, live: bool) -> Iterator[OpenQuestion]:
    gate, found = run_folder.verdicts(), run_folder.find(Certificate, CERTIFICATE)
    if found is not None and not found.issued:
        needed = RowsNeeded(found.labels_missing or 0, found.labels_missing_chance or 0.0)
        yield OpenQuestion("calibration", needed, min(found.n_labels, len(project.rows.calibration)))
    if live or any(verdict.passed for verdict in gate.verdicts):
        return
    for tried in (*gate.verdicts, *gate.trials):
        failed = [check for check in tried.failed_checks if check.name != PROMISE]
        if failed and all(check.more_rows for check in failed):  # else something failed that no rows are to change
            more, chance = max(one.more_rows or 0 for one in failed), min(one.chance or 0.0 for one in failed)
            yield OpenQuestion("test", RowsNeeded(more, chance), len(project.rows.test))


def _in_file(project: Project, question: OpenQuestion) -> tuple[str, int]:
    """Return the file that the part is split off, and about how many more of its rows give it those that it needs."""
    files, rows, part = project.file.data, project.rows, question.part
    if part == "test" and files.test:
        return str(files.test), question.needed.n_more
    validation = sum(len(one) for one in (rows.selection, rows.calibration, rows.left_out))
    share = 1 - project.file.routing.selection_share if part == "calibration" else 1.0
    if part == "calibration" and files.validation:
        file, n_data, n_part = files.validation, validation, len(rows.calibration)
    else:
        n_data = len(rows.train) + (0 if files.validation else validation) + (0 if files.test else len(rows.test))
        file, n_part, share = files.train, question.n_now, SPLIT_OFF * share
    n_rows = math.ceil(question.needed.n_more * (n_data / n_part if n_part else 1 / share))
    return str(file), round_up_to_two_digits(n_rows)
