"""Kill fine-tunes with SIGKILL at random moments and check that each ends with the weights of an uninterrupted one.

    python -m benchmarks.training.kills FOLDER

A tiny Llama (2 layers, hidden size 32, seeded) is fine-tuned again and again by jobs of `foundation_model`. In ten jobs
the process that trains is killed, in ten the process that submitted, in five both at once, as in a power
failure. Each moment is drawn with a fixed seed from its own part of a job's life; half of the submitter's from before
create() has returned. Then another process calls `fm.get`, and the final state is checked: COMPLETED, weights equal
byte for byte, one registered version, one finished MLflow run, no checkpoint left.

Results are stored in FOLDER, so an interrupted benchmark continues. Writes benchmarks/results/kills.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.datasets import RESULTS
from smallfirst.interfaces.databricks import foundation_model as fm
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import JobFolder, JobSpec, utc_now
from smallfirst.registry import versions
from smallfirst.registry.runs import client
from smallfirst.training.config import TrainConfig

os.environ.setdefault("OMP_NUM_THREADS", "1")
RESULT = RESULTS / "kills.md"
KINDS = {"trainer": 10, "submitter": 10, "both": 5}
CONFIG = TrainConfig(duration="12ep", learning_rate=3e-3, batch_tokens=64, max_seq_tokens=128)
NAME, PATIENCE_S, SUBMIT_S = "main.kills.tickets", 1800.0, 0.05
START = 0.3
"""Share of the moments before the first step."""
SUBMIT = """
import sys
from smallfirst import foundation_model as fm
from smallfirst.training.config import TrainConfig
model, rows, config = sys.argv[1:]
run = fm.create(model, rows, "main.kills.tickets", task_type="INSTRUCTION_FINETUNE", eval_data_path=rows,
                config=TrainConfig.model_validate_json(config))
print(run.name, flush=True)
fm.get_events(run, follow=True)
"""
"""The program of a user. Its checkpoints are a minute apart; the benchmark's own jobs write them more often."""


class Trial(NamedTuple):
    """One planned kill: which process, and when in [0, 1] of an uninterrupted job; below 0 before create() has returned."""

    kind: str
    number: int
    moment: float


