"""A job, its events and its checkpoint as OpenAI's objects, all read from the job's folder."""

from __future__ import annotations

import math
import re
from typing import Any

from smallfirst.interfaces.openai_finetuning.pagination import unix_seconds
from smallfirst.interfaces.openai_finetuning.requests import INTERFACE, JOB_ID
from smallfirst.jobs.job_folder import TERMINAL_STATES, Event, JobFolder, State, state_after
from smallfirst.paths import state_folder

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


def is_owned_by(job: JobFolder, owner: str) -> bool:
    """Return True if the job was submitted through this API with the owner's key."""
    submitted = job.spec.submitted
    return submitted.get("interface") == INTERFACE and submitted.get("owner") == owner


def model_name(job: JobFolder) -> str:
    """Return the name of the job's model: `ft:base:smallfirst:suffix:id`."""
    suffix = job.spec.submitted.get("suffix") or ""
    return f"ft:{job.spec.model}:{ORGANISATION}:{suffix}:{job.name.removeprefix('ftjob-')}"


def job_id(model: str) -> str | None:
    """Return the id of the job that trained the model of this name; None if the name has another form."""
    id = f"ftjob-{model.rpartition(':')[2]}"
    return id if model.startswith("ft:") and JOB_ID.fullmatch(id) else None


def job_object(job: JobFolder) -> dict[str, Any]:
    """Return the job as it is now."""
    spec, events = job.spec, job.events
    submitted, state = spec.submitted, state_after(events, cancelled=job.cancelled)
    ended = unix_seconds(events[-1].at) if state in TERMINAL_STATES else None
    hyperparameters = submitted["hyperparameters"]
    has_started = any(event.kind in ("QUEUED", "STARTED", "REQUEUED") for event in events)
    return {
        "id": job.name,
        "object": "fine_tuning.job",
        "created_at": unix_seconds(spec.created_at),
        "error": _error(events[-1], job) if state == "FAILED" else None,
        "fine_tuned_model": model_name(job) if state == "COMPLETED" else None,
        "finished_at": ended,
        "hyperparameters": hyperparameters,
        "model": submitted["model"],
        "organization_id": f"org-{ORGANISATION}",
        "result_files": [],
        "seed": spec.config.seed,
        "status": "queued" if state == "PENDING" and has_started else _STATUS[state],
        "trained_tokens": _trained_tokens(events) if state == "COMPLETED" else None,
        "training_file": submitted["training_file"],
        "validation_file": submitted["validation_file"],
        "estimated_finish": unix_seconds(end) if (end := job.estimated_end) else None,
        "integrations": [],
        "metadata": submitted["metadata"] or None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }


def event_objects(job: JobFolder) -> list[dict[str, Any]]:
    """Return the events, newest first."""
    id = job.name.removeprefix("ftjob-")
    return [_event_object(f"ftevent-{id}-{n:04d}", event, job) for n, event in enumerate(job.events)][::-1]


def checkpoint_objects(job: JobFolder) -> list[dict[str, Any]]:
    """Return the weights that can be used: those of the best epoch, once the job has succeeded."""
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
            "metrics": {"step": step, **(_metrics(best) if best else {})},
            "step_number": step,
        }
    ]


def public_message(message: str, job: JobFolder) -> str:
    """Return the part of a message that a client may read: no paths, no log lines, no advice to the server's owner."""
    text = re.split(r"\n  next:|; the last lines of ", message)[0]
    if job.spec.weights:
        text = text.replace(job.spec.weights, job.spec.model)
    return text.replace(str(state_folder()), "…")


def _event_object(id: str, event: Event, job: JobFolder) -> dict[str, Any]:
    metrics = _metrics(event)
    message = f"the model is {model_name(job)}" if event.kind == "COMPLETED" else public_message(event.message, job)
    return {
        "id": id,
        "object": "fine_tuning.job.event",
        "created_at": unix_seconds(event.at),
        "level": _LEVELS.get(event.kind, "info"),
        "message": f"{event.kind}: {message}",
        "type": "metrics" if metrics else "message",
        "data": metrics,
    }


def _metrics(event: Event) -> dict[str, float]:
    """Return the event's metrics under OpenAI's names; a negated loss gets its sign back."""
    found = {}
    for name, value in event.values.items():
        if name in _METRICS and isinstance(value, int | float) and math.isfinite(value):
            found[_METRICS[name]] = -value if name.startswith("minus_") else value
    return found


def _error(event: Event, job: JobFolder) -> dict[str, Any]:
    message, submitted = public_message(event.message, job), job.spec.submitted
    param = next((name for name in ("training_file", "validation_file") if f"{submitted[name]}:" in message), None)
    return {"code": "invalid_file" if param else "training_failed", "message": message, "param": param}


def _trained_tokens(events: tuple[Event, ...]) -> int | None:
    """Return the tokens read in training, padding not counted; None if the job did not record them."""
    counts = [event.values["tokens"] for event in events if event.kind == "TRAIN_UPDATED" and "tokens" in event.values]
    return int(counts[-1]) if counts else None
