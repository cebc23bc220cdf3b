"""What a job is told and what it leaves: the order, how far it is, where MLflow has it, what came out.

An order holds all that the job needs, so that any process can carry it out at any later time.
"""

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

JOB_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


class JobSpec(Record):
    """A fine-tune that somebody asked for."""

    name: str = pydantic.Field(pattern=f"^{JOB_NAME.pattern}$")
    """Name of the job and of its folder."""
    lesson: Literal["chat", "text"]
    """`chat`: conversations or prompts with responses · `text`: continued pre-training."""
    model: str
    """Base model by name."""
    weights: str | None = None
    """Folder of weights to begin with; None: those of `model`."""
    train_rows: str
    """Where the training rows are; they are read once."""
    eval_rows: str | None = None
    """Where the rows are whose loss chooses the best epoch; None: the last epoch is kept."""
    eval_prompts: tuple[str, ...] = ()
    """Answered after each epoch and kept in the MLflow run."""
    register_to: str
    """Three-level name under which the model is registered."""
    experiment: str
    """Name of the MLflow experiment."""
    config: TrainConfig
    """How to train."""
    checkpoint_every_s: float = pydantic.Field(default=60, ge=0)
    """Least time between two checkpoints; so much work is lost at most when a process is killed."""
    created_by: str
    """Who asked."""
    created_at: datetime
    """When; jobs are done in this order."""
    submitted: dict[str, Any] = {}
    """The request as it came, for its interface to show."""
    working_folder: Path = Path()
    """Where it was submitted; filled in then. Relative addresses and a relative MLFLOW_TRACKING_URI start there."""
    environment: dict[str, str] = {}
    """Settings that say where things are, as at submission; filled in then."""


class JobProgress(Record):
    """How far a job is; written about once a second while it trains."""

    step: int
    """Optimiser steps done."""
    epoch: float
    """Epochs done, fractional."""
    share: float
    """Share of the training done, in [0, 1]."""
    loss: float
    """Of the last step, in nats a target token."""
    tokens_per_s: float
    """Real tokens per second."""
    seconds_left: float | None
    """Until training ends if it goes on at this rate; None at the first step."""
    at: datetime
    """When this was so."""


class MlflowIds(Record):
    """Where MLflow keeps the job's run."""

    run_id: str
    """MLflow's id of the run."""
    experiment_id: str
    """MLflow's id of its experiment."""


class JobResult(Record):
    """What came out."""

    model: str
    """Three-level name."""
    version: int
    """Version in the registry."""
    best_epoch: int
    """The epoch whose weights were kept."""

    @property
    def reference(self) -> str:
        """What `registry.versions.resolve` takes."""
        return f"{self.model}/{self.version}"


def new_job_name(model: str) -> str:
    """A name for a job that fine-tunes `model`: its last part and six random hex digits."""
    last = re.sub(r"[^A-Za-z0-9_]+", "-", re.split(r"[/\\]", model.rstrip("/\\"))[-1]).strip("-").lower()
    return f"{last[:60] or 'model'}-{secrets.token_hex(3)}"


def user_name() -> str:
    """Who is asking: the login name, or the number of the user if it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number without a name
        return f"user-{os.getuid()}"


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
