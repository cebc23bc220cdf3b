"""OpenAI's fine-tuning jobs, run by smallfirst.jobs: the folders and the queue of `foundation_model`."""

from __future__ import annotations

import asyncio
import re

from smallfirst.errors import SmallfirstError
from smallfirst.interfaces.openai_finetuning.files import FileStore
from smallfirst.interfaces.openai_finetuning.models import FineTunedModels
from smallfirst.interfaces.openai_finetuning.objects import (
    checkpoint_objects,
    event_objects,
    is_owned_by,
    job_id,
    job_object,
)
from smallfirst.interfaces.openai_finetuning.pagination import page
from smallfirst.interfaces.openai_finetuning.requests import (
    JOB_ID,
    JobBody,
    make_job_spec,
    parse_job,
    read_files,
    unknown_base_model,
)
from smallfirst.interfaces.openai_finetuning.settings import FineTuningSettings
from smallfirst.jobs import queue
from smallfirst.jobs.job_folder import JobFolder
from smallfirst.serving.plugins import ApiError, PluginRequest, PluginResponse, PluginRoute

MAX_BODY_BYTES = 256 * 1024
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 20, 100
_METADATA = re.compile(r"metadata\[(.{1,64})\]")
_JOBS = "/v1/fine_tuning/jobs"


class JobsApi:
    """The routes of /v1/fine_tuning/jobs."""

    def __init__(self, store: FileStore, models: FineTunedModels, settings: FineTuningSettings) -> None:
        self._store, self._models, self._settings = store, models, settings
        self._submitting = asyncio.Lock()  # one process that reads rows at a time, and an exact count of open jobs
        self.routes = (
            PluginRoute("POST", _JOBS, self.create),
            PluginRoute("GET", _JOBS, self.list),
            PluginRoute("GET", f"{_JOBS}/{{job_id}}", self.retrieve),
            PluginRoute("POST", f"{_JOBS}/{{job_id}}/cancel", self.cancel),
            PluginRoute("GET", f"{_JOBS}/{{job_id}}/events", self.events),
            PluginRoute("GET", f"{_JOBS}/{{job_id}}/checkpoints", self.checkpoints),
        )

    async def create(self, call: PluginRequest) -> PluginResponse:
        """Start a job and return it. Raise ApiError 400 naming the invalid field, 429 if too many jobs are open."""
        body = parse_job(await call.json(max_bytes=MAX_BODY_BYTES))
        async with self._submitting:
            base = await asyncio.to_thread(self._accept, body, call.caller)
            with self._store.scratch(call.caller) as folder:
                rows = await read_files(body, call.caller, self._store, self._settings, copies=folder / "rows")

                def submit() -> PluginResponse:
                    spec = make_job_spec(body, rows, base, owner=call.caller, settings=self._settings)
                    return job_object(queue.submit(spec, folder / "rows"))

                return await asyncio.to_thread(submit)

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

    def checkpoints(self, call: PluginRequest) -> PluginResponse:
        return page(checkpoint_objects(self._find(call)), call.query, default=10, maximum=MAX_PAGE_SIZE)

    def _find(self, call: PluginRequest) -> JobFolder:
        """Return the caller's job, restarted if its process died; another key's job counts as missing."""
        id = call.path_params["job_id"]
        job = queue.lookup(id) if JOB_ID.fullmatch(id) else None
        if job is None or not is_owned_by(job, call.caller):
            raise ApiError(
                404, f"Could not find fine tune: {id[:64]}", param="fine_tune_id", code="fine_tune_not_found"
            )
        queue.recover(job)
        return job

    def _accept(self, body: JobBody, owner: str) -> tuple[str, str]:
        """Return the base model as `_base` does. Raise ApiError 429 if too many jobs are open."""
        base = self._base(body.model, owner)
        n_open = sum(not job.ended for job in queue.all_jobs())
        if n_open >= self._settings.max_open_jobs:
            what = f"{n_open} jobs have not ended yet; no more are taken. Cancel one, or wait."
            raise ApiError(429, what, kind="rate_limit_error", code="too_many_jobs", retry_after_s=60)
        return base

    def _base(self, name: str, owner: str) -> tuple[str, str]:
        """Return the name of the base model, and the name or folder of the weights to start from."""
        known = self._settings.base_models
        if name in known:
            return name, known[name]
        made_by = job_id(name)
        try:
            folder = self._models.folder(name, owner) if made_by else None
        except SmallfirstError as error:
            raise ApiError(503, f"The weights of {name} cannot be had now.", kind="server_error") from error
        if folder is None or made_by is None:
            raise unknown_base_model(name, [*known])
        return queue.find(made_by).spec.model, str(folder)
