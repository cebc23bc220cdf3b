"""The process of one job: it waits for its turn, trains, registers, and says how it ended.

Started by `smallfirst.jobs.queue` as `python -m smallfirst.jobs.worker FOLDER LOCK`. While it waits it holds a few
megabytes: nothing heavy is imported before its turn. What it prints goes to log.txt in the job's folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smallfirst.errors import Cancelled, SmallfirstError
from smallfirst.files import try_lock
from smallfirst.jobs.job_folder import JobFolder
from smallfirst.jobs.queue import is_waiting, unfinished_before
from smallfirst.jobs.rows import JobRows
from smallfirst.jobs.spec import JobProgress, MlflowIds, utc_now
from smallfirst.jobs.training_slots import take_slot
from smallfirst.progress import disable_tqdm_in_pipes

if TYPE_CHECKING:
    from smallfirst.registry.runs import TrackedRun
    from smallfirst.training.loop import StepMetrics
    from smallfirst.training.recipes.recipe import Recipe
    from smallfirst.training.run import Run
    from smallfirst.training.validation_loss import Sample

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.25
"""Pause between two looks at whether it is this job's turn."""
PROGRESS_INTERVAL_S = 1.0
"""Least time between two writings of the progress."""
RELAYED_EVENTS = ("TRAIN_STARTED", "RESUMED", "EPOCH_FINISHED", "CHECKPOINT_SAVED", "CHECKPOINT_FAILED")
"""Events of the training that are events of the job too; how it ends, the job says itself."""


def main(arguments: Sequence[str]) -> int:
    """0 if the job is COMPLETED, 1 if it is STOPPED or FAILED, 2 if another process carries it out."""
    job = JobFolder(Path(arguments[0]).absolute())
    held = int(arguments[1]) if len(arguments) > 1 else try_lock(job.lock)
    if held is None or job.ended:
        print(f"{job.name} has ended or is carried out by another process", file=sys.stderr)
        return 2
    disable_tqdm_in_pipes()
    os.set_inheritable(held, False)  # this process alone stands for the job
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    try:
        with wait_for_turn(job):
            run_job(job)
    except Cancelled as stop:
        job.log.append("STOPPED", str(stop))
    except SmallfirstError as error:
        job.log.append("FAILED", str(error))
    except Exception as error:
        traceback.print_exc()
        job.log.append("FAILED", f"{type(error).__name__}: {error}\n  next: read {job.output}")
    else:
        return 0
    finally:
        os.close(held)  # it has said its last word; leaving may take seconds, and somebody may have it go on
    return 1


@contextmanager
def wait_for_turn(job: JobFolder) -> Iterator[None]:
    """A block that begins once no earlier job waits and the machine is free. Raises Cancelled if asked to stop."""
    earlier, slot = unfinished_before(job), None
    while slot is None:
        if job.cancelled:
            raise Cancelled("cancelled before it began")
        if not any(is_waiting(other) for other in earlier):
            slot = take_slot()
        if slot is None:
            if job.state != "QUEUED":
                job.log.append("QUEUED", "waiting for the machine")
            time.sleep(POLL_INTERVAL_S)
    try:
        yield
    finally:
        os.close(slot)


def run_job(job: JobFolder) -> None:
    """Nothing back; the job is COMPLETED. Whatever stands in its way is raised."""
    from smallfirst.jobs.register import register_model

    order = job.order
    job.log.append("STARTED", f"process {os.getpid()}", process=os.getpid())
    rows = JobRows.of(job)
    n_eval = len(rows.evaluation) if rows.evaluation else 0
    job.log.append("DATA_VALIDATED", f"{len(rows.train)} training and {n_eval} evaluation rows")
    with _tracked(job, rows) as tracked:
        try:
            run = _train(job, rows, tracked)
            if job.cancelled:
                raise Cancelled("cancelled after the last step")
            result = register_model(job, run)
            tracked.set_tags({"registered": result.reference})
        except Cancelled:
            tracked.finish("KILLED")
            raise
    job.log.append("COMPLETED", f"registered as {result.reference}, not live until it is promoted ({order.model})")


def _train(job: JobFolder, rows: JobRows, tracked: TrackedRun) -> Run:
    from smallfirst.models.catalog import find_weights
    from smallfirst.training.run import train

    order = job.order
    base = find_weights(order.weights or order.model, log=lambda text: print(text, flush=True))
    if base.is_file():
        raise SmallfirstError(
            f"{order.model} is a GGUF file here: it can answer, but not be trained",
            hint="name a folder or hub model of safetensors",
        )
    job.log.append("MODEL_INITIALIZED", f"weights of {order.weights or order.model} found")
    watcher = _Watcher(job, tracked)
    run = train(
        _lesson(job, rows, watcher),
        order.config,
        base=(order.model, base),
        tracked=tracked,
        folder=job.run_folder,
        on_step=watcher.step,
        save_every_s=order.checkpoint_every_s,
    )
    watcher.relay()
    tracked.log_artifact(job.run_folder / "events.jsonl")
    job.log.append("TRAIN_FINISHED", f"best epoch {run.best_epoch} of {run.task}", seconds=run.seconds)
    return run


