"""The whole path on Banking77, and its figures in benchmarks/results/banking77.json.

    python benchmarks/banking77/run.py             # everything
    python benchmarks/banking77/run.py --resume    # goes on after the training of the latest run

Rows are taken from the folder SMALLFIRST_DATA, else from ../shared/datasets beside the repository; a set is a folder of
train.jsonl, validation.jsonl and test.jsonl with the fields text and label. About 40 minutes on two cores, 27 of them
training.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

from smallfirst import pipeline
from smallfirst.errors import GateFailed
from smallfirst.evaluation.evaluate import compare
from smallfirst.outcome import outcome_of, table
from smallfirst.taskfile import TaskFile, read_taskfile
from smallfirst.training.run import Run
from smallfirst.watching import Watch
from smallfirst.workspace import Workspace

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"


def data_folder() -> Path:
    """Folder of the set. Exits with the places looked in if there is none."""
    repository = HERE.parents[1]
    places = [Path(os.environ["SMALLFIRST_DATA"])] if "SMALLFIRST_DATA" in os.environ else []
    places.append(repository.parent / "shared" / "datasets")
    for place in places:
        if (place / "banking77" / "train.jsonl").is_file():
            return place / "banking77"
    sys.exit(
        "Banking77 was not found in " + " or ".join(str(p) for p in places) + ".\n"
        "It is public (PolyAI, task-specific-datasets, CC BY 4.0): convert it to JSON lines and set SMALLFIRST_DATA."
    )


def task_file(folder: Path) -> TaskFile:
    """The benchmark's task file with its rows in `folder`."""
    file = read_taskfile(HERE / "task.yaml")
    data = file.data.model_copy(update={name: folder / f"{name}.jsonl" for name in ("train", "validation", "test")})
    return file.model_copy(update={"data": data})


def main() -> None:
    folder = data_folder()
    file = task_file(folder)
    watch = Watch()
    watch.say(f"Banking77 from {folder}")
    try:
        if "--resume" in sys.argv:
            resume(pipeline.Job.read(file, watch))
        else:
            pipeline.run(file, watch=watch)
    except GateFailed as refusal:
        watch.say(str(refusal))
    workspace = Workspace.latest(file.name)
    outcome = outcome_of(file, workspace)
    run = Run.load(workspace.folder / "run.json")
    evaluations = {e.candidate: e for e in workspace.evaluations("test")}
    pairs = [("small", "words"), ("small", "encoder"), ("small", "large"), ("routed", "large")]
    result = {
        "benchmark": "banking77",
        "command": "python benchmarks/banking77/run.py",
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {_processor()}, Python {platform.python_version()}",
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
    (RESULTS / "banking77.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(outcome))


def resume(job: pipeline.Job) -> None:
    """The stages after training, on the latest run; candidates already measured are not measured again."""
    workspace = Workspace.latest(job.file.name)
    left = tuple(c for c in job.file.small.ladder if workspace.evaluation(c, "test") is None)
    small = job.file.small.model_copy(update={"ladder": left})
    pipeline.evaluate_stage(job._replace(file=job.file.model_copy(update={"small": small})), workspace)
    pipeline.gate_stage(job, workspace)
    pipeline.promote_stage(job, workspace)
    pipeline.calibrate_stage(job, workspace)
    pipeline.report_stage(job, workspace)


def _processor() -> str:
    """Name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
