"""Options of labelling: the cap, the least confidence, the rows that check the teacher."""

from __future__ import annotations

from pathlib import Path

import pydantic

from smallfirst.records import Record


class LabelOptions(Record):
    """How rows are labelled."""

    teacher: Path | None = None
    """Folder of a model of this task that labels; None: the large model of the task file."""
    out: Path = Path("labelled.jsonl")
    """File of the training rows; the record is written beside it as `<name>.labels.json`."""
    cap_usd: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    """Most that the answers to these rows may cost in all, in USD, those of earlier runs included. None: no limit."""
    yes: bool = False
    """Accept the estimated cost; not needed with a cap, or if labelling costs nothing."""
    min_confidence: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Least confidence of an answer that becomes a training row, in [0, 1]; 0 keeps every answer."""
    samples: int = pydantic.Field(default=1, ge=1, le=25)
    """How often each row is asked: once at temperature 0, then with sampling. From 2 on, agreement is known."""
    probe_calls: int = pydantic.Field(default=5, ge=1, le=100)
    """Answers to pay for the estimate if there are no earlier ones; they are used."""
    gold: Path | None = None
    """Rows answered by people, to measure the teacher on; None for the selection rows of the task."""
    check_rows: int = pydantic.Field(default=50, ge=0)
    """Most of these rows to ask."""
    again_rows: int = pydantic.Field(default=50, ge=0)
    """With `samples` 1: rows to ask twice, to measure the teacher's agreement with itself."""

    @property
    def record_path(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.labels.json")
