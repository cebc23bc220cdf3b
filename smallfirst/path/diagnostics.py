"""Diagnostics of a run: leaks, probable label errors, the large model's agreement with itself.

Results are saved in the run folder and computed once. Self-agreement asks the large model some test rows a second time,
if `large.sample_ceiling` says how many.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from smallfirst.data.copies import LeakReport, find_leaks
from smallfirst.data.dataset import sample_rows
from smallfirst.measuring.evaluate import Evaluation, EvaluationSetup, evaluate, restrict_to_rows, score_row, summarize
from smallfirst.measuring.label_errors import Suspect, find_label_errors, write_suspects
from smallfirst.measuring.self_agreement import SelfAgreement, self_agreement
from smallfirst.path import large_model as large_path
from smallfirst.path.candidates.linear import WORDS
from smallfirst.path.project.candidate_registry import candidate_names
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.run_folder import RunFolder

LEAKS, CEILING = "leaks.json", "ceiling.json"
"""Files of the LeakReport and the SelfAgreement in a run folder."""


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
    names = (*candidate_names(), "large")
    measured = [run_folder.evaluation(name, split) for split in ("calibration", "test") for name in names]
    return find_label_errors([one for one in measured if one])


@shown_as("judging the training rows")
def export_suspects(project: Project, path: Path) -> int:
    """Write probable label errors among the training rows to `path` for a person to fill in; return their number.

    Only labels are judged, each by a model of words that was fitted without it. What is filled in already stays.
    Held-out rows are none of them: corrected where models disagree, and left alone where models repeat a wrong label,
    they would flatter every model.
    """
    task, train = project.task, project.rows.train
    suspects: tuple[Suspect, ...] = ()
    if task.closed and len(train.labels()) > 1:
        rows = project.rows.model_copy(update={"selection": train.subset("none", ())})
        answers = WORDS.out_of_fold(project._replace(rows=rows), RunFolder(path.parent)).completions("words")
        judged = [score_row(e, answer, task, "words") for e, answer in zip(train.examples, answers, strict=True)]
        setup = EvaluationSetup(task, train, split="train")
        words = summarize(judged, setup, candidate="words", model="words", latencies_ms=[], requests_per_s=None)
        suspects = find_label_errors([words])
    write_suspects(suspects, path)
    return len(suspects)


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
    file, rows = project.file, project.rows
    again = await large_path.second_answers(file, project.task, rows, progress=project.progress)
    if again is None:
        return None
    setup = EvaluationSetup(project.task, sample_rows(rows.test, large_path.n_second_answers(file)), split="test")
    return self_agreement(first, await evaluate(again, setup, candidate="large", note=again.note))
