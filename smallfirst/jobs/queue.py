"""Jobs submitted, found, cancelled and brought back: each is a process that outlives the one that asked for it.

Nothing runs in between. Whoever looks at a job whose process died without a last word starts it again from its
checkpoint, at most MOST_RESTARTS times without getting on; so a killed process costs the time until somebody looks.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from smallfirst.errors import ConfigError, SmallfirstError, did_you_mean
from smallfirst.files import try_lock
from smallfirst.jobs.job_folder import WAITING_STATES, JobFolder
from smallfirst.jobs.rows import JobRows
from smallfirst.jobs.spec import JOB_NAME, JobSpec
from smallfirst.paths import home
from smallfirst.registry.runs import Status, resume_run
from smallfirst.training.events import Event

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""How often a job is started again without getting on; something then kills it each time."""
_GOT_ON = frozenset({"CHECKPOINT_SAVED", "STOPPED", "FAILED"})
"""Events after which restarts are counted anew: more is kept than before, or only a person can have it go on."""

EXIT_TIMEOUT_S = 5.0
"""Longest wait for a process that has said how the job ended."""

KEPT_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "SMALLFIRST_VOLUMES", "SMALLFIRST_TABLES")
"""Environment variables that a job keeps from its submission, whoever starts its process again."""


class JobNotFound(SmallfirstError):
    """No job has this name."""


def submit(order: JobSpec, rows: JobRows | None = None) -> JobFolder:
    """The job, its process started, which waits for its turn by itself; without `rows` it reads them too.

    Raises ConfigError if the name is taken.
    """
    _recover_all()
    folder = jobs_folder() / order.name
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise ConfigError(f'there is a job "{order.name}" already', hint="choose another name") from None
    job = JobFolder(folder)
    held = try_lock(job.lock)
    if held is None:
        raise SmallfirstError(f"{job.lock} is held by another process", hint="submit again")
    try:
        if rows is not None:
            rows.keep(folder)
        job.log.append("CREATED", f"fine-tune of {order.model} on {order.train_rows}")
        here = {"working_folder": Path.cwd(), "environment": _settings()}
        order.model_copy(update=here).save(folder / "job.json")
        _start(job, held)
    finally:
        os.close(held)  # the process has it now
    return job


def find(name: str, *, restart_dead: bool = True) -> JobFolder:
    """The job called `name`, brought back if its process died. Raises NoSuchJob with the nearest name."""
    job = JobFolder(jobs_folder() / name) if JOB_NAME.fullmatch(name) else None
    if job is None or not job.exists:
        names = [other.name for other in _all()]
        raise JobNotFound(
            f'no job is called "{name}"{did_you_mean(name, names)}',
            hint=f"there are: {', '.join(names[:10])}" if names else "none has been submitted yet",
        )
    if restart_dead:
        recover(job)
    return job


def all_jobs() -> list[JobFolder]:
    """All jobs, newest first; those whose process died are brought back."""
    return _recover_all()


def cancel(job: JobFolder) -> bool:
    """True if the job was asked to stop; False if it had ended. It is STOPPED a moment later, or already."""
    if job.ended:
        return False
    job.request_stop()
    recover(job)  # no process may be left to obey
    return True


def recover(job: JobFolder) -> None:
    """Nothing back; a job that no process carries out and that has not ended is started again, stopped or failed."""
    if job.ended:
        return
    held = try_lock(job.lock)
    if held is None:
        return
    try:
        if job.ended:  # it ended between the two looks
            return
        restarts = _restarts_in_vain(job.events)
        if job.cancelled:
            job.log.append("STOPPED", "cancelled")
            _close_tracking(job, "KILLED")
        elif restarts >= MAX_RESTARTS:
            job.log.append("FAILED", _gave_up(job, restarts))
            _close_tracking(job, "FAILED")
        else:
            job.log.append("REQUEUED", "its process died; going on from the last checkpoint")
            _start(job, held)
    finally:
        os.close(held)


