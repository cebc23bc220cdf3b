"""Diagnostics of a run: leaks, probable label errors, the large model's agreement with itself, the learning curve.

Results are saved in the run folder and computed once. Self-agreement asks the large model some test rows a second time,
if `large.sample_ceiling` says how many.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from smallfirst.base.records import Record
from smallfirst.data.copies import LeakReport, find_leaks
from smallfirst.data.dataset import sample_rows, sample_share
from smallfirst.measuring.evaluate import Evaluation, EvaluationSetup, evaluate, restrict_to_rows, summarize
from smallfirst.measuring.label_errors import Suspect, find_label_errors, write_suspects
from smallfirst.measuring.learning_curve import LearningCurve, LearningPoint, subsets_per_label
from smallfirst.measuring.self_agreement import SelfAgreement, self_agreement
from smallfirst.path import large_model as large_path
from smallfirst.path.candidates.linear import WORDS
from smallfirst.path.project.candidate_registry import promotable_names
from smallfirst.path.project.candidates import fitted_candidates
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.run_folder import RunFolder

_FOLDS = 5
LEAKS, CEILING, LEARNING = "leaks.json", "ceiling.json", "learning.json"
"""Files of the LeakReport, the SelfAgreement and the LearningCurve in a run folder."""


class Diagnostics(Record):
    """The diagnostics of a run."""

    leaks: LeakReport
    """Test rows that are also training rows."""
    suspects: tuple[Suspect, ...] = ()
    """Calibration and test rows whose given answer is probably wrong."""
    ceiling: SelfAgreement | None = None
    """The large model's agreement with itself; None if it was not asked twice."""


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


def find_suspects(run_folder: RunFolder) -> tuple[Suspect, ...]:
    """Return probable label errors among the evaluated rows, none of which was trained on."""
    evaluations = [e for split in ("calibration", "test") for e in _evaluations(run_folder, split)]
    return find_label_errors(evaluations)


def find_training_suspects(project: Project) -> tuple[Suspect, ...]:
    """Return probable label errors among the training rows, each judged by a model of words that was fitted without it.

    Only labels are judged. Held-out rows are none of them: corrected where models disagree, and left alone where models
    repeat a wrong label, they would flatter every model.
    """
    task, train = project.task, project.rows.train
    folds = [sample_share(train, fold / _FOLDS, "suspects")[0] for fold in range(_FOLDS + 1)]
    evaluations = []
    for before, upto in itertools.pairwise(folds) if task.closed else ():
        seen, held = (frozenset(map(id, fold.examples)) for fold in (before, upto))
        part = train.subset("fold", tuple(e for e in upto.examples if id(e) not in seen))
        rest = train.subset("rest", tuple(e for e in train.examples if id(e) not in held or id(e) in seen))
        if part.examples and len(rest.labels()) > 1:
            rows, setup = WORDS.answers(rest, part.examples, task), EvaluationSetup(task, part, split="train")
            evaluations.append(
                summarize(rows, setup, candidate="words", model="words", latencies_ms=[], requests_per_s=None)
            )
    return find_label_errors(evaluations)


@shown_as("judging the training rows")
def export_suspects(project: Project, path: Path) -> int:
    """Write the training rows' suspects to `path` for a person to fill in and return their number.

    What is filled in already stays.
    """
    found = find_training_suspects(project)
    write_suspects(found, path)
    return len(found)


def measure_self_agreement(project: Project, run_folder: RunFolder) -> SelfAgreement | None:
    """Return the large model's agreement with itself; None if it is not asked for, or no model can be asked."""
    if known := run_folder.find(SelfAgreement, CEILING):
        return known
    first, large = run_folder.evaluation("large", "test"), project.file.large
    if first is None or large is None or not large.sample_ceiling:
        return None
    found = asyncio.run(_asked_twice(project, first))
    if found:
        found.save(run_folder.path / CEILING)
    return found


async def _asked_twice(project: Project, first: Evaluation) -> SelfAgreement | None:
    again = await large_path.second_answers(project.file, project.task, project.rows, progress=project.progress)
    if again is None:
        return None
    data = sample_rows(project.rows.test, large_path.n_second_answers(project.file))
    second = await evaluate(
        again, EvaluationSetup(project.task, data, split="test"), candidate="large", note=again.note
    )
    return self_agreement(first, second)


def diagnose(project: Project, run_folder: RunFolder) -> Diagnostics:
    """Return all diagnostics and log a line about them."""
    leaks, found, highest = (
        find_split_leaks(project, run_folder),
        find_suspects(run_folder),
        measure_self_agreement(project, run_folder),
    )
    project.progress.log(
        f"diagnostics: {leaks.n_leaked} of {leaks.n_test} test rows also in the training rows, "
        f"{len(found)} probable label errors" + (f"; {highest.in_words}" if highest else "")
    )
    return Diagnostics(leaks=leaks, suspects=found, ceiling=highest)


@shown_as("measuring the learning curve")
def measure_curve(project: Project, run_folder: RunFolder) -> None:
    """Fit the candidates that have a learning curve on parts of the rows, and save the curve in the run folder.

    The point for all rows is the run's own evaluation.
    """
    points, rows = list[LearningPoint](), project.rows.train
    parts = subsets_per_label(rows) if project.task.closed else []
    for candidate in fitted_candidates(project, run_folder) if parts else ():
        if not candidate.learning_curve:
            continue
        for part, accuracy in zip(parts, candidate.accuracies(project, parts), strict=True):
            points.append(LearningPoint(n_rows=len(part), candidate=candidate.name, accuracy=accuracy))
            project.progress.log(f"{candidate.name} with {len(part)} rows: accuracy {accuracy}")
        if (whole := run_folder.evaluation(candidate.name, "test")) is not None:
            n_rows = len(project.rows.development if run_folder.folds(candidate.name) else rows)
            points.append(LearningPoint(n_rows=n_rows, candidate=candidate.name, accuracy=whole.accuracy))
    LearningCurve(points=tuple(points)).save(run_folder.path / LEARNING)


def _evaluations(run_folder: RunFolder, split: str) -> list[Evaluation]:
    names = (*promotable_names(), "large")
    return [e for name in names if (e := run_folder.evaluation(name, split)) is not None]
