"""The records of a job: its specification, its progress, its MLflow ids and its result."""

from __future__ import annotations

import getpass
import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pydantic

from smallfirst.records import Record
from smallfirst.training.config import TrainConfig
from smallfirst.training.config import parse_duration as parse_duration

JOB_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


class JobSpec(Record):
    """A fine-tune to run."""

    name: str = pydantic.Field(pattern=f"^{JOB_NAME.pattern}$")
    recipe: Literal["chat", "text"]
    """`chat`: conversations or prompts with responses · `text`: continued pre-training."""
    model: str
    weights: str | None = None
    """Folder of weights to start from; None: those of `model`."""
    train_rows: str
    eval_rows: str | None = None
    """Address of the rows whose loss selects the best epoch; None: the last epoch is kept."""
    eval_prompts: tuple[str, ...] = ()
    register_to: str
    experiment: str
    config: TrainConfig
    checkpoint_every_s: float = pydantic.Field(default=60, ge=0)
    """Least time between two checkpoints; a killed process loses at most this much work."""
    created_by: str
    created_at: datetime
    """When it was submitted; jobs run in this order."""
    submitted: dict[str, Any] = {}
    """The original request, for the interface it came through."""
    working_folder: Path = Path()
    """Where it was submitted, filled in then; relative addresses and MLFLOW_TRACKING_URI start there."""
    environment: dict[str, str] = {}


class JobProgress(Record):
    """How far training is; written about once a second."""

    step: int
    epoch: float
    share: float
    """Share of the training done, in [0, 1]."""
    loss: float
    """Loss of the last step, in nats per target token."""
    tokens_per_s: float
    seconds_left: float | None
    """Seconds until training ends at this rate; None at the first step."""
    at: datetime


class MlflowIds(Record):
    """The job's run in MLflow."""

    run_id: str
    experiment_id: str


class JobResult(Record):
    """The registered model."""

    model: str
    version: int
    best_epoch: int
    """Epoch whose weights were kept, from 1."""

    @property
    def reference(self) -> str:
        """The version as `versions.resolve` takes it."""
        return f"{self.model}/{self.version}"


def new_job_name(model: str) -> str:
    """Return a new name for a job that fine-tunes `model`: its last part and six random hex digits."""
    last = re.sub(r"[^A-Za-z0-9_]+", "-", re.split(r"[/\\]", model.rstrip("/\\"))[-1]).strip("-").lower()
    return f"{last[:60] or 'model'}-{secrets.token_hex(3)}"


def user_name() -> str:
    """Return the login name of the current user, or the user id if it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under an id without a name
        return f"user-{os.getuid()}"


def utc_now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)
