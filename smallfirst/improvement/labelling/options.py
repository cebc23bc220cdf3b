"""What a user decides about labelling: how much it may cost, how sure an answer must be, what it is checked on."""

from __future__ import annotations

from pathlib import Path

import pydantic

from smallfirst.records import Record


class LabelOptions(Record):
    """How rows are labelled."""

    teacher: Path | None = None
    """Folder of a model of this task that labels; None: the large model of the task file."""
    out: Path = Path("labelled.jsonl")
    """The training rows; what was done is written beside it as `<name>.labels.json`."""
    cap_usd: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    """Most that the answers to these rows may cost in all, in USD, those of earlier runs included. None: no limit."""
    yes: bool = False
    """Go on at the price that was foretold. Not needed where a cap is given, or nothing is to be paid."""
    min_confidence: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Least sureness of an answer that becomes a training row, in [0, 1]; 0 keeps every answer."""
    samples: int = pydantic.Field(default=1, ge=1, le=25)
    """How often each row is asked: once at temperature 0, then with sampling. From 2 on, agreement is known."""
    probe_calls: int = pydantic.Field(default=5, ge=1, le=100)
    """So many answers are paid to foretell the price, if no earlier ones do; they are kept and used."""
    gold: Path | None = None
    """Rows that people have answered, to hold the teacher against. None: the selection rows of the task."""
    check_rows: int = pydantic.Field(default=50, ge=0)
    """At most so many of these are asked."""
    again_rows: int = pydantic.Field(default=50, ge=0)
    """With `samples` 1: so many rows are asked twice, to see how far the teacher agrees with itself."""

    @property
    def record_path(self) -> Path:
        """Where the record of what was done is written."""
        return self.out.with_name(f"{self.out.stem}.labels.json")
