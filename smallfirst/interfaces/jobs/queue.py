"""Submit, find, cancel and resume jobs; each is a process that outlives the one that submitted it.

Without a daemon: whoever looks at a job whose process died starts it again from its checkpoint. The process inherits
the job's lock, so the job counts as alive until it ends; a process id is used only to send signals.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from smallfirst.base.errors import ConfigError, SmallfirstError, did_you_mean, without_secrets
from smallfirst.base.files import try_lock
from smallfirst.base.paths import python_path, state_folder
from smallfirst.interfaces.jobs import worker
from smallfirst.interfaces.jobs.job_folder import (
    TERMINAL_STATES,
    JobFolder,
    JobRows,
    JobSpec,
    jobs_folder,
    lookup,
    state_after,
    stored_jobs,
)
from smallfirst.registry.runs import Status, resume_run
from smallfirst.training.events import Event

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Restarts without progress after which a job is given up: something kills it each time."""
_PROGRESS_EVENTS = frozenset({"CHECKPOINT_SAVED", "STOPPED", "FAILED"})
"""Events after which restarts are counted anew: more is saved than before, or only a person can resume the job."""
FOLLOW_INTERVAL_S = 1.0
EXIT_TIMEOUT_S = 5.0
"""Longest wait for the exit of a process that has recorded how its job ended."""


RECORDED_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "SMALLFIRST_VOLUMES", "SMALLFIRST_TABLES")
"""Environment variables that a job keeps from its submission, whoever starts it again; secrets in them are left out."""


class JobNotFound(SmallfirstError):
    """No job has this name."""


def submit(spec: JobSpec, rows: JobRows | Path | None = None) -> JobFolder:
    """Start the job's process and return the job. Raise ConfigError for a taken name.

    `rows` may be a folder of files, which is moved to `rows` in the job's; the process reads all but JobRows.
    """
    all_jobs()
    folder = jobs_folder() / spec.name
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise ConfigError(f'there is a job "{spec.name}" already', hint="choose another name") from None
    job = JobFolder(folder)
    lock = try_lock(job.lock)
    if lock is None:
        raise SmallfirstError(f"{job.lock} is held by another process", hint="submit again")
    try:
        if isinstance(rows, JobRows):
            rows.save(folder)
        elif rows is not None:
            shutil.move(rows, folder / "rows")
        job.log.append("CREATED", f"fine-tune of {spec.model} on {spec.train_rows}")
        environment = {name: without_secrets(os.environ[name]) for name in RECORDED_VARIABLES if os.environ.get(name)}
        here = {"working_folder": Path.cwd(), "environment": environment}
        spec.model_copy(update=here).save(folder / "job.json")
        _start(job, lock)
    finally:
        os.close(lock)  # the process inherited it
    return job


def find(name: str, *, restart_dead: bool = True) -> JobFolder:
    """Return the job called `name`, restarted if its process died. Raise JobNotFound with the nearest name."""
    job = lookup(name)
    if job is None:
        names = [other.name for other in stored_jobs()]
        raise JobNotFound(
            f'no job is called "{name}"{did_you_mean(name, names)}',
            hint=f"there are: {', '.join(names[:10])}" if names else "none has been submitted yet",
        )
    if restart_dead:
        recover(job)
    return job


def all_jobs() -> list[JobFolder]:
    """Return all jobs, newest first; restart those whose process died."""
    jobs = stored_jobs()
    for job in reversed(jobs):  # the oldest first, so that it is again first in the queue
        recover(job)
    return jobs


def follow(job: JobFolder) -> Iterator[Event]:
    """Yield the job's events, also those to come, until it has ended; restart it if its process dies."""
    n_seen = 0
    while True:
        events = job.events
        yield from events[n_seen:]
        n_seen = len(events)
        if state_after(events, cancelled=False) in TERMINAL_STATES:
            return
        time.sleep(FOLLOW_INTERVAL_S)
        recover(job)


def cancel(job: JobFolder) -> bool:
    """Request a stop, which follows within one step; return False if the job had ended or finished training."""
    if not job.request_stop():
        return False
    recover(job)  # there may be no process left to obey
    return True


def recover(job: JobFolder) -> None:
    """Restart a job that has not ended and that no process runs; mark it STOPPED or FAILED where that is due."""
    if job.ended:
        return
    lock = try_lock(job.lock)
    if lock is None:
        return
    try:
        if job.ended:  # it ended between the first check and the lock
            return
        restarts = _restarts_without_progress(job.events)
        if job.cancelled:
            job.end("STOPPED", "cancelled")
            _close_mlflow_run(job, "KILLED")
        elif restarts >= MAX_RESTARTS:
            died = f"its process died {restarts + 1} times without progress; the last lines of {job.output}:"
            then = f"free memory or fix what kills it, then smallfirst jobs resume {job.name}"
            job.end("FAILED", f"{died}\n{job.output_tail}\n  next: {then}")
            _close_mlflow_run(job, "FAILED")
        else:
            job.log.append("REQUEUED", "its process died; resuming from the last checkpoint")
            _start(job, lock)
    finally:
        os.close(lock)


def resume(job: JobFolder, *, by: str) -> bool:
    """Resume a job from its checkpoint; return False if a process runs it. Raise ConfigError if it is completed."""
    end = time.monotonic() + EXIT_TIMEOUT_S
    while (lock := try_lock(job.lock)) is None:
        if not job.ended or time.monotonic() > end:
            return False
        time.sleep(0.05)  # its process has recorded the end and is about to exit
    try:
        if job.state == "COMPLETED":
            raise ConfigError(f"{job.name} is completed: nothing is left", hint=f"smallfirst jobs show {job.name}")
        job.clear_stop_request()
        job.log.append("REQUEUED", f"resumed by {by} from the last checkpoint")
        _start(job, lock)
    finally:
        os.close(lock)
    return True


def _close_mlflow_run(job: JobFolder, status: Status) -> None:
    if job.tracking is None:
        return
    try:
        resume_run(job.tracking.run_id).finish(status)
    except SmallfirstError as error:
        log.warning("the MLflow run of %s stays open: %s", job.name, error)


def _start(job: JobFolder, lock: int) -> None:
    """Start the job's process, which inherits the descriptor `lock` and appends what it prints to the job's output."""
    spec = job.spec
    inherited = {name: value for name, value in os.environ.items() if name not in RECORDED_VARIABLES}
    # A secret that was left out at submission is taken from here, if the address is otherwise the same.
    here = {name: value for name in spec.environment if (value := os.environ.get(name))}
    secret = {name: value for name, value in here.items() if without_secrets(value) == spec.environment[name]}
    fixed, state = {"PYTHONPATH": python_path()}, job.folder.parents[1]
    folder = spec.working_folder if spec.working_folder.is_dir() else job.folder
    if os.environ.get("SMALLFIRST_HOME") or state_folder(folder) != state:  # else weights are in the user's caches
        fixed["SMALLFIRST_HOME"] = str(state)
    with os.fdopen(os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        process = subprocess.Popen(
            # -P: a file in the working folder must not shadow a module.
            [sys.executable, "-P", "-m", worker.__name__, str(job.folder), str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
            cwd=folder,
            env={**inherited, **spec.environment, **secret, **fixed},
        )
    # Without a waiting thread the ended child would stay a zombie for as long as this process lives.
    threading.Thread(target=process.wait, daemon=True).start()


def _restarts_without_progress(events: Sequence[Event]) -> int:
    last = max((place for place, event in enumerate(events) if event.kind in _PROGRESS_EVENTS), default=-1)
    return sum(event.kind == "REQUEUED" for event in events[last + 1 :])
