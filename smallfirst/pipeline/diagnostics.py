"""What a sceptic asks of a run: leaked test rows, wrong labels, and how far the large model agrees with itself.

Everything is kept in the run's folder, so it is looked for once. The price of the last question is a second pass of the
large model over some test rows; it is asked only if `large.sample_ceiling` says so.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from smallfirst.data.quality.leaks import Leaks, find_leaks
from smallfirst.evaluation.evaluate import Measuring, evaluate
from smallfirst.evaluation.label_errors import Suspect, export, suspects
from smallfirst.evaluation.results import Evaluation
from smallfirst.evaluation.self_agreement import Ceiling, ceiling
from smallfirst.pipeline import large_model as large_path
from smallfirst.project.project import Job
from smallfirst.project.run_folder import Workspace
from smallfirst.records import Record


class Doubts(Record):
    """What was found."""

    leaks: Leaks
    """Test rows that also stand in the training rows."""
    suspects: tuple[Suspect, ...] = ()
    """Calibration and test rows whose given answer is probably wrong."""
    ceiling: Ceiling | None = None
    """The large model against itself; None if it was not asked twice."""


def leaks_of(job: Job, workspace: Workspace) -> Leaks:
    """The leaks between the job's rows, looked for once a run."""
    path = workspace.folder / "leaks.json"
    if path.exists():
        found = Leaks.load(path)
        if found.test_fingerprint == job.rows.test.content_fingerprint:
            return found
    found = find_leaks(job.rows.train, job.rows.test)
    found.save(path)
    return found


def suspects_of(workspace: Workspace) -> tuple[Suspect, ...]:
    """Probable label errors among the rows that were evaluated; none of them was trained on."""
    heard = [e for split in ("calibration", "test") for e in _evaluations(workspace, split)]
    return suspects(heard)


def export_suspects(workspace: Workspace, path: Path) -> int:
    """How many suspects were written to `path`, for a person to fill in; what is filled in already stays."""
    found = suspects_of(workspace)
    export(found, path)
    return len(found)


def ceiling_of(job: Job, workspace: Workspace) -> Ceiling | None:
    """The large model's agreement with itself; None if the task file asks for none, or nobody can be asked again."""
    path, large = workspace.folder / "ceiling.json", job.file.large
    if path.exists():
        return Ceiling.load(path)
    first = workspace.evaluation("large", "test")
    if first is None or large is None or not large.sample_ceiling:
        return None
    found = asyncio.run(_asked_twice(job, workspace))
    if found:
        found.save(path)
    return found


async def _asked_twice(job: Job, workspace: Workspace) -> Ceiling | None:
    again = await large_path.asked_again(job.file, job.task, job.rows, watch=job.watch)
    first = workspace.evaluation("large", "test")
    if again is None or first is None:
        return None
    data = large_path.sample(job.rows.test, large_path.n_asked_again(job.file))
    second = await evaluate(again, Measuring(job.task, data, split="test"), candidate="large", note=again.note)
    return ceiling(first, second)


def doubts_of(job: Job, workspace: Workspace) -> Doubts:
    """Everything a sceptic asks, with a line on the terminal for what was found."""
    leaks, found, highest = leaks_of(job, workspace), suspects_of(workspace), ceiling_of(job, workspace)
    job.watch.say(
        f"scrutiny: {leaks.n_leaked} of {leaks.n_test} test rows also in the training rows, "
        f"{len(found)} probable label errors" + (f"; {highest.in_words}" if highest else "")
    )
    return Doubts(leaks=leaks, suspects=found, ceiling=highest)


def _evaluations(workspace: Workspace, split: str) -> list[Evaluation]:
    names = ("words", "encoder", "tuned", "small", "large")
    return [e for name in names if (e := workspace.evaluation(name, split)) is not None]
