"""Small first sets: what selection rows and out-of-fold answers say of a candidate, and what it is worth on fresh rows.

    python -m benchmarks.accuracy.out_of_fold FOLDER CASE [CASE ...] [--ladder words encoder tuned]

CASE is one of `plain_sets.py`, such as clinc150-300. Each candidate is fitted on training rows with its settings chosen
on selection rows, and then in folds and on both; each time it answers the rows that the case holds back. Prints a line
of the table for each. FOLDER keeps the models.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import numpy as np
import yaml

from benchmarks.accuracy.plain_sets import Case, read_case
from smallfirst.data.dataset import Dataset
from smallfirst.data.sources.load import load_rows
from smallfirst.evaluation.calibration import expected_calibration_error
from smallfirst.evaluation.evaluate import EvaluationSetup, evaluate
from smallfirst.evaluation.results import Evaluation
from smallfirst.paths import state_of
from smallfirst.progress import Progress
from smallfirst.project.candidates import Candidate, get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file
from smallfirst.stats.intervals import Estimate, paired_difference, wilson

HEAD = (
    "| case | candidate | selection rows | out of fold | fresh rows, fitted on training rows | fresh rows, refitted | "
    "refitted less before | calibration error before, after | minutes before, folds + refit |\n|" + "---|" * 9
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--ladder", nargs="+", default=["words", "encoder", "tuned"])
    options = parser.parse_args()
    print(HEAD, flush=True)
    for name in options.cases:
        project, fresh = project_of(read_case(name), options.folder.absolute() / name, options.ladder)
        with state_of(project.file.folder):
            for candidate in map(get_candidate, options.ladder):
                print(f"| {name} | {candidate.name} | {line(project, fresh, candidate)} |", flush=True)


def project_of(case: Case, folder: Path, ladder: list[str]) -> tuple[Project, Dataset]:
    """Write the case's rows and return its project and the rows that it never has."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("rows", case.given), ("fresh", case.held_back)):
        lines = (json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    settings = {"data": {"train": "rows.jsonl"}, "ladder": ladder}
    (folder / "task.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    project = Project.read(read_task_file(folder), Progress(quiet=True))
    return project, load_rows(folder / "fresh.jsonl", labels=project.task.closed)


def line(project: Project, fresh: Dataset, candidate: Candidate) -> str:
    """Return the cells of a candidate."""
    began, first = time.perf_counter(), RunFolder.new(f"{project.file.name}-{candidate.name}-first")
    candidate.fit(project, first)
    fitted = time.perf_counter()
    second = RunFolder.new(f"{project.file.name}-{candidate.name}-folds")
    folds = candidate.out_of_fold(project, second)
    candidate.refit(project, second, folds)
    ended = time.perf_counter()
    rows, task = project.rows, project.task
    on_selection = answered(project, rows.selection, candidate, first).accuracy
    right = [
        task.score(example.golds, task.parse(one.text)) >= task.pass_score
        for example, one in zip(rows.development.examples, folds.completions(candidate.name), strict=True)
    ]
    before, after = answered(project, fresh, candidate, first), answered(project, fresh, candidate, second)
    gain = paired_difference([row.correct for row in after.rows], [row.correct for row in before.rows])
    cells = [shown(one) for one in (on_selection, wilson(sum(right), len(right)), before.accuracy, after.accuracy)]
    cells.append(f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
    cells.append(f"{error_of(before):.3f}, {error_of(after):.3f}")
    cells.append(f"{(fitted - began) / 60:.2f}, {(ended - fitted) / 60:.2f}")
    return " | ".join(cells)


def answered(project: Project, rows: Dataset, candidate: Candidate, folder: RunFolder) -> Evaluation:
    async def ask() -> Evaluation:
        model = candidate.load(project, folder)
        try:
            return await evaluate(model, EvaluationSetup(project.task, rows, "fresh"), candidate=candidate.name)
        finally:
            await model.aclose()

    return asyncio.run(ask())


def error_of(found: Evaluation) -> float:
    rows = found.rows
    return expected_calibration_error([row.confidence or 0.0 for row in rows], [row.correct for row in rows])


def shown(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}] n={np.round(found.n):,.0f}"


if __name__ == "__main__":
    main()
