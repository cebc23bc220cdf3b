"""Training rows from a folder that `smallfirst score` wrote: any number of rows, a part of them held at a time.

A large input is answered in bulk first, into a folder of the state folder: what is kept there is not asked again.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallfirst.batch.folder import ABOUT, BatchAbout
from smallfirst.batch.rows import RowSource
from smallfirst.batch.score import ScoreOptions, score
from smallfirst.batch.scorer import ScorerSource
from smallfirst.data.dataset import Dataset, Example, Message, fold_text
from smallfirst.data.sources.parquet import import_pyarrow
from smallfirst.errors import ConfigError, DataError, SpendingLimitReached
from smallfirst.evaluation.self_agreement import TeacherAnswer
from smallfirst.improvement.labelling.result import LabelOptions, LabelOutcome, training_file
from smallfirst.improvement.labelling.unlabelled import FilterCounts, filter_texts
from smallfirst.paths import home
from smallfirst.project.expenses import note_expense
from smallfirst.project.project import Project
from smallfirst.records import Record, fingerprint

BULK_BYTES = 64 << 20
"""Inputs of more bytes are labelled in bulk, unless they are checked on rows of one's own."""


class ScoredLabels(Record):
    """What became of the rows of a batch."""

    teacher: str
    out: Path
    n_rows: int = 0
    n_kept: int = 0
    n_unsure: int = 0
    """Rows whose answer has too little confidence, or that have none."""
    filtered: FilterCounts = FilterCounts(n_rows=0)

    @property
    def in_words(self) -> list[str]:
        return [
            f"{self.n_kept:,} of {self.n_rows:,} rows labelled by {self.teacher} in {self.out}; {self.n_unsure:,} "
            "unsure or with an error",
            self.filtered.in_words,
            "how accurate the teacher is:  smallfirst evaluate task.yaml",
        ]


def is_scored(rows: Path) -> bool:
    """Return True if `rows` is the folder of a batch."""
    return (rows / ABOUT).is_file()


def is_bulk(rows: Path, options: LabelOptions) -> bool:
    """Return True if `rows` is a file or folder too large to be held in memory."""
    files = rows.rglob("*") if rows.is_dir() else [rows]
    n_bytes = sum(file.stat().st_size for file in files if file.is_file())
    return n_bytes > BULK_BYTES and options.gold is None


def label_in_bulk(project: Project, task: Path, rows: Path, options: LabelOptions) -> ScoredLabels:
    """Have the teacher answer the rows as `score` does, then write its answers as `label_scored` does.

    `task` is the path of task.yaml. Called again, it goes on where it ended. Raise as these two do, DataError for rows
    with answers, SpendingLimitReached at the cap.
    """
    columns = project.file.data.columns
    source = RowSource(str(rows), columns=columns)
    if answered := {columns.label, columns.labels, columns.target, columns.answer}.intersection(source.names):
        raise DataError(
            f"{rows}: its rows have answers already (column {min(answered)!r})",
            hint="name the file as data.train; or remove the answers to label the rows again",
        )
    keep = tuple(n for n in (columns.text, columns.question, columns.prompt, columns.context) if n in source.names)
    model = str(options.teacher) if options.teacher else "large"
    decides = fingerprint([str(rows.absolute()), source.fingerprint, ScorerSource.find(task, model).decides])
    folder = home() / "labels" / project.file.name / f"bulk-{decides}"
    how = ScoreOptions(model=model, keep=keep, cap_usd=options.cap_usd, yes=options.yes, retry_errors=folder.exists())
    project.progress.log(f"in bulk, kept in {folder}")
    found = score(task, str(rows), folder, options=how, progress=project.progress)
    counts, task_name = found.counts, project.file.name
    note_expense(task_name, "labelling", folder.name, counts.cost_usd, what=f"{counts.n_answered:,} answers")
    if found.stopped:
        raise SpendingLimitReached(found.stopped)
    return label_scored(project, folder, options)


def label_scored(project: Project, folder: Path, options: LabelOptions) -> ScoredLabels:
    """Write the sure answers of a batch as training rows, without what equals a held-out or an earlier row.

    Raise ConfigError if the batch is not done or does not keep the column that was asked, or if `out` exists.
    """
    about, columns = BatchAbout.load(folder / ABOUT), project.file.data.columns
    kept = about.identity.keep
    asked = about.identity.text or next((n for n in (columns.text, columns.question, columns.prompt) if n in kept), "")
    if asked not in kept or not about.finished:
        raise ConfigError(
            f"{folder} has no texts beside its answers, or is not done", hint="smallfirst score … --keep text"
        )
    if options.out.exists():
        raise ConfigError(f"{options.out} exists already", hint="name another file: --out NAME.jsonl")
    total = ScoredLabels(teacher=about.identity.model, out=options.out).model_dump()
    seen: set[bytes] = set()
    day, draft = datetime.now(UTC).date().isoformat(), options.out.with_suffix(".part")
    with draft.open("w", encoding="utf-8") as file:
        for path in sorted(folder.glob("part-*.parquet")):
            rows = import_pyarrow("reading a batch").parquet.read_table(path).to_pylist()
            said = {}
            for row in rows:
                answer = TeacherAnswer(row["answer"], row["confidence"])
                key = hashlib.blake2b(fold_text(row[asked] or "").encode(), digest_size=8).digest()
                total["n_unsure"] += not (sure := answer.is_confident(options.min_confidence))
                if sure and key not in seen:
                    seen.add(key)
                    said[row["row"]] = answer
            left, found = filter_texts(_unanswered(project, rows, said, asked), project.rows, project.rows.selection)
            outcomes = [LabelOutcome(e, "kept", said[e.line], day) for e in left.examples]
            file.write(training_file(outcomes, columns, about.identity.model))
            for name, n in found.model_dump().items():
                total["filtered"][name] += n
            total["n_rows"], total["n_kept"] = total["n_rows"] + len(rows), total["n_kept"] + len(outcomes)
    draft.replace(options.out)
    return ScoredLabels.model_validate(total)


def _unanswered(project: Project, rows: list[dict[str, Any]], said: dict[int, TeacherAnswer], asked: str) -> Dataset:
    shape, context = project.rows.train.examples[0].shape, project.file.data.columns.context
    found = []
    for row in rows:
        if row["row"] in said:
            text = f"{row[context].strip()}\n\n{row[asked]}" if row.get(context) else row[asked]
            found.append(
                Example(messages=(Message(role="user", content=text),), answer="", shape=shape, line=row["row"])
            )
    return Dataset(name="batch", examples=tuple(found))