class Bench:
    """The benchmark's folder: a tiny model, rows, a state folder, and the results so far."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.rows = folder, folder / "model", folder / "rows.jsonl"
        self.found = folder / "found.jsonl"
        os.environ |= {"SMALLFIRST_HOME": str(folder / "home"), "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
        folder.mkdir(parents=True, exist_ok=True)
        if not self.rows.is_file():
            make_tiny(self.model)
            self.rows.write_text("\n".join(json.dumps(row) for row in ROWS))

    def read(self) -> list[dict[str, Any]]:
        """Results so far: the uninterrupted job, then a line per kill."""
        return [json.loads(line) for line in self.found.read_text().splitlines()] if self.found.is_file() else []

    def keep(self, **values: Any) -> None:
        self.found.write_text("".join(json.dumps(one) + "\n" for one in (*self.read(), values)))

    def submit(self, name: str) -> JobFolder:
        """Submit a job from this process, with checkpoints as frequent as their cost allows."""
        told = {"register_to": NAME, "experiment": "exam", "created_by": "exam", "created_at": utc_now()}
        rows = {"train_rows": str(self.rows), "eval_rows": str(self.rows), "checkpoint_every_s": 0}
        plain = {"name": name, "recipe": "chat", "model": str(self.model), "config": CONFIG}
        return queue.submit(JobSpec.model_validate({**plain, **rows, **told}))

    def elsewhere(self, name: str | None = None) -> subprocess.Popen[str]:
        """Start another process that submits and then stays: a user's program, or one that submits job `name` as we do."""
        users = ["-c", SUBMIT, str(self.model), str(self.rows), CONFIG.model_dump_json()]
        command = [
            sys.executable,
            *(users if name is None else ["-m", "benchmarks.training.kills", str(self.folder), name]),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def trials() -> list[Trial]:
    draw = random.Random(0)
    found = [Trial("trainer", i, (i + draw.random()) / 10) for i in range(KINDS["trainer"])]
    found += [Trial("submitter", i, (i + draw.random()) / 5 - 1) for i in range(KINDS["submitter"])]
    return found + [Trial("both", i, (i + draw.random()) / 5) for i in range(KINDS["both"])]


def unbroken(bench: Bench) -> None:
    """Store an uninterrupted job's weights, its duration, and that of create()."""
    began = time.monotonic()
    child = bench.elsewhere()
    name = _line(child)
    create_s = time.monotonic() - began
    job = JobFolder(queue.jobs_folder() / name)
    _until(lambda: job.ended)
    child.communicate()
    assert job.state == "COMPLETED", job.output_tail
    times = {event.kind: datetime.fromisoformat(event.at) for event in job.events}
    start_s, life_s = ((times[end] - times["CREATED"]).total_seconds() for end in ("TRAIN_STARTED", "COMPLETED"))
    bench.keep(kind="unbroken", create_s=create_s, start_s=start_s, life_s=life_s, sha256=_weights(job))


def try_once(bench: Bench, trial: Trial, whole: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a kill; None if the job had ended before it."""
    known = {place.name for place in queue.jobs_folder().iterdir()}
    name, child, in_create = f"{trial.kind}-{trial.number}-{len(known)}", None, trial.moment < 0
    if trial.kind == "trainer":
        bench.submit(name)
    else:
        child = bench.elsewhere(name if trial.kind == "both" else None)
        if not in_create:
            _line(child)
    if in_create:
        _wait_in_create(trial.moment, whole["create_s"], known)
    jobs = {place.name for place in queue.jobs_folder().iterdir()} - known
    job = JobFolder(queue.jobs_folder() / jobs.pop()) if jobs else None
    if job is not None and not in_create:
        _wait(job, trial.moment, whole["start_s"])
    _kill(None if trial.kind == "submitter" else job, child)
    told = not in_create or bool(child and child.stdout and child.stdout.read().strip())
    stood = _stands(job) if job is not None else "nothing yet"
    if job is not None and job.ended:
        return None
    return {"moment": trial.moment, "stood": stood, **_looked_at(job, told, whole)}


def _wait(job: JobFolder, moment: float, start_s: float) -> None:
    """Wait until this share of the job's life is over."""
    if moment < START:
        end = time.monotonic() + moment / START * start_s
        _until(lambda: time.monotonic() > end or job.progress is not None, every_s=0.05)
        return
    share = (moment - START) / (1 - START)
    _until(lambda: job.ended or bool(job.progress and job.progress.share >= share), every_s=0.05)


def _wait_in_create(moment: float, create_s: float, known: set[str]) -> None:
    """Wait until create() is this far: its first fifth is importing, the rest are moments after the job's folder."""
    if moment < -0.8:
        time.sleep((1 + moment) * create_s)
        return
    _until(lambda: any(place.name not in known for place in queue.jobs_folder().iterdir()), every_s=0.001)
    time.sleep((0.8 + moment) * SUBMIT_S)


def _kill(job: JobFolder | None, child: subprocess.Popen[str] | None) -> None:
    """Wait until the job's process and the other one are dead."""
    trainer = None if job is None else _process_of(job)
    if trainer is not None:
        os.kill(trainer, signal.SIGKILL)
    if child is not None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if job is not None:
        _until(lambda: not job.alive)


def _looked_at(job: JobFolder | None, told: bool, whole: dict[str, Any]) -> dict[str, Any]:
    """Return the status at the first look and the outcome; `told`: create() had returned before the kill."""
    listed = [run.name for run in fm.list(limit=None)]
    if job is None or not job.exists:
        lost = told or (job is not None and job.name in listed)
        return {"look": "not accepted, not listed", "resumed": "-", "faults": ["LOST"] if lost else []}
    look = str(fm.get(job.name).status)
    faults = [] if job.alive or job.ended else [f"{look}, but nobody carries it out"]
    _until(lambda: job.ended)  # waiting does not restart a dead job
    resumed = ", ".join(event.message for event in job.events if event.kind == "RESUMED") or _went_on(job)
    return {"look": look, "resumed": resumed, "faults": faults + _faults(job, whole)}


def _went_on(job: JobFolder) -> str:
    kinds = [event.kind for event in job.events]
    if "REQUEUED" not in kinds:
        return "was not interrupted"
    return "began anew" if "TRAIN_STARTED" in kinds[kinds.index("REQUEUED") :] else "had been done"


def _faults(job: JobFolder, whole: dict[str, Any]) -> list[str]:
    """Return the differences from an uninterrupted job."""
    registered = [version for version in versions.list_versions(NAME) if version.tags.get("job") == job.name]
    experiment = client().get_experiment_by_name(job.spec.experiment)
    runs = client().search_runs([experiment.experiment_id], f"tags.job = '{job.name}'") if experiment else []
    stati = sorted(run.info.status for run in runs)
    checks = {
        f"ended {job.state}": job.state == "COMPLETED",
        "other weights": (job.run_folder / "model").is_dir() and _weights(job) == whole["sha256"],
        f"{len(registered)} registered versions": len(registered) == 1,
        f"MLflow runs {stati}": stati.count("FINISHED") == 1 and set(stati) <= {"FINISHED", "KILLED"},
        "a checkpoint is left": not (job.run_folder / "checkpoint").exists(),
    }
    return [fault for fault, fine in checks.items() if not fine]


def _process_of(job: JobFolder) -> int | None:
    """Return the id of the process that runs the job, by its command line."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"smallfirst.interfaces.jobs.worker" in words and str(job.folder).encode() in words:
            return int(place.parent.name)
    return None


def _stands(job: JobFolder) -> str:
    progress = job.progress
    step = f", step {progress.step} ({progress.share:.0%})" if progress else ""
    return f"{job.events[-1].kind if job.events else 'nothing yet'}{step}"


def _weights(job: JobFolder) -> str:
    return hashlib.sha256((job.run_folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def _line(child: subprocess.Popen[str]) -> str:
    line = child.stdout.readline().strip() if child.stdout else ""
    assert line, "the submitting process ended without a word"
    return line


def _until(ask: Callable[[], bool], *, every_s: float = 0.2) -> None:
    end = time.monotonic() + PATIENCE_S
    while not ask():
        assert time.monotonic() < end, "waited too long"
        time.sleep(every_s)


def write(found: list[dict[str, Any]]) -> None:
    whole, *tried = found
    tried.sort(key=lambda one: ([*KINDS].index(one["kind"]), one["number"]))
    counts = {"rows": len(ROWS), "good": sum(not one["faults"] for one in tried), "tried": len(tried)}
    setting = {"today": date.today(), "duration": CONFIG.duration, "submit_ms": 1000 * SUBMIT_S, "start": START}
    lines = [PAGE.format(**counts, **setting, **whole)]
    for one in tried:
        faults = "; ".join(one["faults"]) or "none"
        cells = (one["kind"], f"{one['moment']:.2f}", one["stood"], one["look"], one["resumed"], faults)
        lines.append(f"| {' | '.join(cells)} |\n")
    RESULT.write_text("".join(lines), encoding="utf-8")


PAGE = """# kill -9 at random moments

`python -m benchmarks.training.kills FOLDER`, {today}, 2 shared cores, Zen 5, 24 GB. A tiny Llama (2 layers,
hidden size 32, seeded), {rows} rows, {duration}. An uninterrupted job took {life_s:.0f} s, {start_s:.0f} s of it before its
first step; other work ran on the machine, which lengthens every phase.

**{good} of {tried} kills without a fault**: after the first look (`fm.list`, `fm.get`) a process runs the
job; it ends COMPLETED, its weights equal those of the uninterrupted job byte for byte, it has one registered
version, one finished MLflow run, and no checkpoint is left. Jobs that create() had not accepted yet are not listed.

Each moment is drawn with a fixed seed from its own part of the job's life: up to {start} it is a share of the start,
then of the training's steps; below zero create() has not returned, above -0.8 it is within {submit_ms:.0f} ms of the
first thing that create() writes.

| killed | moment | the job's last event, step | status at the first look | training | faults |
|---|---|---|---|---|---|
"""


def main() -> None:
    bench = Bench(Path(sys.argv[1]).absolute())
    if len(sys.argv) > 2:  # as the process that is to be killed
        bench.submit(sys.argv[2])
        print("submitted", flush=True)
        time.sleep(PATIENCE_S)
        return
    if not bench.read():
        unbroken(bench)
    whole = bench.read()[0]
    done = {(one["kind"], one.get("number")) for one in bench.read()}
    for trial in (trial for trial in trials() if trial[:2] not in done):
        while (found := try_once(bench, trial, whole)) is None:
            print(f"{trial.kind} {trial.number}: it ended first", flush=True)
        bench.keep(kind=trial.kind, number=trial.number, **found)
        print(f"{datetime.now(UTC):%H:%M:%S} {trial.kind} {trial.number}: {found}", flush=True)
    write(bench.read())


ROWS = [
    {"prompt": f"{frame} {thing}", "response": f"{thing}: {answer}"}
    for frame in ("where is my", "tell me about the", "the wrong", "no")
    for thing, answer in (("card", "on its way"), ("pin", "ask again"), ("refund", "in two days"), ("rate", "as today"))
    for frame in (frame, f"please, {frame}")
] * 2
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 512}


def make_tiny(folder: Path) -> None:
    """Write a Llama with seeded weights and a byte-level tokenizer."""
    import tokenizers
    import torch
    import transformers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special.values()], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([text for row in ROWS for text in row.values()], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **special)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **SIZES, **ends)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
