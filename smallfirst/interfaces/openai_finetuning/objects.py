"""A job, its events and its checkpoint as OpenAI shows them, all read from the job's folder.

PENDING → validating_files · QUEUED → queued · STARTING, RUNNING → running · COMPLETED → succeeded
FAILED → failed · TERMINATING, STOPPED → cancelled (from the moment that it was asked to stop)
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any

from smallfirst.interfaces.openai_finetuning.pagination import unix_seconds
from smallfirst.interfaces.openai_finetuning.requests import INTERFACE, JOB_ID
from smallfirst.jobs.job_folder import TERMINAL_STATES, JobFolder, State, state_after
from smallfirst.jobs.spec import JobProgress
from smallfirst.paths import home
from smallfirst.training.events import Event

ORGANISATION = "smallfirst"
_STATUS: dict[State, str] = {
    "PENDING": "validating_files",
    "QUEUED": "queued",
    "STARTING": "running",
    "RUNNING": "running",
    "TERMINATING": "cancelled",
    "COMPLETED": "succeeded",
    "STOPPED": "cancelled",
    "FAILED": "failed",
}
_LEVELS = {"FAILED": "error", "CHECKPOINT_FAILED": "warn", "REQUEUED": "warn"}
_METRICS = {"loss": "train_loss", "minus_eval_loss": "valid_loss", "step": "step", "tokens": "trained_tokens"}
"""Our figures that have another name there."""


def is_owned_by(job: JobFolder, owner: str) -> bool:
    """True if the job was submitted through this API with the owner's key."""
    given = job.spec.submitted
    return given.get("interface") == INTERFACE and given.get("owner") == owner


def model_name(job: JobFolder) -> str:
    """What the job's model is called: `ft:base:smallfirst:suffix:id`."""
    suffix = job.spec.submitted.get("suffix") or ""
    return f"ft:{job.spec.model}:{ORGANISATION}:{suffix}:{job.name.removeprefix('ftjob-')}"


def job_id(model: str) -> str | None:
    """Id of the job that made the model of this name; None if the name is not of that form."""
    id = f"ftjob-{model.rpartition(':')[2]}"
    return id if model.startswith("ft:") and JOB_ID.fullmatch(id) else None


def job_object(job: JobFolder) -> dict[str, Any]:
    """The job as it is now."""
    order, events = job.spec, job.events
    given, state = order.submitted, state_after(events, cancelled=job.cancelled)
    ended = unix_seconds(events[-1].at) if state in TERMINAL_STATES else None
    tuned = given["hyperparameters"]
    return {
        "id": job.name,
        "object": "fine_tuning.job",
        "created_at": unix_seconds(order.created_at),
        "error": _error(events[-1], job) if state == "FAILED" else None,
        "fine_tuned_model": model_name(job) if state == "COMPLETED" else None,
        "finished_at": ended,
        "hyperparameters": tuned,
        "model": given["model"],
        "organization_id": f"org-{ORGANISATION}",
        "result_files": [],
        "seed": order.config.seed,
        "status": "queued" if state == "PENDING" and _was_seen(events) else _STATUS[state],
        "trained_tokens": _trained_tokens(events) if state == "COMPLETED" else None,
        "training_file": given["training_file"],
        "validation_file": given["validation_file"],
        "estimated_finish": _estimated_finish(job.progress) if state == "RUNNING" else None,
        "integrations": [],
        "metadata": given["metadata"] or None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": tuned}},
    }


def event_objects(job: JobFolder) -> list[dict[str, Any]]:
    """What happened, newest first."""
    id = job.name.removeprefix("ftjob-")
    return [_event_object(f"ftevent-{id}-{n:04d}", event, job) for n, event in enumerate(job.events)][::-1]


def checkpoint_objects(job: JobFolder) -> list[dict[str, Any]]:
    """The weights that can be asked: those of the best epoch, once the job has succeeded."""
    events, result = job.events, job.result
    if result is None or job.state != "COMPLETED":
        return []
    epochs = [event for event in events if event.kind == "EPOCH_FINISHED"]
    best = epochs[result.best_epoch - 1] if len(epochs) >= result.best_epoch else None
    planned = next((e.values.get("steps", 0) for e in events if e.kind == "TRAIN_STARTED"), 0)
    step = round(planned * result.best_epoch / job.spec.submitted["hyperparameters"]["n_epochs"])
    id = job.name.removeprefix("ftjob-")
    return [
        {
            "id": f"ftckpt-{id}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": unix_seconds((best or events[-1]).at),
            "fine_tuned_model_checkpoint": model_name(job),
            "fine_tuning_job_id": job.name,
            "metrics": {"step": step, **(_figures(best) if best else {})},
            "step_number": step,
        }
    ]


def public_message(message: str, job: JobFolder) -> str:
    """What a client may read of a message: no path of this server, no line of its log, no advice to its owner."""
    text = re.split(r"\n  next:|; the last lines of ", message)[0]
    if job.spec.weights:
        text = text.replace(job.spec.weights, job.spec.model)
    return text.replace(str(home()), "…")


def _event_object(id: str, event: Event, job: JobFolder) -> dict[str, Any]:
    figures = _figures(event)
    message = f"the model is {model_name(job)}" if event.kind == "COMPLETED" else public_message(event.message, job)
    return {
        "id": id,
        "object": "fine_tuning.job.event",
        "created_at": unix_seconds(event.at),
        "level": _LEVELS.get(event.kind, "info"),
        "message": f"{event.kind}: {message}",
        "type": "metrics" if figures else "message",
        "data": figures,
    }


def _figures(event: Event) -> dict[str, float]:
    """The event's figures under the names known there; a loss that was kept with its sign turned is turned back."""
    found = {}
    for name, value in event.values.items():
        if name in _METRICS and isinstance(value, int | float) and math.isfinite(value):
            found[_METRICS[name]] = -value if name.startswith("minus_") else value
    return found


def _error(event: Event, job: JobFolder) -> dict[str, Any]:
    """Why it failed; with the parameter if rows of a file are to blame."""
    message, given = public_message(event.message, job), job.spec.submitted
    param = next((name for name in ("training_file", "validation_file") if f"{given[name]}:" in message), None)
    return {"code": "invalid_file" if param else "training_failed", "message": message, "param": param}


def _was_seen(events: tuple[Event, ...]) -> bool:
    """True once a process has begun to carry the job out."""
    return any(event.kind in ("QUEUED", "STARTED", "REQUEUED") for event in events)


def _trained_tokens(events: tuple[Event, ...]) -> int | None:
    """Tokens read in training, padding not counted; None if the job did not say."""
    counts = [event.values["tokens"] for event in events if event.kind == "TRAIN_UPDATED" and "tokens" in event.values]
    return int(counts[-1]) if counts else None


def _estimated_finish(progress: JobProgress | None) -> int | None:
    if progress is None or progress.seconds_left is None:
        return None
    return unix_seconds(progress.at + timedelta(seconds=progress.seconds_left))
