"""Harvested rows join the training rows, and never a text that measures, certifies or chooses.

What was served may be what is tested: a customer's question stands in the test rows as well, perhaps with a placeholder
where an address was. So held-out texts are compared as they are and redacted, and a file in which one of them is found
is refused, line by line. The price is a look at every harvested row each time a job is read, and that a file has to be
harvested again when the test rows change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from smallfirst.data.dataset import Dataset, Example, Message, fold_text
from smallfirst.data.quality.leaks import LeakReport, find_leaks
from smallfirst.data.redaction import redact
from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.load import DEFAULT_COLUMNS, load
from smallfirst.errors import DataError, Problem
from smallfirst.project.rows import Rows


def with_harvested(rows: Rows, path: Path, *, columns: Columns = DEFAULT_COLUMNS, labels: Sequence[str] = ()) -> Rows:
    """The rows with those of `path` added to the ones to learn from; no other part changes.

    A text that people have put into the training rows already is left out: theirs stands. `labels` are the task's if
    the rows have one each; left out, those of its own rows. Raises DataError naming every bad row, and every row whose
    text is held out.
    """
    own = rows.train.examples
    new = load(path, columns=columns, labels=_labels(rows, labels))
    if seen := find_held_out_leaks(rows, new).keys:
        raise DataError(
            f"{path}: {len(seen):,} rows ask what test, calibration, selection or open-ended rows ask",
            [Problem(e.path, e.line, "a held-out text, or nearly one") for e in new.examples if e.key in seen],
            hint="harvest again (smallfirst harvest task.yaml), or take these lines out",
        )
    known = {fold_text(e.asked) for e in own}
    added = tuple(e for e in new.examples if fold_text(e.asked) not in known)
    return rows.model_copy(update={"train": rows.train.subset(rows.train.name, (*own, *added))})


def _labels(rows: Rows, told: Sequence[str]) -> tuple[str, ...] | None:
    """The answers that a harvested row may have; None where they are no single labels."""
    if not rows.train.examples or rows.train.examples[0].shape != "label":
        return None
    parts = (rows.train, rows.selection, rows.calibration, rows.test)
    return tuple(told) or tuple(sorted({answer for part in parts for answer in part.labels()}))


def find_held_out_leaks(rows: Rows, new: Dataset) -> LeakReport:
    """The rows of `new` that ask what a held-out row asks: exactly, folded, or nearly, as it is or redacted."""
    return find_leaks(Dataset(name="held out", examples=tuple(_told_twice(rows))), new)


def held_out_parts(rows: Rows) -> Iterator[Dataset]:
    """Rows that measure, certify or choose: none of their texts may be trained on."""
    yield from (rows.test, rows.calibration, rows.selection)
    if rows.open_ended is not None:
        yield rows.open_ended


def _told_twice(rows: Rows) -> Iterator[Example]:
    """Every held-out row, and once more without what is personal in it."""
    for data in held_out_parts(rows):
        for example in data.examples:
            yield example
            clean = redact(example.asked)
            if clean.counts:
                asked = (Message(role="user", content=clean.text),)
                yield Example(messages=asked, answer="", shape="text", path=example.path, line=example.line)
