"""Limits of the fine-tuning API: base models, disk space, jobs and loaded models."""

from __future__ import annotations

import re
from pathlib import Path

import pydantic

from smallfirst.base.records import Record
from smallfirst.interfaces.jobs.job_folder import trainable_models
from smallfirst.models.pricing import MachinePrice

_BASE_NAME = re.compile(r"[A-Za-z0-9._/@-]{1,64}")
_TWO_PARTS = r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$"


class FineTuningSettings(Record):
    """Limits of the fine-tuning API."""

    base_models: dict[str, str] = pydantic.Field(default_factory=lambda: {name: name for name in trainable_models()})
    """Hub name, catalogue name or folder of each model that callers may train. No other can be trained, so that no
    caller makes the server fetch weights or read a folder of their choice."""
    register_to: str = pydantic.Field(default="main.fine_tuning", pattern=_TWO_PARTS)
    """Catalogue and schema (`catalog.schema`) of the registered models; their third part is the job's suffix."""
    max_upload_bytes: int = pydantic.Field(default=100 * 1024 * 1024, ge=1)
    """Largest upload. A job that reads it takes at most five times its size in memory, and some 3 kB a row."""
    max_rows: int = pydantic.Field(default=100_000, ge=1)
    """Most rows of a file; a job of more fails as soon as they are counted."""
    max_stored_bytes: int = pydantic.Field(default=2 * 1024**3, ge=1)
    max_files: int = pydantic.Field(default=1000, ge=1)
    upload_timeout_s: float = pydantic.Field(default=600, gt=0)
    max_uploads: int = pydantic.Field(default=4, ge=1)
    """Concurrent uploads; beyond that the answer is 503 with Retry-After."""
    max_open_jobs: int = pydantic.Field(default=16, ge=1)
    """Unfinished jobs on this machine, of all submitters; beyond that the answer is 429."""
    max_open_jobs_of_user: int = pydantic.Field(default=2, ge=1)
    """Unfinished jobs of one owner whose keys have the role `user`; beyond that the answer is 429. Keys of
    administrators, and a server without keys, have the machine's limit alone."""
    max_loaded_models: int = pydantic.Field(default=2, ge=1)
    """Fine-tuned models kept in memory; the least recently used one makes room."""
    machine: MachinePrice = MachinePrice()

    @pydantic.field_validator("base_models")
    @classmethod
    def _can_be_served_and_found(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _BASE_NAME.fullmatch(name):
                raise ValueError(f'"{name}" cannot be a base model\'s name: 1 to 64 of A-Z a-z 0-9 . _ / @ -')
        # A job may run in another folder.
        return {name: str(Path(at).absolute()) if Path(at).is_dir() else at for name, at in value.items()}
