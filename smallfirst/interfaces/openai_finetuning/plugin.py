"""OpenAI's fine-tuning API as a plugin of the server: jobs of `interfaces.jobs`, files, and the models that result.

It is off unless asked for, since any key may then use this machine. A key sees its own files, jobs and models only.
A job and its events as OpenAI's objects are read from the job's folder. Its process reads the uploaded rows, so what is
in a file costs the server no memory. Fields of a new job that would have no effect are refused. OpenAI's `batch_size`
counts rows and ours tokens; it is converted by the mean size of a line at four bytes per token.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from smallfirst import Model, TrainConfig
from smallfirst.base.errors import MissingExtra, SmallfirstError, did_you_mean
from smallfirst.base.paths import state_folder
from smallfirst.base.records import parse_record
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import (
    TERMINAL_STATES,
    Event,
    JobFolder,
    JobSpec,
    State,
    context_length,
    jobs_folder,
    lookup,
    parse_duration,
    require_training_packages,
    state_after,
    user_name,
    utc_now,
)
from smallfirst.interfaces.openai_finetuning.files import FilesApi, FileStore, FineTuningSettings, page, unix_seconds
from smallfirst.interfaces.openai_finetuning.models import (
    INTERFACE,
    JOB_ID,
    ORGANISATION,
    FineTunedModels,
    is_owned_by,
    job_id,
    model_name,
)
from smallfirst.serving.plugins import (
    ApiError,
    Plugin,
    PluginContext,
    PluginRequest,
    PluginResponse,
    PluginRoute,
    current_caller,
    validation_error,
)

MAX_BODY_BYTES = 256 * 1024
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 20, 100
MAX_SEED = 2**31 - 1
MAX_TOKENS = 2048
"""Longest row, unless the model takes less; the job refuses a longer one by line."""
_BYTES_PER_TOKEN = 4
_METADATA = re.compile(r"metadata\[(.{1,64})\]")
_JOBS = "/v1/fine_tuning/jobs"
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


class JobsApi:
    """The routes of /v1/fine_tuning/jobs."""

    def __init__(self, store: FileStore, models: FineTunedModels, settings: FineTuningSettings) -> None:
        self._store, self._models, self._settings = store, models, settings
        self._submitting = asyncio.Lock()  # so that open jobs are counted exactly
        self.routes = (
            PluginRoute("POST", _JOBS, self.create, "user"),
            PluginRoute("GET", _JOBS, self.list, "user"),
            PluginRoute("GET", f"{_JOBS}/{{job_id}}", self.retrieve, "user"),
            PluginRoute("POST", f"{_JOBS}/{{job_id}}/cancel", self.cancel, "user"),
            PluginRoute("GET", f"{_JOBS}/{{job_id}}/events", self.events, "user"),
        )

    async def create(self, call: PluginRequest) -> PluginResponse:
        """Start a job and return it. Raise ApiError 400 naming the invalid field, 429 if too many jobs are open."""
        body = parse_job(await call.json(max_bytes=MAX_BODY_BYTES))
        async with self._submitting:
            base = await asyncio.to_thread(self._base, body.model, call)
            return await asyncio.to_thread(self._submit, body, base, call.caller)

    def list(self, call: PluginRequest) -> PluginResponse:
        """Return a page of the caller's jobs, newest first; `metadata[key]=value` selects those with this metadata."""
        metadata = {name[1]: value for key, value in call.query if (name := _METADATA.fullmatch(key))}
        without = ("metadata", "null") in call.query

        def matches(given: dict[str, str]) -> bool:
            return metadata.items() <= given.items() and not (without and given)

        jobs = [job for job in queue.all_jobs() if is_owned_by(job, call.caller)]
        matching = [{"id": job.name, "job": job} for job in jobs if matches(job.spec.submitted["metadata"] or {})]
        found = page(matching, call.query, default=DEFAULT_PAGE_SIZE, maximum=MAX_PAGE_SIZE)
        return {**found, "data": [job_object(one["job"]) for one in found["data"]]}

    def retrieve(self, call: PluginRequest) -> PluginResponse:
        return job_object(self._find(call))

    def cancel(self, call: PluginRequest) -> PluginResponse:
        """Ask a job to stop and return it. Raise ApiError 400 if it has ended or only registering is left."""
        job = self._find(call)
        if not queue.cancel(job):
            status = job_object(job)["status"]
            raise ApiError(400, f"Job {job.name} can no longer be cancelled: it is {status}.", code="job_has_ended")
        return job_object(job)

    def events(self, call: PluginRequest) -> PluginResponse:
        return page(event_objects(self._find(call)), call.query, default=DEFAULT_PAGE_SIZE, maximum=MAX_PAGE_SIZE)

    def _find(self, call: PluginRequest) -> JobFolder:
        """Return the caller's job, restarted if its process died; another key's job counts as missing."""
        id = call.path_params["job_id"]
        job = lookup(id) if JOB_ID.fullmatch(id) else None
        if job is None or not is_owned_by(job, call.caller):
            raise ApiError(
                404, f"Could not find fine tune: {id[:64]}", param="fine_tune_id", code="fine_tune_not_found"
            )
        queue.recover(job)
        return job

    def _base(self, name: str, call: PluginRequest) -> tuple[str, str]:
        """Return the name of the base model, and the name or folder of the weights to start from.

        Raise ApiError 400 if it cannot be trained here, 429 if too many jobs are open.
        """
        jobs, owner, settings = [job for job in queue.all_jobs() if not job.ended], call.caller, self._settings
        n_own, caller = sum(is_owned_by(job, owner) for job in jobs), current_caller()
        known = {name: at for name, at in settings.base_models.items() if caller.may_use(name)}
        full = f"{len(jobs)} jobs" if len(jobs) >= settings.max_open_jobs else ""
        if call.role != "admin" and n_own >= settings.max_open_jobs_of_user:
            full = full or f"{n_own} jobs of yours"
        if full:
            what = f"{full} have not ended yet; no more are taken. Cancel one, or wait."
            raise ApiError(429, what, kind="rate_limit_error", code="too_many_jobs", retry_after_s=60)
        if name in known:
            return name, known[name]
        made_by = job_id(name)
        try:
            folder = self._models.folder(name, owner) if made_by else None
        except SmallfirstError as error:
            raise ApiError(503, f"The weights of {name} cannot be had now.", kind="server_error") from error
        if folder is None or made_by is None:
            near = did_you_mean(name[:128], known) or "."
            what = f'The model "{name[:128]}" cannot be fine-tuned here{near} There are: {", ".join(known) or "none"}.'
            raise ApiError(400, what, param="model", code="model_not_available")
        return queue.find(made_by).spec.model, str(folder)

    def _submit(self, body: JobBody, base: tuple[str, str], owner: str) -> dict[str, Any]:
        """Start the job with copies of its files, and return it. Raise ApiError 400 for a file that is not there."""
        with self._store.scratch(owner) as folder:
            rows = folder / "rows"
            rows.mkdir()
            for parameter, id in (("training_file", body.training_file), ("validation_file", body.validation_file)):
                file = self._store.find(owner, id) if id else None
                if id and file is None:
                    raise ApiError(400, f"File '{id[:64]}' does not exist.", param=parameter, code="file_not_found")
                if file is not None:
                    shutil.copyfile(self._store.path(owner, file), rows / f"{file.id}.jsonl")
            tokens = tokens_per_line(rows / f"{body.training_file}.jsonl")
            spec = make_job_spec(body, tokens, base, owner=owner, settings=self._settings)
            return job_object(queue.submit(spec, rows))


