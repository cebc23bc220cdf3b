"""Compare the estimates of `smallfirst check` with measured values: time of finished runs, memory of two steps.

    python -m benchmarks.training.estimate time                    # finished benchmark runs of the state folder
    python -m benchmarks.training.estimate memory full 512 32 1    # method, tokens a batch, tokens a row, targets a row
    python -m benchmarks.training.estimate memory full 512 32 1 --micro 128

Memory takes the weights of SmolLM2-135M-Instruct and two steps on random tokens; the peak is the process's own.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from benchmarks.accuracy.run import data_folder, task_file
from smallfirst.models.base_size import BaseSize, read_base_size
from smallfirst.models.catalog import find_weights
from smallfirst.paths import home
from smallfirst.pipeline.preflight.check import find_local_base, tokenize_rows, validation_work
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.config import TrainConfig
from smallfirst.training.estimates.cost import (
    count_epochs,
    epoch_work,
    estimate_seconds,
    speed_from_earlier_run,
    train_flops,
)
from smallfirst.training.estimates.memory import largest_micro_batch, peak_memory

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def compare_times() -> None:
    from smallfirst.training.run import Run

    print("| set | tokens/s | GFLOP/s | took, s | estimated from the run before, s |\n|---|---|---|---|---|")
    before: float | None = None
    for path in sorted((home() / "tasks").glob("*/*/run.json"), key=lambda path: path.parent.name):
        name, run = path.parts[-3], Run.load(path)
        project = Project.read(task_file(name, data_folder(name)), Progress(quiet=True))
        base = find_local_base(run.base)
        assert base.size is not None
        assert base.tokens is not None
        work = epoch_work(tokenize_rows(project, project.rows.train, base.tokens), run.config)
        rate = train_flops(base.size, run.config, work, count_epochs(work, run.config)) / run.seconds / 1e9
        estimated = "–"
        if before is not None:
            validation = validation_work(project, tokenize_rows(project, project.rows.selection, base.tokens))
            span = estimate_seconds(
                base.size, run.config, work, validation, speed_from_earlier_run(before, base.size, run.config, work)
            )
            estimated = f"{span.low:.0f} to {span.high:.0f}"
        print(f"| {name} | {run.tokens_per_s:.0f} | {rate:.0f} | {run.seconds:.0f} | {estimated} |")
        before = run.tokens_per_s


def compare_memory(config: TrainConfig, width: int, targets: int) -> None:
    from smallfirst.training.causal_lm import CausalBackend
    from smallfirst.training.loop import TrainingLoop

    size = read_base_size(find_weights(BASE))
    assert size is not None
    draw = random.Random(0)
    row_tokens = [tuple(draw.randrange(10, 400) for _ in range(width + 1)) for _ in range(config.batch_tokens // width)]
    rows = [TokenizedRow(ids, width + 1 - targets) for ids in row_tokens]
    backend = CausalBackend()
    model, tokenizer = backend.load(find_weights(BASE), config)
    before = time.process_time()
    for _ in TrainingLoop(backend, model, rows, config).steps():
        spent, before = time.process_time() - before, time.process_time()
    if config.method != "full":
        with tempfile.TemporaryDirectory() as folder:
            backend.save(model, tokenizer, Path(folder))
    _show(config, width, targets, _estimated(size, config, rows), spent)


def _estimated(size: BaseSize, config: TrainConfig, rows: list[TokenizedRow]) -> tuple[float, float, float]:
    read, several = largest_micro_batch(rows, size, config)
    found = peak_memory(size, config, read, several=several)
    return found.at_least, found.span.low, found.span.high


def _show(config: TrainConfig, width: int, targets: int, estimated: tuple[float, float, float], spent: float) -> None:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    most = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    least, low, high = (n / 1e9 for n in estimated)
    print(
        f"| {config.method} | {config.batch_tokens} | {config.micro_tokens or '–'} | {width} | {targets} | "
        f"{most / 1e9:.2f} | {low:.2f} to {high:.2f} | {least:.2f} | {spent:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("time")
    memory = verbs.add_parser("memory")
    memory.add_argument("method", choices=["full", "lora"])
    for name in ("batch", "width", "targets"):
        memory.add_argument(name, type=int)
    memory.add_argument("--micro", type=int)
    wanted = parser.parse_args()
    if wanted.verb == "time":
        compare_times()
        return
    config = TrainConfig(method=wanted.method, batch_tokens=wanted.batch, micro_tokens=wanted.micro, duration="2ba")
    compare_memory(config, wanted.width, wanted.targets)


if __name__ == "__main__":
    main()
