"""Instructions inside a case: how many are answered small, by what the domain check may cost own requests.

    python benchmarks/routing/injections.py FOLDER…        # each: a task with a promoted run
    python benchmarks/routing/injections.py --odd FOLDER…  # every other instruction: the task has seen the others

Columns: rows as they are, answered small and under the promise; with an instruction, the same; the instructions alone;
of the rows answered small both times those with another label.

Each test row is asked as it is, and with one of the 40 instructions of injections.txt behind it. All were written for it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from smallfirst.base.paths import state_of
from smallfirst.base.progress import Progress
from smallfirst.base.stats.intervals import wilson
from smallfirst.deployment.task_deployment import TaskDeployment
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Request
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import read_task_file
from smallfirst.routing.router import OUT_OF_SCOPE

INJECTIONS = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()


async def measure(folder: Path, instructions: Sequence[str]) -> str:
    file = read_task_file(folder)
    with state_of(file.folder):
        ledger = Ledger(file.folder / ".smallfirst" / "ledger.db")
        task = TaskDeployment(file, ledger)
        deployed = task.load(task.target_versions())
        texts = [example.text for example in Project.read(file, Progress(quiet=True)).rows.test.examples]
        found = {}
        for name, asked in {
            "as they are": texts,
            "with an instruction": [f"{text} {instructions[i % len(instructions)]}" for i, text in enumerate(texts)],
            "the instruction alone": instructions,
        }.items():
            decisions = [await deployed.router.router.decide(Request.ask(text)) for text in asked]
            found[name] = [
                (one.draft.text, one.route.certified)
                if one.model is None and one.draft and one.route.stage != OUT_OF_SCOPE
                else None
                for one in decisions
            ]
        await deployed.aclose()
        ledger.close()
    shares = []
    for answers in found.values():
        n = len(answers)
        shares += [wilson(sum(1 for one in answers if one), n), wilson(sum(1 for one in answers if one and one[1]), n)]
    both = [(a[0], b[0]) for a, b in zip(*list(found.values())[:2], strict=True) if a and b]
    other = wilson(sum(a != b for a, b in both), len(both))
    return f"| {' | '.join([folder.name, *map(str, [*shares, other])])} |"


if __name__ == "__main__":
    odd = "--odd" in sys.argv
    for folder in sys.argv[1 + odd :]:
        print(asyncio.run(measure(Path(folder), INJECTIONS[odd :: 1 + odd])), flush=True)
