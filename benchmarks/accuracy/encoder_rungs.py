"""Fit candidates for closed answers on a set's training rows and measure them on all of its test rows.

    python -m benchmarks.accuracy.encoder_rungs SET [CANDIDATE ...]

SET is a file of benchmarks/sets; left out, the candidates are words, encoder, larger_encoder and tuned, each with the
settings that `smallfirst run` gives it: everything is chosen on selection rows. Prints a line of the table for each.
"""

from __future__ import annotations

import asyncio
import sys
import time

from benchmarks.accuracy.run import data_folder, task_file
from smallfirst.evaluation.evaluate import EvaluationSetup, evaluate
from smallfirst.evaluation.results import Evaluation
from smallfirst.progress import Progress
from smallfirst.project.candidates import Candidate, get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.stats.intervals import paired_difference

CANDIDATES = ("words", "encoder", "larger_encoder", "tuned")


def main() -> None:
    name, *wanted = sys.argv[1:]
    file = task_file(name, data_folder(name)).model_copy(update={"ladder": tuple(wanted or CANDIDATES)})
    project = Project.read(file, Progress())
    rows = project.rows
    print(f"{len(rows.train):,} train, {len(rows.selection):,} selection, {len(rows.test):,} test rows", flush=True)
    print("| candidate | accuracy | other metrics | n | less the first | minutes to fit |\n|---|---|---|---|---|---|")
    run_folder, first = RunFolder.new(name), None
    for candidate in map(get_candidate, wanted or CANDIDATES):
        began = time.perf_counter()
        candidate.fit(project, run_folder)
        minutes = (time.perf_counter() - began) / 60
        found = asyncio.run(measure(candidate, project, run_folder))
        right = [row.correct for row in found.rows]
        against = paired_difference(right, first) if first else None
        first = first or right
        versus = f"{against.value:+.3f} [{against.low:+.3f}, {against.high:+.3f}]" if against else ""
        others = ", ".join(f"{key} {value}" for key, value in found.measures.items())
        print(
            f"| {candidate.name} | {found.accuracy} | {others} | {len(right):,} | {versus} | {minutes:.1f} |",
            flush=True,
        )


async def measure(candidate: Candidate, project: Project, run_folder: RunFolder) -> Evaluation:
    model = candidate.load(project, run_folder)
    try:
        setup = EvaluationSetup(project.task, project.rows.test, split="test")
        return await evaluate(model, setup, candidate=candidate.name)
    finally:
        await model.aclose()


if __name__ == "__main__":
    main()
