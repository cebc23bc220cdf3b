"""Turn the body of `fine_tuning.jobs.create` into a JobSpec; fields that would have no effect are refused.

OpenAI's `batch_size` counts rows and ours tokens; it is converted by the mean size of a row at four bytes per token.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from smallfirst import TrainConfig
from smallfirst.errors import SmallfirstError, did_you_mean
from smallfirst.interfaces.openai_finetuning.files import FileStore
from smallfirst.interfaces.openai_finetuning.pagination import parse_body
from smallfirst.interfaces.openai_finetuning.settings import FineTuningSettings
from smallfirst.interfaces.openai_finetuning.uploaded_rows import UploadedRows, read_upload
from smallfirst.jobs.base_models import context_length
from smallfirst.jobs.job_folder import JobSpec, parse_duration, user_name, utc_now
from smallfirst.jobs.supervisor import ProcessFailed
from smallfirst.serving.plugins import ApiError

INTERFACE = "openai"
JOB_ID = re.compile(r"ftjob-[0-9a-f]{16}")
MAX_SEED = 2**31 - 1
MAX_MULTIPLIER = 100
MAX_TOKENS = 2048
"""Longest row, unless the model takes less; the job refuses a longer one by line."""

Auto = Literal["auto"]
Short = Annotated[str, Field(max_length=512)]


def _auto_or(kind: type[int] | type[float], most: int) -> pydantic.PlainValidator:
    """Accept "auto" and a number of a kind above 0, at most `most`."""
    words = f"a whole number from 1 to {most}" if kind is int else f"a number above 0, at most {most}"

    def check(value: object) -> int | float | str:
        if value == "auto" or (isinstance(value, int | kind) and not isinstance(value, bool) and 0 < value <= most):
            return value if value == "auto" else kind(value)
        raise ValueError(f'must be "auto" or {words}')

    return pydantic.PlainValidator(check)


class Hyperparameters(pydantic.BaseModel):
    """Hyperparameters; `auto` stands for the default of TrainConfig."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    n_epochs: Annotated[int | Auto, _auto_or(int, 50)] = "auto"
    batch_size: Annotated[int | Auto, _auto_or(int, 1024)] = "auto"
    learning_rate_multiplier: Annotated[float | Auto, _auto_or(float, MAX_MULTIPLIER)] = "auto"


