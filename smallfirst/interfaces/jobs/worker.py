"""The process of one job: wait for the turn, train, register the model, and record how the job ended.

Started by `smallfirst.interfaces.jobs.queue`. Nothing heavy is imported before its turn, so waiting takes a few
megabytes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smallfirst.base.errors import Cancelled, RegistryError, SmallfirstError
from smallfirst.base.files import try_lock
from smallfirst.base.progress import disable_tqdm_in_pipes
from smallfirst.interfaces.jobs.job_folder import (
    WAITING_STATES,
    JobFolder,
    JobProgress,
    JobResult,
    JobRows,
    MlflowIds,
    jobs_folder,
    stored_jobs,
    utc_now,
)
from smallfirst.models.base_size import read_base_size
from smallfirst.models.catalog import CATALOG, find_weights
from smallfirst.models.pricing import MachinePrice
from smallfirst.training.estimates import CHARS_PER_TOKEN, READ_SHARE, count_epochs, earlier_pace, guess_training_pace
from smallfirst.training.recipe import RECIPES

if TYPE_CHECKING:
    from smallfirst.data.dataset import Example
    from smallfirst.registry.runs import TrackedRun
    from smallfirst.training.causal_lm import Sample
    from smallfirst.training.loop import StepMetrics
    from smallfirst.training.recipe import Recipe
    from smallfirst.training.run import Run

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.25
PROGRESS_INTERVAL_S = 1.0
START_S = 20.0
"""Of a job until its first step, on a quiet machine."""
RELAYED_EVENTS = ("TRAIN_STARTED", "RESUMED", "EPOCH_FINISHED", "CHECKPOINT_SAVED", "CHECKPOINT_FAILED")
"""Events of the training that are copied into the job's events; the job records its end itself."""


def main(arguments: Sequence[str]) -> int:
    """Run the job of a FOLDER, whose LOCK is a descriptor that this process inherited; left out, it takes the lock.

    Return 0 if the job is COMPLETED, 1 if it is STOPPED or FAILED, 2 if another process runs it.
    """
    job = JobFolder(Path(arguments[0]).absolute())
    lock = int(arguments[1]) if len(arguments) > 1 else try_lock(job.lock)
    if lock is None or job.ended:
        print(f"{job.name} has ended or is run by another process", file=sys.stderr)
        return 2
    os.set_inheritable(lock, False)
    disable_tqdm_in_pipes()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    try:
        JobRows.keep(job)  # before its turn, so that bad rows are told at once
        say_minutes(job)
        with wait_for_turn(job):
            run_job(job)
    except Cancelled as stop:
        job.end("STOPPED", str(stop))
    except SmallfirstError as error:
        job.end("FAILED", str(error))
    except Exception as error:
        traceback.print_exc()
        job.end("FAILED", f"{type(error).__name__}: {error}\n  next: read {job.output}")
    else:
        return 0
    finally:
        os.close(lock)  # exiting may take seconds, and a person may resume the job now
    return 1


@contextmanager
def wait_for_turn(job: JobFolder) -> Iterator[None]:
    """Hold the training slot in the block, once no earlier job waits. Raise Cancelled if a stop is requested."""
    position, slot = (job.spec.created_at, job.name), None
    earlier = [one for one in stored_jobs() if (one.spec.created_at, one.name) < position and not one.ended]
    while slot is None:
        if job.cancelled:
            raise Cancelled("cancelled before it began")
        if not any(one.state in WAITING_STATES and one.alive for one in earlier):
            slot = take_slot()
        if slot is None:
            if job.state != "QUEUED":
                job.log.append("QUEUED", "waiting for the machine")
            time.sleep(POLL_INTERVAL_S)
    try:
        yield
    finally:
        os.close(slot)


def take_slot() -> int | None:
    """Return the descriptor of the lock of this user's one training, or None where another holds it."""
    return try_lock(Path(tempfile.gettempdir(), f"smallfirst-{os.getuid()}.lock"))