def resume(job: JobFolder, *, by: str) -> bool:
    """True if the job, stopped, failed or dead, goes on from its checkpoint; False if a process carries it out.

    A wish that it stop is taken back. Raises ConfigError if it is completed.
    """
    end = time.monotonic() + EXIT_TIMEOUT_S
    while (held := try_lock(job.lock)) is None:
        if not job.ended or time.monotonic() > end:
            return False
        time.sleep(0.05)  # its process has said its last word and is about to let go of the lock
    try:
        if job.state == "COMPLETED":
            raise ConfigError(f"{job.name} is completed: nothing is left", hint=f"smallfirst jobs show {job.name}")
        job.clear_stop_request()
        job.log.append("REQUEUED", f"{by} had it go on from its last checkpoint")
        _start(job, held)
    finally:
        os.close(held)
    return True


def unfinished_before(job: JobFolder) -> list[JobFolder]:
    """Jobs that were submitted earlier and have not ended, oldest first."""
    mine = (job.order.created_at, job.name)
    return [other for other in _all()[::-1] if (other.order.created_at, other.name) < mine and not other.ended]


def is_waiting(job: JobFolder) -> bool:
    """True if a living process waits for the job's turn."""
    return job.state in WAITING_STATES and job.alive


def jobs_folder() -> Path:
    """The folder of all jobs, created if missing."""
    folder = home() / "jobs"
    folder.mkdir(exist_ok=True)
    return folder


def _all() -> list[JobFolder]:
    """Newest first; one that cannot be read hides no other."""
    jobs = []
    for job in map(JobFolder, jobs_folder().iterdir()):
        try:
            jobs += [(job.order.created_at, job.name, job)] if job.exists else []
        except ConfigError as error:
            log.warning("left out: %s", error)
    return [job for *_, job in sorted(jobs, key=lambda one: one[:2], reverse=True)]


def _recover_all() -> list[JobFolder]:
    jobs = _all()
    for job in reversed(jobs):  # the oldest first, so that it is first in line again
        recover(job)
    return jobs


def _close_tracking(job: JobFolder, status: Status) -> None:
    """Nothing back; the MLflow run that a dead process left open is closed, if its store answers."""
    if job.tracking is None:
        return
    try:
        resume_run(job.tracking.run_id).finish(status)
    except SmallfirstError as error:
        log.warning("the MLflow run of %s stays open: %s", job.name, error)


def _start(job: JobFolder, held: int) -> None:
    """Nothing back; a process that inherits the held lock carries the job out."""
    own = {"SMALLFIRST_HOME": str(job.folder.parents[1]), "PYTHONPATH": _module_path()}
    kept = {name: value for name, value in os.environ.items() if name not in KEPT_VARIABLES}
    # -P: a file in the working folder must not stand in for a module.
    command = [sys.executable, "-P", "-m", "smallfirst.jobs.worker", str(job.folder), str(held)]
    with job.output.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(held,),
            cwd=job.order.working_folder if job.order.working_folder.is_dir() else job.folder,
            env={**kept, **job.order.environment, **own},
        )
    # Somebody must wait for it, or it stays a zombie for as long as this process lives.
    threading.Thread(target=process.wait, daemon=True).start()


def _module_path() -> str:
    """PYTHONPATH, and before it the folder that holds this package, unless Python finds it there by itself."""
    package = Path(__file__).parents[2]
    installed = package.name in ("site-packages", "dist-packages")
    return os.pathsep.join(filter(None, ["" if installed else str(package), os.environ.get("PYTHONPATH", "")]))


def _settings() -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT_VARIABLES if os.environ.get(name)}


def _restarts_in_vain(events: Sequence[Event]) -> int:
    """How often the job was started again since it last got on."""
    last = max((place for place, event in enumerate(events) if event.kind in _GOT_ON), default=-1)
    return sum(event.kind == "REQUEUED" for event in events[last + 1 :])


def _gave_up(job: JobFolder, restarts: int) -> str:
    return (
        f"its process died {restarts + 1} times without getting on; the last lines of {job.output}:\n"
        f"{job.output_tail()}\n"
        f"  next: free memory or mend what kills it, then smallfirst jobs resume {job.name}; "
        f"or submit it anew with a smaller batch_tokens or model"
    )
