"""What may be wrong with the rows: test rows that repeat training rows, and answers that are probably wrong."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from smallfirst.data.check import Finding, make_finding, severity_of
from smallfirst.data.copies import LeakReport, find_leaks
from smallfirst.data.dataset import Example, sample_rows
from smallfirst.measuring.data_issues import SINGLE_ROWS, SYSTEMATIC, DataIssue, RecordedRow, find_issues, looked_at
from smallfirst.measuring.evaluate import Evaluation, EvaluationSetup, restrict_to_rows
from smallfirst.measuring.label_errors import SuspectLine, suspect_line, write_suspects
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.rows import PARTS
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.settlements import read_settlements, text_key

AGREEMENT = "right is what was recorded, which may be wrong"
"""How a certificate begins what it says of systematic findings that nobody has settled."""
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


@shown_as("judging the answers")
def find_project_issues(project: Project) -> tuple[DataIssue, ...]:
    """Return what seems to be wrong with the answers of all rows, those that measure and certify included."""
    rows = project.rows
    if project.file.may_have_no_answer:  # turns of a conversation are near copies with different answers
        return ()
    parts = [*(getattr(rows, name) for name in PARTS), rows.left_out]
    examples = looked_at([example for part in parts for example in part.examples])
    return find_issues([recorded_row(example) for example in examples], labels=project.task.closed)


def recorded_row(example: Example) -> RecordedRow:
    """Return a row as findings look at it, by the key of its text."""
    answer: Any = example.answer
    if example.shape in ("labels", "target"):
        answer = json.loads(answer)
    try:
        at = datetime.fromisoformat(example.at)
    except ValueError:
        at = None
    return RecordedRow(text_key(example), example.asked, answer, at, example.tenant, example.place)


def issue_finding(issue: DataIssue) -> Finding:
    """Return the issue as a finding of `check`."""
    level = "fix" if issue.kind in SYSTEMATIC else severity_of(issue.n, issue.of, small="note", large="fix", bar=0.05)
    what, cost, *where = issue.in_words
    return make_finding(level, what, f"{cost.strip()}; settle it: smallfirst review task.yaml", where, issue.n)


def export_suspects(project: Project, path: Path, *, n_random: int = 0) -> int:
    """Write rows for a person to fill in to `path`: probable label errors among the training rows; return their number.

    With `n_random` also so many calibration rows, drawn by content alone: judged all, they certify alone. No other
    held-out row is judged: corrected where models disagree, they would flatter every model. What is filled in stays.
    """
    lines, train = list[SuspectLine](), project.rows.train
    by_text = {text_key(example): example for example in reversed(train.examples)}
    for issue in find_project_issues(project) if project.task.closed else ():
        for key, suggested in issue.suggested.items():
            example = by_text.get(key)
            if example is not None and issue.kind in SINGLE_ROWS and example.answer != suggested:
                lines.append(suspect_line(example, suggested))
    drawn = sample_rows(project.rows.calibration, n_random).examples if n_random else ()
    write_suspects([*lines, *(suspect_line(example) for example in drawn)], path)
    return len(lines)


def unsettled_issues(project: Project) -> tuple[DataIssue, ...]:
    """Return what a person can settle and has not, systematic findings first."""
    settled = {one.id for one in read_settlements(project.file.folder)}
    train = {text_key(example) for example in project.rows.train.examples}
    found = find_project_issues(project)
    return tuple(i for i in found if i.id not in settled and (i.kind not in SINGLE_ROWS or train & set(i.keys)))


def systematic_doubt(project: Project) -> str:
    """Return why a certificate can promise agreement with the recorded answers alone; empty if nothing says so.

    People's answers to calibration rows certify whatever was recorded of the others.
    """
    train, calibration = project.rows.train.examples, project.rows.calibration.examples
    by_people = any(e.source for e in train) and not any(e.source for e in calibration)
    if by_people or not any(e.at or e.tenant for e in train):
        return ""
    found = [issue.what for issue in unsettled_issues(project) if issue.kind in SYSTEMATIC]
    return f"{AGREEMENT}: {'; '.join(found)}, and nobody has settled it" if found else ""