def run_job(job: JobFolder) -> None:
    """Train and register the job's model, up to COMPLETED. Raise Cancelled after a request to stop."""
    job.log.append("STARTED", f"process {os.getpid()}", process=os.getpid())
    rows = JobRows.load(job)
    n_eval = len(rows.evaluation) if rows.evaluation else 0
    job.log.append("DATA_VALIDATED", f"{len(rows.train)} training and {n_eval} evaluation rows")
    with _stops_at_once(job):
        from smallfirst.registry.runs import client

        client()  # loads MLflow
    with _open_mlflow_run(job, rows) as tracked:
        try:
            run = _train(job, rows, tracked)
            result = register_model(job, run)
            tracked.set_tags({"registered": result.reference})
        except Cancelled:
            tracked.finish("KILLED")
            raise
    job.end("COMPLETED", f"registered as {result.reference}, not live until it is promoted ({job.spec.model})")


def say_minutes(job: JobFolder) -> None:
    """Record about how long training will take here, unless that is known, or nobody knows the base model's size."""
    if any(event.kind == "ESTIMATED" for event in job.events):
        return
    spec, rows = job.spec, JobRows.load(job)
    try:
        size = read_base_size(find_weights(spec.weights or spec.model, download=False))
        n_weights = size.parameters if size else 0
    except SmallfirstError:  # to be fetched: the catalogue's are in bf16
        n_weights = next((500_000 * entry.megabytes for entry in CATALOG if entry.name == spec.model), 0)
    if not n_weights:
        return
    n_tokens, n_read = (sum(map(_n_tokens, data.examples)) if data else 0.0 for data in rows)
    config = spec.config
    known = earlier_pace(jobs_folder(), spec.model, config.method)
    pace = known.tokens_per_s if known else guess_training_pace(n_weights)
    epochs = count_epochs(config, max(1, round(n_tokens / config.batch_tokens)), max(1, round(n_tokens)))
    seconds = START_S + epochs * (n_tokens + READ_SHARE * n_read) / pace
    why = "an earlier job's pace" if known else "this machine's arithmetic, within a factor of three"
    job.log.append("ESTIMATED", f"about {math.ceil(seconds / 60)} minutes of training, by {why}", seconds=seconds)


def _n_tokens(example: Example) -> float:
    return (sum(len(message.content) for message in example.messages) + len(example.answer)) / CHARS_PER_TOKEN


@contextmanager
def _stops_at_once(job: JobFolder) -> Iterator[Callable[[], None]]:
    """Raise Cancelled in the block once a stop is requested, until the function that it yields is called.

    To load libraries and weights takes minutes on a busy machine, and no step looks for the request meanwhile.
    """

    def look(*_: object) -> None:
        if job.cancelled:
            signal.setitimer(signal.ITIMER_REAL, 2.0)  # once more, should a library have caught it
            raise Cancelled("cancelled before its first step")

    def leave() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, POLL_INTERVAL_S, POLL_INTERVAL_S)
    try:
        yield leave
    finally:
        leave()
        signal.signal(signal.SIGALRM, before)


def _train(job: JobFolder, rows: JobRows, tracked: TrackedRun) -> Run:
    with _stops_at_once(job) as begun:
        from smallfirst.ledger.expenses import note_expense
        from smallfirst.training.run import train

        spec = job.spec
        base = find_weights(spec.weights or spec.model, log=lambda text: print(text, flush=True))
        if base.is_file():
            raise SmallfirstError(
                f"{spec.model} is a GGUF file here: it can answer, but not be trained",
                hint="name a folder or hub model of safetensors",
            )
        job.log.append("MODEL_INITIALIZED", f"weights of {spec.weights or spec.model} found")
        reporter = _ProgressReporter(job, tracked, begun)
        kind = RECIPES.get(spec.recipe)
        recipe: Recipe = kind(job.name, rows.train, rows.evaluation, spec.eval_prompts, reporter.on_validation)
        run = train(
            recipe,
            spec.config,
            base=(spec.model, base),
            tracked=tracked,
            folder=job.run_folder,
            on_step=reporter.on_step,
            save_every_s=spec.checkpoint_every_s,
        )
    reporter.relay_events()
    tracked.log_artifact(job.run_folder / "events.jsonl")
    job.finish_training(f"best epoch {run.best_epoch} of {run.task}", seconds=run.seconds)
    usd = MachinePrice().usd_per_hour * run.seconds / 3600
    note_expense(spec.register_to, "training", job.name, usd, what=f"job {job.name}", busy_s=run.seconds)
    return run