class _Supervised(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    hyperparameters: Hyperparameters = Hyperparameters()


class _Method(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    type: str = "supervised"
    supervised: _Supervised = _Supervised()

    @pydantic.field_validator("type")
    @classmethod
    def _is_supervised(cls, value: str) -> str:
        if value != "supervised":
            raise ValueError(f'"{value[:64]}" is not supported; use "supervised"')
        return value


class JobBody(pydantic.BaseModel):
    """The body of a request to create a job."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(min_length=1, max_length=64)
    validation_file: str | None = Field(default=None, min_length=1, max_length=64)
    suffix: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    hyperparameters: Hyperparameters | None = None
    method: _Method | None = None
    metadata: dict[Annotated[str, Field(min_length=1, max_length=64)], Short] = Field(default={}, max_length=16)
    integrations: list[dict[str, Any]] = []

    @pydantic.field_validator("integrations")
    @classmethod
    def _no_integrations(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if value:
            raise ValueError("not supported: the job's curves are in this server's MLflow")
        return value

    @property
    def chosen(self) -> Hyperparameters:
        return self.hyperparameters or (self.method or _Method()).supervised.hyperparameters


def parse_job(values: Mapping[str, Any]) -> JobBody:
    """Return the body as a record. Raise ApiError 400 with every rule it breaks."""
    body = parse_body(JobBody, values)
    if body.hyperparameters is not None and body.method is not None:
        raise ApiError(400, "Give the hyperparameters in `method` alone.", param="hyperparameters")
    return body


async def read_files(
    body: JobBody, owner: str, store: FileStore, settings: FineTuningSettings, *, copies: Path
) -> UploadedRows:
    """Keep the rows of both files in the folder `copies` as a job does; return what the training file has.

    Raise ApiError 400 naming the parameter and every bad line, 503 if a file could not be read.
    """

    async def read(parameter: str, id: str, copy: Path) -> UploadedRows:
        file = await asyncio.to_thread(store.find, owner, id)
        if file is None:
            raise _bad_file(parameter, f"File '{id[:64]}' does not exist", code="file_not_found")
        path, limit_s = store.path(owner, file), settings.read_timeout_s
        try:
            rows = await read_upload(path, file.id, copy, max_rows=settings.max_rows, timeout_s=limit_s)
        except ProcessFailed as error:
            what = f"{file.filename} could not be read now: {error}."
            raise ApiError(503, what, param=parameter, kind="server_error", code="file_not_read") from None
        if rows.error:
            raise _bad_file(parameter, f"{file.filename} cannot be used: {rows.error}")
        return rows

    train = await read("training_file", body.training_file, copies / "train.json")
    if train.n_rows < settings.min_rows:
        what = f"{body.training_file} has {train.n_rows} rows; at least {settings.min_rows} are needed"
        raise _bad_file("training_file", what)
    if body.validation_file:
        await read("validation_file", body.validation_file, copies / "evaluation.json")
    return train


def make_job_spec(
    body: JobBody, rows: UploadedRows, base: tuple[str, str], *, owner: str, settings: FineTuningSettings
) -> JobSpec:
    """Return the specification of a job that starts from `base`: the base model's name and its weights."""
    id = f"ftjob-{secrets.token_hex(8)}"
    name, weights = base
    chosen, default = body.chosen, TrainConfig()
    n_epochs = parse_duration(default.duration).amount if chosen.n_epochs == "auto" else chosen.n_epochs
    multiplier = 1.0 if chosen.learning_rate_multiplier == "auto" else chosen.learning_rate_multiplier
    seed = secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed
    config = TrainConfig(
        duration=f"{n_epochs}ep",
        learning_rate=default.learning_rate * multiplier,
        max_seq_tokens=_context_length(weights),
        batch_tokens=_batch_tokens(chosen.batch_size, rows),
        seed=seed,
    )
    used = {"n_epochs": n_epochs, "batch_size": chosen.batch_size, "learning_rate_multiplier": multiplier}
    return JobSpec(
        name=id,
        recipe="chat",
        model=name,
        weights=None if weights == name else weights,
        train_rows=body.training_file,
        eval_rows=body.validation_file,
        register_to=f"{settings.register_to}.{body.suffix or id}",
        experiment=f"{settings.register_to}.{body.suffix or id}",
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


def unknown_base_model(name: str, known: list[str]) -> ApiError:
    """Return the error for a model that cannot be fine-tuned."""
    near = did_you_mean(name[:128], known) or "."
    what = f'The model "{name[:128]}" cannot be fine-tuned here{near} There are: {", ".join(known) or "none"}.'
    return ApiError(400, what, param="model", code="model_not_available")


def _bad_file(parameter: str, what: str, *, code: str = "invalid_file") -> ApiError:
    return ApiError(400, f"{what}.", param=parameter, code=code)


def _batch_tokens(batch_size: int | str, rows: UploadedRows) -> int:
    """Return the tokens of a step that holds about `batch_size` rows."""
    if not isinstance(batch_size, int):
        return TrainConfig().batch_tokens
    return max(32, round(batch_size * rows.n_tokens / rows.n_rows))


def _context_length(weights: str) -> int:
    """Return the longest row in tokens: what the model takes, at most MAX_TOKENS."""
    try:
        return min(MAX_TOKENS, context_length(weights) or MAX_TOKENS)
    except SmallfirstError:  # the weights are not on this machine yet
        return MAX_TOKENS
