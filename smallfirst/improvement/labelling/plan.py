"""What is asked, in which order: rows that measure the teacher first, then the rows to be labelled.

In this order, a cap that ends the work early leaves labels whose accuracy is known, not labels that nobody checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from smallfirst.data.dataset import Dataset, Example, fold_text, sample_rows
from smallfirst.data.quality.leaks import find_leaks
from smallfirst.data.sources.load import load
from smallfirst.errors import DataError, Problem
from smallfirst.evaluation.self_consistency import TeacherAnswer
from smallfirst.improvement.labelling.answer_log import AnswerLog, LabelRequest
from smallfirst.improvement.labelling.options import LabelOptions
from smallfirst.improvement.labelling.unlabelled import FilterCounts, filter_texts, read_texts
from smallfirst.project.project import Project
from smallfirst.project.rows import with_canonical_answers
from smallfirst.records import fingerprint
from smallfirst.tasks.task import Task


class LabelPlan:
    """The rows of one labelling and the errands they make."""

    def __init__(self, project: Project, texts: Path, options: LabelOptions, way: str) -> None:
        """Raises DataError for bad rows, rows with answers, or rows to check on that must not be looked at."""
        shape = project.rows.train.examples[0].shape
        read = read_texts(texts, shape, project.file.data.columns)
        people = project.rows.selection if options.gold is None else _read_gold(project, options.gold)
        self.left: Dataset
        self.sifted: FilterCounts
        self.left, self.sifted = filter_texts(read, project.file, project.rows, people)
        self.texts_fingerprint = read.content_fingerprint
        self.check = sample_rows(people, options.check_rows)
        self.checked_on = "selection rows" if options.gold is None else f"rows of {options.gold.name}"
        self.samples, self.way, self.task = options.samples, way, project.task
        self.again = self.left if options.samples > 1 else sample_rows(self.left, options.again_rows)

    @cached_property
    def errands(self) -> dict[LabelRequest, str]:
        """Every question with its text, in the order in which they are asked."""
        found = self._of(self.check.examples, self.samples)
        found |= self._of(self.again.examples, max(2, self.samples))
        return found | self._of(self.left.examples, self.samples)

    def errand(self, example: Example, draw: int) -> LabelRequest:
        """The question to the teacher for one draw of a row."""
        return LabelRequest(fingerprint([self.way, example.text]), draw)

    def draws(self, example: Example, n: int, journal: AnswerLog) -> list[TeacherAnswer] | None:
        """The row's first `n` answers as the task reads them; None if not all are there."""
        said = [journal.answers.get(self.errand(example, i)) for i in range(n)]
        there = [s for s in said if s is not None]
        if len(there) < n:
            return None
        return [
            TeacherAnswer(_answer(self.task, s.answer, cut=s.finish_reason == "length"), s.confidence) for s in there
        ]

    def _of(self, examples: Iterable[Example], n: int) -> dict[LabelRequest, str]:
        return {self.errand(example, draw): example.text for example in examples for draw in range(n)}


def _answer(task: Task, said: str, *, cut: bool) -> str | None:
    """The parsed answer; open text that was cut off is none, while a label or whole JSON before the cut is one."""
    if cut and not task.closed and task.answer_schema() is None:
        return None
    return task.parse(said)


def _read_gold(project: Project, path: Path) -> Dataset:
    """Rows that people have answered, in the task's canonical form, less those the teacher may see in its prompt.

    Raises DataError for rows that do not fit, rows that certify or measure, or if none is left.
    """
    labels = project.task.closed or None
    rows = load(path, columns=project.file.data.columns, labels=labels)
    rows = with_canonical_answers(project.rows.model_copy(update={"selection": rows}), project.task).selection
    kept = [part for part in project.rows.held_out if part is not project.rows.selection]
    leaks = find_leaks(Dataset(name="kept", examples=tuple(e for part in kept for e in part.examples)), rows)
    if seen := {leak.key for leak in (*leaks.exact, *leaks.folded)}:
        raise DataError(
            f"{path}: {len(seen):,} rows are test, calibration or open-ended rows, on which nothing is chosen",
            [
                Problem(str(path), e.line, "stands in the task's test or calibration rows")
                for e in rows.examples
                if e.key in seen
            ],
            hint="have other rows answered by people, or leave out gold to use the selection rows",
        )
    shown = {fold_text(e.asked) for e in project.rows.train.examples}
    left = tuple(e for e in rows.examples if fold_text(e.asked) not in shown)
    if not left:
        raise DataError(f"{path}: all its rows stand in the training rows, which the teacher may be shown as examples")
    return rows.subset(path.name, left)
