"""Read rows without an answer and drop those that must not become training rows, before anything is paid."""

from __future__ import annotations

from pathlib import Path

from smallfirst.data.dataset import Dataset, Example, Message, RowFormat, fold_text
from smallfirst.data.quality.leaks import find_leaks
from smallfirst.data.row_formats import ROW_FORMATS, Columns
from smallfirst.data.sources.load import load_valid
from smallfirst.errors import DataError
from smallfirst.project.rows import Rows
from smallfirst.records import Record


class FilterCounts(Record):
    """Rows of a file that may not be labelled, by reason; each is counted once, under the first that applies."""

    n_rows: int
    n_repeated: int = 0
    """Rows equal to an earlier one, ignoring case, spacing and punctuation."""
    n_held_out: int = 0
    """Rows equal to a validation, test or open-ended one, ignoring case, spacing and punctuation."""
    n_near_held_out: int = 0
    """Rows that share 9 of 10 words with such a row."""
    n_by_people: int = 0
    """Rows that are training rows already, or are given for checking."""

    @property
    def n_left(self) -> int:
        refused = self.n_repeated + self.n_held_out + self.n_near_held_out + self.n_by_people
        return self.n_rows - refused

    @property
    def in_words(self) -> str:
        parts = [
            (self.n_repeated, "repeated"),
            (self.n_held_out, "equal to held-out rows"),
            (self.n_near_held_out, "nearly equal to held-out rows"),
            (self.n_by_people, "answered by people"),
        ]
        refused = ", ".join(f"{n:,} {why}" for n, why in parts if n)
        return f"{self.n_left:,} of {self.n_rows:,} rows may be labelled" + (f" ({refused})" if refused else "")


def read_texts(path: Path, shape: RowFormat, columns: Columns) -> Dataset:
    """Read the texts of a file as rows of `shape` without an answer.

    The text is in the text column; questions and prompts may be in theirs, with a context column. Raise DataError
    naming bad rows, or rows with answers.
    """
    data, problems = load_valid(path, columns=columns)
    if data.examples and data.examples[0].shape != "text":
        raise DataError(
            f"{path}: its rows have answers already ({ROW_FORMATS[data.examples[0].shape]})",
            hint="name the file as data.train; or remove the answers to label the rows again",
        )
    # Where some rows fit as they are, the others are at fault; where none does, its columns may be called otherwise.
    otherwise = None if data.examples else _read_otherwise(path, shape, columns)
    if problems and otherwise is None:
        raise DataError(
            f"{path}: {len({p.line for p in problems}):,} rows are no text without an answer",
            problems,
            hint='one text a row, such as {"text": "…"}; map other names with data.columns in task.yaml',
        )
    read = otherwise or [(e, e.answer) for e in data.examples]
    return data.subset(data.name, tuple(_unanswered(e, text, shape) for e, text in read))


def filter_texts(texts: Dataset, rows: Rows, by_people: Dataset) -> tuple[Dataset, FilterCounts]:
    """Return the texts that may be labelled, in file order, and the counts of the others.

    `by_people` are answered rows beside the task's own. No teacher's answer measures anything: a split leaves rows that
    a model labelled in training.
    """
    once = {fold_text(e.asked): e for e in reversed(texts.examples)}
    first = tuple(e for e in texts.examples if once[fold_text(e.asked)] is e)
    held_out = Dataset(name="held out", examples=tuple(e for part in rows.held_out for e in part.examples))
    leaks = find_leaks(held_out, texts.subset(texts.name, first))
    equal = {leak.key for leak in (*leaks.exact, *leaks.folded)}
    unseen = [e for e in first if e.key not in leaks.keys]
    answered = {fold_text(e.asked) for e in (*rows.train.examples, *by_people.examples)}
    new = tuple(e for e in unseen if fold_text(e.asked) not in answered)
    return texts.subset(texts.name, new), FilterCounts(
        n_rows=len(texts),
        n_repeated=len(texts) - len(first),
        n_held_out=sum(e.key in equal for e in first),
        n_near_held_out=len({leak.key for leak in leaks.near}),
        n_by_people=len(unseen) - len(new),
    )


def _read_otherwise(path: Path, shape: RowFormat, columns: Columns) -> list[tuple[Example, str]] | None:
    """Read rows whose answer column is mapped but absent, or whose text is in the question or prompt column.

    Return None if the file cannot be read in this way either.
    """
    data, problems = load_valid(path, columns=Columns(text=columns.text))
    if not problems and data.examples[0].shape == "text":
        return [(e, e.answer) for e in data.examples]
    if shape in ("question", "prompt"):
        asked = columns.question if shape == "question" else columns.prompt
        # As questions that are their own answers.
        names = Columns(question=asked, answer=asked, context=columns.context, text="-", prompt="-")
        data, problems = load_valid(path, columns=names)
        if data.examples and problems:
            raise DataError(f"{path}: {len({p.line for p in problems}):,} rows are no {shape} to answer", problems)
        return [(e, e.text) for e in data.examples] or None
    return None


def _unanswered(read: Example, text: str, shape: RowFormat) -> Example:
    asked = (Message(role="user", content=text),)
    return Example(messages=asked, answer="", shape=shape, path=read.path, line=read.line)
