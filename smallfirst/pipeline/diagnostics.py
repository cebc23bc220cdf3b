"""What a sceptic asks of a run: leaked test rows, wrong labels, and how far the large model agrees with itself.

Everything is kept in the run's folder, so it is looked for once. The price of the last question is a second pass of the
large model over some test rows; it is asked only if `large.sample_ceiling` says so.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from smallfirst.data.dataset import sample_rows
from smallfirst.data.quality.leaks import LeakReport, find_leaks
from smallfirst.evaluation.evaluate import EvaluationSetup, evaluate
from smallfirst.evaluation.label_errors import Suspect, find_label_errors, write_suspects
from smallfirst.evaluation.results import Evaluation
from smallfirst.evaluation.self_agreement import SelfAgreement, self_agreement
from smallfirst.pipeline import large_model as large_path
from smallfirst.project.candidates import promotable_names
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.records import Record


class Diagnostics(Record):
    """What was found."""

    leaks: LeakReport
    """Test rows that also stand in the training rows."""
    suspects: tuple[Suspect, ...] = ()
    """Calibration and test rows whose given answer is probably wrong."""
    ceiling: SelfAgreement | None = None
    """The large model against itself; None if it was not asked twice."""


def find_split_leaks(project: Project, run_folder: RunFolder) -> LeakReport:
    """The leaks between the job's rows, looked for once a run."""
    path = run_folder.path / "leaks.json"
    if path.exists():
        found = LeakReport.load(path)
        if found.test_fingerprint == project.rows.test.content_fingerprint:
            return found
    found = find_leaks(project.rows.train, project.rows.test)
    found.save(path)
    return found


def find_suspects(run_folder: RunFolder) -> tuple[Suspect, ...]:
    """Probable label errors among the rows that were evaluated; none of them was trained on."""
    heard = [e for split in ("calibration", "test") for e in _evaluations(run_folder, split)]
    return find_label_errors(heard)


def export_suspects(run_folder: RunFolder, path: Path) -> int:
    """How many suspects were written to `path`, for a person to fill in; what is filled in already stays."""
    found = find_suspects(run_folder)
    write_suspects(found, path)
    return len(found)


def measure_self_agreement(project: Project, run_folder: RunFolder) -> SelfAgreement | None:
    """The large model's agreement with itself; None if the task file asks for none, or nobody can be asked again."""
    path, large = run_folder.path / "ceiling.json", project.file.large
    if path.exists():
        return SelfAgreement.load(path)
    first = run_folder.evaluation("large", "test")
    if first is None or large is None or not large.sample_ceiling:
        return None
    found = asyncio.run(_asked_twice(project, run_folder))
    if found:
        found.save(path)
    return found


async def _asked_twice(project: Project, run_folder: RunFolder) -> SelfAgreement | None:
    again = await large_path.second_answers(project.file, project.task, project.rows, progress=project.progress)
    first = run_folder.evaluation("large", "test")
    if again is None or first is None:
        return None
    data = sample_rows(project.rows.test, large_path.n_second_answers(project.file))
    second = await evaluate(
        again, EvaluationSetup(project.task, data, split="test"), candidate="large", note=again.note
    )
    return self_agreement(first, second)


def diagnose(project: Project, run_folder: RunFolder) -> Diagnostics:
    """Everything a sceptic asks, with a line on the terminal for what was found."""
    leaks, found, highest = (
        find_split_leaks(project, run_folder),
        find_suspects(run_folder),
        measure_self_agreement(project, run_folder),
    )
    project.progress.log(
        f"scrutiny: {leaks.n_leaked} of {leaks.n_test} test rows also in the training rows, "
        f"{len(found)} probable label errors" + (f"; {highest.in_words}" if highest else "")
    )
    return Diagnostics(leaks=leaks, suspects=found, ceiling=highest)


def _evaluations(run_folder: RunFolder, split: str) -> list[Evaluation]:
    names = (*promotable_names(), "large")
    return [e for name in names if (e := run_folder.evaluation(name, split)) is not None]
