"""Jobs submitted, found, cancelled and brought back: each is a process that outlives the one that asked for it.

Nothing runs in between. Whoever looks at a job whose process died without a last word starts it again from its
checkpoint, at most MOST_RESTARTS times; so a killed process costs the time until somebody looks.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from smallfirst.errors import ConfigError, SmallfirstError, did_you_mean
from smallfirst.home import home
from smallfirst.jobs.folder import WAITING, JobFolder
from smallfirst.jobs.locks import hold
from smallfirst.jobs.order import JOB_NAME, Order
from smallfirst.jobs.rows import JobRows
from smallfirst.tracking import Status, reopen_run
from smallfirst.training.events import Event

log = logging.getLogger(__name__)

MOST_RESTARTS = 3
"""A process that dies once more is not started again: something kills it each time."""

SETTINGS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "SMALLFIRST_VOLUMES", "SMALLFIRST_TABLES")
"""Environment variables that a job keeps from its submission, whoever starts its process again."""


class NoSuchJob(SmallfirstError):
    """No job has this name."""


def submit(order: Order, rows: JobRows | None = None) -> JobFolder:
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
    held = hold(job.lock)
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


def find(name: str, *, bring_back: bool = True) -> JobFolder:
    """The job called `name`, brought back if its process died. Raises NoSuchJob with the nearest name."""
    job = JobFolder(jobs_folder() / name) if JOB_NAME.fullmatch(name) else None
    if job is None or not job.exists:
        names = [other.name for other in _all()]
        raise NoSuchJob(
            f'no job is called "{name}"{did_you_mean(name, names)}',
            hint=f"there are: {', '.join(names[:10])}" if names else "none has been submitted yet",
        )
    if bring_back:
        recover(job)
    return job


def all_jobs() -> list[JobFolder]:
    """All jobs, newest first; those whose process died are brought back."""
    return _recover_all()


def cancel(job: JobFolder) -> bool:
    """True if the job was asked to stop; False if it had ended. It is STOPPED a moment later, or already."""
    if job.ended:
        return False
    job.ask_to_stop()
    recover(job)  # no process may be left to obey
    return True


def recover(job: JobFolder) -> None:
    """Nothing back; a job that no process carries out and that has not ended is started again, stopped or failed."""
    if job.ended:
        return
    held = hold(job.lock)
    if held is None:
        return
    try:
        if job.ended:  # it ended between the two looks
            return
        restarts = [event for event in job.events if event.kind == "REQUEUED"]
        if job.cancelled:
            job.log.append("STOPPED", "cancelled")
            _close_tracking(job, "KILLED")
        elif len(restarts) >= MOST_RESTARTS:
            job.log.append("FAILED", _gave_up(job, restarts))
            _close_tracking(job, "FAILED")
        else:
            job.log.append("REQUEUED", "its process died; going on from the last checkpoint")
            _start(job, held)
    finally:
        os.close(held)


def waiting_before(job: JobFolder) -> list[JobFolder]:
    """Jobs that were submitted earlier and have not ended, oldest first."""
    mine = (job.order.created_at, job.name)
    return [other for other in _all()[::-1] if (other.order.created_at, other.name) < mine and not other.ended]


def waits(job: JobFolder) -> bool:
    """True if a living process waits for the job's turn."""
    return job.state in WAITING and job.alive


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
        reopen_run(job.tracking.run_id).finish(status)
    except SmallfirstError as error:
        log.warning("the MLflow run of %s stays open: %s", job.name, error)


def _start(job: JobFolder, held: int) -> None:
    """Nothing back; a process that inherits the held lock carries the job out."""
    own = {"SMALLFIRST_HOME": str(job.folder.parents[1]), "PYTHONPATH": _module_path()}
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    # -P: a file in the working folder must not stand in for a module.
    command = [sys.executable, "-P", "-m", "smallfirst.jobs.process", str(job.folder), str(held)]
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
    return {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}


def _gave_up(job: JobFolder, restarts: Sequence[Event]) -> str:
    return (
        f"its process died {len(restarts) + 1} times; the last lines of {job.output}:\n{job.last_lines()}\n"
        f"  next: mend the cause (often memory: a smaller batch_tokens or model), then submit it again"
    )
