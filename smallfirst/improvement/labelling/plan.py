"""The order of requests: rows that measure the teacher first, so that labels have an accuracy if the cap ends a run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from smallfirst.data.dataset import Dataset, Example, fold_text, sample_rows
from smallfirst.data.quality.leaks import find_leaks
from smallfirst.data.sources.load import load_rows
from smallfirst.errors import DataError, Problem
from smallfirst.evaluation.self_agreement import TeacherAnswer
from smallfirst.improvement.labelling.answer_log import AnswerLog, LabelRequest
from smallfirst.improvement.labelling.options import LabelOptions
from smallfirst.improvement.labelling.unlabelled import FilterCounts, filter_texts, read_texts
from smallfirst.project.project import Project
from smallfirst.project.rows import with_canonical_answers
from smallfirst.records import fingerprint
from smallfirst.tasks.task import Task


class LabelPlan:
    """The rows of one labelling and their requests."""

    def __init__(self, project: Project, texts: Path, options: LabelOptions, prompt_fingerprint: str) -> None:
        """Read the rows. Raise DataError for bad rows, rows with answers, or `gold` rows that certify or measure."""
        shape = project.rows.train.examples[0].shape
        read = read_texts(texts, shape, project.file.data.columns)
        people = project.rows.selection if options.gold is None else _read_gold(project, options.gold)
        self.left: Dataset
        self.filtered: FilterCounts
        self.left, self.filtered = filter_texts(read, project.rows, people)
        self.texts_fingerprint = read.content_fingerprint
        self.check = sample_rows(people, options.check_rows)
        self.checked_on = "selection rows" if options.gold is None else f"rows of {options.gold.name}"
        self.samples, self.prompt_fingerprint, self.task = options.samples, prompt_fingerprint, project.task
        self.again = self.left if options.samples > 1 else sample_rows(self.left, options.again_rows)

    @cached_property
    def requests(self) -> dict[LabelRequest, str]:
        """Every request with its text, in order."""
        found = self._of(self.check.examples, self.samples)
        found |= self._of(self.again.examples, max(2, self.samples))
        return found | self._of(self.left.examples, self.samples)

    def request(self, example: Example, draw: int) -> LabelRequest:
        return LabelRequest(fingerprint([self.prompt_fingerprint, example.text]), draw)

    def draws(self, example: Example, n: int, log: AnswerLog) -> list[TeacherAnswer] | None:
        """Return the row's first `n` answers as the task parses them; None if some are missing."""
        response = [log.answers.get(self.request(example, i)) for i in range(n)]
        there = [s for s in response if s is not None]
        if len(there) < n:
            return None
        return [
            TeacherAnswer(_answer(self.task, s.answer, cut=s.finish_reason == "length"), s.confidence) for s in there
        ]

    def _of(self, examples: Iterable[Example], n: int) -> dict[LabelRequest, str]:
        return {self.request(example, draw): example.text for example in examples for draw in range(n)}


def _answer(task: Task, response: str, *, cut: bool) -> str | None:
    """Parse an answer. Open text that was cut off is no answer; a label or complete JSON before the cut is one."""
    if cut and not task.closed and task.answer_schema() is None:
        return None
    return task.parse(response)


def _read_gold(project: Project, path: Path) -> Dataset:
    """Read rows answered by people, in canonical form, without those that the teacher may see in its prompt.

    Raise DataError for rows that do not fit, rows that certify or measure, or if none is left.
    """
    labels = project.task.closed or None
    rows = load_rows(path, columns=project.file.data.columns, labels=labels)
    rows = with_canonical_answers(project.rows.model_copy(update={"selection": rows}), project.task).selection
    kept = [part for part in project.rows.held_out if part is not project.rows.selection]
    leaks = find_leaks(Dataset(name="kept", examples=tuple(e for part in kept for e in part.examples)), rows)
    if seen := {leak.key for leak in (*leaks.exact, *leaks.folded)}:
        raise DataError(
            f"{path}: {len(seen):,} rows are test, calibration or open-ended rows, on which nothing is chosen",
            [Problem(str(path), e.line, "is also a test or calibration row") for e in rows.examples if e.key in seen],
            hint="have other rows answered by people, or leave out gold to use the selection rows",
        )
    shown = {fold_text(e.asked) for e in project.rows.train.examples}
    left = tuple(e for e in rows.examples if fold_text(e.asked) not in shown)
    if not left:
        raise DataError(f"{path}: all its rows are training rows, which the teacher may see as examples")
    return rows.subset(path.name, left)
