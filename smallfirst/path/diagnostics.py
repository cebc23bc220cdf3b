"""What may be wrong with the rows: test rows that repeat training rows, and labels that are probably wrong."""

from __future__ import annotations

from pathlib import Path

from smallfirst.data.copies import LeakReport, find_leaks
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation, EvaluationSetup, restrict_to_rows, score_row
from smallfirst.measuring.label_errors import find_label_errors, write_suspects
from smallfirst.path.candidates.linear import WORDS
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.run_folder import RunFolder

LEAKS = "leaks.json"
"""File of the LeakReport in a run folder."""


def find_split_leaks(project: Project, run_folder: RunFolder) -> LeakReport:
    """Return the test rows that are also training rows."""
    known = run_folder.find(LeakReport, LEAKS)
    if known and known.test_fingerprint == project.rows.test.content_fingerprint:
        return known
    found = find_leaks(project.rows.train, project.rows.test)
    found.save(run_folder.path / LEAKS)
    return found


def without_copies(project: Project, evaluation: Evaluation, leaks: LeakReport) -> Evaluation:
    """Return an evaluation of test rows on those that repeat no training row; the same one if none does."""
    test = project.rows.test
    clean = test.subset(test.name, tuple(row for row in test.examples if row.key not in leaks.keys))
    if len(clean) == len(test):
        return evaluation
    return restrict_to_rows(evaluation, EvaluationSetup(project.task, clean, split=evaluation.split))


@shown_as("judging the training rows")
def export_suspects(project: Project, path: Path) -> int:
    """Write probable label errors among the training rows to `path` for a person to fill in; return their number.

    Only labels are judged, each by a model of words that was fitted without it. What is filled in already stays.
    Held-out rows are none of them: corrected where models disagree, and left alone where models repeat a wrong label,
    they would flatter every model.
    """
    task, train = project.task, project.rows.train
    suspects: tuple[EvaluatedRow, ...] = ()
    if task.closed and len(train.labels()) > 1:
        rows = project.rows.model_copy(update={"selection": train.subset("none", ())})
        answers = WORDS.out_of_fold(project._replace(rows=rows), RunFolder(path.parent)).completions("words")
        judged = [score_row(e, answer, task, "words") for e, answer in zip(train.examples, answers, strict=True)]
        suspects = find_label_errors(judged)
    write_suspects(suspects, path)
    return len(suspects)