def _lesson(job: JobFolder, rows: JobRows, watcher: _Watcher) -> Recipe:
    from smallfirst.training.recipes.chat import ChatRecipe, PretrainingRecipe

    kind = ChatRecipe if job.order.lesson == "chat" else PretrainingRecipe
    return kind(job.name, rows.train, rows.evaluation, job.order.eval_prompts, watcher.exam)


def _tracked(job: JobFolder, rows: JobRows) -> TrackedRun:
    """The job's MLflow run; one that an earlier process opened is gone on with."""
    from smallfirst.registry.runs import client, open_run, resume_run, store_errors

    if job.tracking is not None:
        return resume_run(job.tracking.run_id)
    order = job.order
    if any(event.kind == "REQUEUED" for event in job.events):
        _close_unnoted(job)
    params: dict[str, object] = {f"train.{name}": value for name, value in order.config.model_dump().items()}
    params |= {"base": order.model, "lesson": order.lesson, "n_train": len(rows.train), "train_rows": order.train_rows}
    params["dataset_fingerprint"] = rows.train.content_fingerprint
    tracked = open_run(order.experiment, job.name, params=params, tags={"job": job.name, "by": order.created_by})
    with store_errors():
        experiment_id = str(client().get_run(tracked.run_id).info.experiment_id)
    MlflowIds(run_id=tracked.run_id, experiment_id=experiment_id).save(job.folder / "mlflow.json")
    return tracked


def _close_unnoted(job: JobFolder) -> None:
    """Nothing back; an MLflow run that an earlier process opened, and died before it could note it, is KILLED."""
    from smallfirst.registry.runs import client, resume_run, store_errors

    with store_errors():
        experiment = client().get_experiment_by_name(job.order.experiment)
        found = client().search_runs([experiment.experiment_id], f"tags.job = '{job.name}'") if experiment else []
    for run in found:
        resume_run(run.info.run_id).finish("KILLED")


class _Watcher:
    """Tells what happens in training: in the job's events, its progress file and MLflow."""

    def __init__(self, job: JobFolder, tracked: TrackedRun) -> None:
        self.job, self.tracked = job, tracked
        self.seen = sum(event.kind in RELAYED_EVENTS for event in job.events)
        self.first: tuple[float, float] | None = None  # clock and share at the first step of this process
        self.told_at, self.tenth, self.at_step = 0.0, 0, 0

    def step(self, step: StepMetrics) -> None:
        """Called after each step."""
        clock = time.monotonic()
        self.first = self.first or (clock, step.progress)
        self.at_step = step.step
        if clock - self.told_at >= PROGRESS_INTERVAL_S or step.progress >= 1:
            self.told_at = clock
            self._progress(step, clock).save(self.job.folder / "progress.json")
            self.relay()
        tenth = int(10 * step.progress)
        if tenth > self.tenth:
            self.tenth = tenth
            words = f"{step.progress:.0%}, epoch {step.epoch:.1f}, loss {step.loss:.3f}"
            self.job.log.append("TRAIN_UPDATED", words, step=step.step, loss=step.loss, tokens=step.tokens)

    def exam(self, figures: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """Called after each epoch; a store that does not answer stops no training."""
        from smallfirst.training.events import EventLog

        ended = [e for e in EventLog(self.job.run_folder / "events.jsonl").read() if e.kind == "EPOCH_FINISHED"]
        self.tracked.log_metrics(self.at_step, figures)
        if samples:
            try:
                name = f"eval_prompts/epoch-{len(ended) + 1:03d}"
                self.tracked.log_json(name, [sample._asdict() for sample in samples])
            except SmallfirstError as error:
                log.warning("the answers to eval_prompts were not kept: %s", error)

    def relay(self) -> None:
        """Nothing back; what training has told since the last time stands in the job's events too."""
        from smallfirst.training.events import EventLog

        told = [e for e in EventLog(self.job.run_folder / "events.jsonl").read() if e.kind in RELAYED_EVENTS]
        for event in told[self.seen :]:
            self.job.log.append(event.kind, event.message, **event.values)
        self.seen = max(self.seen, len(told))

    def _progress(self, step: StepMetrics, clock: float) -> JobProgress:
        began, share = self.first or (clock, step.progress)
        done = step.progress - share
        left = (clock - began) * (1 - step.progress) / done if done > 0 else None
        return JobProgress(
            step=step.step,
            epoch=step.epoch,
            share=step.progress,
            loss=step.loss,
            tokens_per_s=step.tokens_per_s,
            seconds_left=left,
            at=utc_now(),
        )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
