"""Run the whole path on a public set and write its figures to benchmarks/results/SET.json.

    python -m benchmarks.accuracy.run banking77             # all stages
    python -m benchmarks.accuracy.run banking77 --resume    # continue after the training of the latest run

Sets are the files of benchmarks/sets; a set's folder (benchmarks/datasets.py) has train.jsonl, validation.jsonl and
test.jsonl. Most of the time is training, 15 to 30 minutes a set on two cores.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import date

from benchmarks.datasets import RESULTS, SETS, data_folder, processor, task_file
from smallfirst.base.errors import GateFailed
from smallfirst.base.progress import Progress
from smallfirst.measuring.evaluate import compare
from smallfirst.path import run as pipeline
from smallfirst.path.project.candidates import project_candidates
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.summary import format_summary, summarize_run
from smallfirst.training.run import Run


def main() -> None:
    known = sorted(path.stem for path in (SETS).glob("*.yaml"))
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in known:
        sys.exit(f"which set? {', '.join(known)}")
    folder = data_folder(name)
    file = task_file(name, folder)
    progress = Progress()
    progress.log(f"{name} from {folder}")
    try:
        if "--resume" in sys.argv:
            resume(Project.read(file, progress))
        else:
            pipeline.run(file, progress=progress)
    except GateFailed as refusal:
        progress.log(str(refusal))
    run_folder = RunFolder.latest(file.name)
    outcome = summarize_run(file, run_folder)
    run = Run.load(run_folder.path / "run.json")
    evaluations = {e.candidate: e for e in run_folder.evaluations("test")}
    pairs = [("small", "words"), ("small", "encoder"), ("small", "large"), ("routed", "large")]
    result = {
        "benchmark": name,
        "command": f"python -m benchmarks.accuracy.run {name}",
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {processor()}, Python {platform.python_version()}",
        "training_minutes": round(run.seconds / 60, 2),
        "training_tokens_per_s": round(run.tokens_per_s, 1),
        "training_config": run.config.model_dump(),
        "validation_curve": run.validation_curve,
        "comparisons": [
            compare(evaluations[a], evaluations[b]).model_dump() for a, b in pairs if {a, b} <= evaluations.keys()
        ],
        "outcome": json.loads(outcome.model_dump_json(exclude={"report"})),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(format_summary(outcome))


def resume(project: Project) -> None:
    """Run the stages after training on the latest run; skip candidates already measured."""
    run_folder = RunFolder.latest(project.file.name)
    left = tuple(c.name for c in project_candidates(project) if run_folder.evaluation(c.name, "test") is None)
    pipeline.evaluate_stage(project._replace(file=project.file.model_copy(update={"ladder": left})), run_folder)
    pipeline.gate_and_release(project, run_folder)


if __name__ == "__main__":
    main()
