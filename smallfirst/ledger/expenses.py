"""What is spent once on a task, written to its ledger: training, labelling, evaluation, labels.

Each is reported as its total so far under a name of its own, and the ledger gets what is new: an interrupted run that
goes on, or a step that is repeated, counts once.
"""

from __future__ import annotations

import logging
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from smallfirst.base.errors import SmallfirstError
from smallfirst.base.paths import ledger_place
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import ExpenseKind, ExpenseRow
from smallfirst.models.recorded import read_recording

_log = logging.getLogger("smallfirst")
_LEAST_USD = 1e-9


def note_expense(
    task: str, kind: ExpenseKind, name: str, total_usd: float, *, what: str = "", busy_s: float = 0.0
) -> None:
    """Write what `total_usd` and `busy_s` have grown by since the last call under this name.

    A ledger that cannot be written is logged as a warning: the work itself is done.
    """
    if not total_usd:
        return
    try:
        with closing(Ledger(ledger_place(create=True))) as ledger:
            before = [row for row in ledger.entries(ExpenseRow, task=task) if row.id.startswith(f"{task}/{name}#")]
            new_usd = total_usd - sum(row.cost_usd for row in before)
            if new_usd < _LEAST_USD:
                return
            row = ExpenseRow(
                id=f"{task}/{name}#{len(before) + 1}",  # another process that is as far gets the same id
                at=datetime.now(UTC),
                task=task,
                kind=kind,
                cost_usd=new_usd,
                what=what,
                busy_s=max(0.0, busy_s - sum(row.busy_s for row in before)),
            )
            ledger.append(row)
    except SmallfirstError as error:
        _log.warning("%s: %s of %s is not in the ledger: $%.6f: %s", task, kind, name, total_usd, error)


def note_recording(task: str, kind: ExpenseKind, path: Path) -> None:
    """Write what the large model's answers in a recording have cost since the last call."""
    try:
        answers = read_recording(path)[1] if path.exists() else ()
    except SmallfirstError:  # half a row, if the process was killed; the next call counts it
        return
    usd = sum(answer.cost_usd for answer in answers)
    note_expense(task, kind, path.stem, usd, what=f"{len(answers):,} answers")