def register_model(job: JobFolder, run: Run) -> JobResult:
    """Register the model, unless an earlier, killed process did. Raise RegistryError.

    A job declares no gate, so there is no verdict; the version is not live until it is promoted.
    """
    from smallfirst.registry import versions

    spec, registered = job.spec, []
    with contextlib.suppress(RegistryError):  # no model has this name yet
        registered = versions.list_versions(spec.register_to)
    version = next((v.version for v in registered if v.tags.get("job") == job.name), None)
    if version is None:
        tags = {"task": spec.name, "job": spec.name, "base": spec.model, "recipe": spec.recipe, "candidate": "small"}
        tags["created_by"] = spec.created_by
        version = versions.register(run.folder, None, name=spec.register_to, run_id=run.run_id, tags=tags).version
    result = JobResult(model=spec.register_to, version=version, best_epoch=run.best_epoch)
    result.save(job.folder / "result.json")
    return result


def _open_mlflow_run(job: JobFolder, rows: JobRows) -> TrackedRun:
    from smallfirst.registry.runs import client, open_run, resume_run, store_errors

    if job.tracking is not None:
        return resume_run(job.tracking.run_id)
    spec = job.spec
    params: dict[str, object] = {f"train.{name}": value for name, value in spec.config.model_dump().items()}
    params |= {"base": spec.model, "recipe": spec.recipe, "n_train": len(rows.train), "train_rows": spec.train_rows}
    params["dataset_fingerprint"] = rows.train.content_fingerprint
    tracked = open_run(spec.experiment, job.name, params=params, tags={"job": job.name, "by": spec.created_by})
    with store_errors():
        experiment_id = str(client().get_run(tracked.run_id).info.experiment_id)
    MlflowIds(run_id=tracked.run_id, experiment_id=experiment_id).save(job.folder / "mlflow.json")
    return tracked


class _ProgressReporter:
    def __init__(self, job: JobFolder, tracked: TrackedRun, begun: Callable[[], None]) -> None:
        self.job, self.tracked, self.begun = job, tracked, begun
        self.n_relayed = sum(event.kind in RELAYED_EVENTS for event in job.events)
        self.first: tuple[float, float] | None = None  # clock and share at the first step of this process
        self.saved_at_s, self.tenth, self.at_step = 0.0, 0, 0

    def on_step(self, step: StepMetrics) -> None:
        clock = time.monotonic()
        self.begun()
        self.first = self.first or (clock, step.progress)
        self.at_step = step.step
        if clock - self.saved_at_s >= PROGRESS_INTERVAL_S or step.progress >= 1:
            self.saved_at_s = clock
            self._progress(step, clock).save(self.job.folder / "progress.json")
            self.relay_events()
        tenth = int(10 * step.progress)
        if tenth > self.tenth:
            self.tenth = tenth
            words = f"{step.progress:.0%}, epoch {step.epoch:.1f}, loss {step.loss:.3f}"
            self.job.log.append("TRAIN_UPDATED", words, step=step.step, loss=step.loss, tokens=step.tokens)

    def on_validation(self, figures: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """Report the validation after an epoch; an MLflow store that does not answer stops no training."""
        epoch = 1 + sum(event.kind == "EPOCH_FINISHED" for event in self.job.training_log.read())
        self.tracked.log_metrics(self.at_step, figures)
        if samples:
            try:
                self.tracked.log_json(f"eval_prompts/epoch-{epoch:03d}", [sample._asdict() for sample in samples])
            except SmallfirstError as error:
                log.warning("the answers to eval_prompts were not kept: %s", error)

    def relay_events(self) -> None:
        events = [event for event in self.job.training_log.read() if event.kind in RELAYED_EVENTS]
        for event in events[self.n_relayed :]:
            self.job.log.append(event.kind, event.message, **event.values)
        self.n_relayed = max(self.n_relayed, len(events))

    def _progress(self, step: StepMetrics, clock: float) -> JobProgress:
        began, share = self.first or (clock, step.progress)
        done = step.progress - share
        left = (clock - began) * (1 - step.progress) / done if done > 0 else None
        return JobProgress(share=step.progress, seconds_left=left, at=utc_now())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