Auto = pydantic.BeforeValidator(lambda value: None if value == "auto" else value)
"""Reads "auto" as None."""
Short = Annotated[str, Field(max_length=512)]


class _JobPart(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class Hyperparameters(_JobPart):
    """Hyperparameters; None stands for the default of TrainConfig."""

    n_epochs: Annotated[int | None, Auto] = Field(default=None, ge=1, le=50)
    batch_size: Annotated[int | None, Auto] = Field(default=None, ge=1, le=1024)
    learning_rate_multiplier: Annotated[float | None, Auto] = Field(default=None, gt=0, le=100)


class _Supervised(_JobPart):
    hyperparameters: Hyperparameters = Hyperparameters()


class _Method(_JobPart):
    type: Literal["supervised"] = "supervised"
    supervised: _Supervised = _Supervised()


class JobBody(_JobPart):
    """The body of a request to create a job."""

    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(min_length=1, max_length=64)
    validation_file: str | None = Field(default=None, min_length=1, max_length=64)
    suffix: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    hyperparameters: Hyperparameters | None = None
    method: _Method | None = None
    metadata: dict[Annotated[str, Field(min_length=1, max_length=64)], Short] = Field(default={}, max_length=16)

    @property
    def chosen(self) -> Hyperparameters:
        return self.hyperparameters or (self.method or _Method()).supervised.hyperparameters


def parse_job(values: dict[str, Any]) -> JobBody:
    """Return the body as a record. Raise ApiError 400 with every rule it breaks; `param` is the first invalid field."""
    try:
        body = JobBody.model_validate({name: value for name, value in values.items() if value is not None})
    except pydantic.ValidationError as error:
        raise validation_error(error, JobBody) from None
    if body.hyperparameters is not None and body.method is not None:
        raise ApiError(400, "Give the hyperparameters in `method` alone.", param="hyperparameters")
    return body


def tokens_per_line(file: Path) -> float:
    """Return about how many tokens a line of a file has, at four bytes per token."""
    with file.open("rb") as content:
        n_lines = sum(block.count(b"\n") for block in iter(lambda: content.read(1 << 20), b""))
    return file.stat().st_size / _BYTES_PER_TOKEN / max(1, n_lines)


def make_job_spec(
    body: JobBody, line_tokens: float, base: tuple[str, str], *, owner: str, settings: FineTuningSettings
) -> JobSpec:
    """Return the specification of a job that starts from `base`: the base model's name and its weights.

    A line of its training file has about `line_tokens` tokens.
    """
    id = f"ftjob-{secrets.token_hex(8)}"
    rows = jobs_folder() / id / "rows"
    name, weights = base
    chosen, default, n_tokens = body.chosen, TrainConfig(), MAX_TOKENS
    with suppress(SmallfirstError):  # the weights may not be on this machine yet
        n_tokens = min(MAX_TOKENS, context_length(weights) or MAX_TOKENS)
    used = {
        "n_epochs": chosen.n_epochs or parse_duration(default.duration).amount,
        "batch_size": chosen.batch_size or "auto",
        "learning_rate_multiplier": chosen.learning_rate_multiplier or 1.0,
    }
    batch = round(chosen.batch_size * line_tokens) if chosen.batch_size else default.batch_tokens
    config = TrainConfig(
        duration=f"{used['n_epochs']}ep",
        learning_rate=default.learning_rate * (chosen.learning_rate_multiplier or 1.0),
        max_seq_tokens=n_tokens,
        batch_tokens=max(32, batch),
        seed=secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed,
    )
    model = f"{settings.register_to}.{body.suffix or id}"
    return JobSpec(
        name=id,
        recipe="chat",
        model=name,
        weights=None if weights == name else weights,
        train_rows=str(rows / f"{body.training_file}.jsonl"),
        eval_rows=str(rows / f"{body.validation_file}.jsonl") if body.validation_file else None,
        max_rows=settings.max_rows,
        register_to=model,
        experiment=model,
        config=config,
        created_by=f"key {owner[:8]}" if owner else user_name(),
        created_at=utc_now(),
        submitted={
            **body.model_dump(include={"model", "training_file", "validation_file", "suffix", "metadata"}),
            "interface": INTERFACE,
            "owner": owner,
            "hyperparameters": used,
        },
    )


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
    found = []
    for n, event in enumerate(job.events):
        metrics = _metrics(event)
        message = f"the model is {model_name(job)}" if event.kind == "COMPLETED" else public_message(event.message, job)
        found.append(
            {
                "id": f"ftevent-{job.name.removeprefix('ftjob-')}-{n:04d}",
                "object": "fine_tuning.job.event",
                "created_at": unix_seconds(event.at),
                "level": _LEVELS.get(event.kind, "info"),
                "message": f"{event.kind}: {message}",
                "type": "metrics" if metrics else "message",
                "data": metrics,
            }
        )
    return found[::-1]


def public_message(message: str, job: JobFolder) -> str:
    """Return the part of a message that a client may read: no paths, no log lines, no advice to the server's owner."""
    text = re.split(r"\n  next:|; the last lines of ", message)[0]
    if job.spec.weights:
        text = text.replace(job.spec.weights, job.spec.model)
    return text.replace(f"{job.folder}/rows/", "").replace(str(state_folder()), "…")


def _metrics(event: Event) -> dict[str, float]:
    """Return the event's metrics under OpenAI's names; a negated loss gets its sign back."""
    found = {}
    for name, value in event.values.items():
        if name in _METRICS and isinstance(value, int | float) and math.isfinite(value):
            found[_METRICS[name]] = -value if name.startswith("minus_") else value
    return found


def _error(event: Event, job: JobFolder) -> dict[str, Any]:
    message, submitted = public_message(event.message, job), job.spec.submitted
    param = next(
        (name for name in ("training_file", "validation_file") if f"{submitted[name]}.jsonl:" in message), None
    )
    return {"code": "invalid_file" if param else "training_failed", "message": message, "param": param}


def _trained_tokens(events: tuple[Event, ...]) -> int | None:
    """Return the tokens read in training, padding not counted; None if the job did not record them."""
    counts = [event.values["tokens"] for event in events if event.kind == "TRAIN_UPDATED" and "tokens" in event.values]
    return int(counts[-1]) if counts else None


class FineTuning(Plugin):
    """The plugin; `fine_tuning()` creates one."""

    def __init__(self, settings: FineTuningSettings) -> None:
        store = FileStore(max_files=settings.max_files, max_bytes=settings.max_stored_bytes)
        self._models = FineTunedModels(max_models=settings.max_loaded_models, machine=settings.machine)
        self.routes = (*FilesApi(store, settings).routes, *JobsApi(store, self._models, settings).routes)

    def find(self, name: str, caller: str) -> Model | None:
        return self._models.find(name, caller)

    def names(self, caller: str) -> Mapping[str, int]:
        return self._models.names(caller)

    async def aclose(self) -> None:
        """Close the loaded models. Jobs continue in their own processes."""
        await self._models.aclose()


def fine_tuning(settings: FineTuningSettings | None = None) -> FineTuning:
    """Return the plugin for `serve` and `build_app`, and restart jobs whose process died. Raise MissingExtra."""
    if find_spec("python_multipart") is None:
        raise MissingExtra("Fine-tuning over HTTP", "openai-finetuning")
    require_training_packages()
    queue.all_jobs()
    return FineTuning(settings or FineTuningSettings())


def create_plugin(context: PluginContext) -> FineTuning | None:
    """Return the plugin of `smallfirst serve`, None if not enabled."""
    if not context.enabled:
        return None
    named = {name: at or name for name, _, at in (base.partition("=") for base in context.bases)}
    settings = {"base_models": named} if named else {}
    return fine_tuning(parse_record(FineTuningSettings, settings, where="--base"))
