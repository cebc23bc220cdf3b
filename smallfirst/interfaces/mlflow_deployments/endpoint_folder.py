"""The folder of one endpoint: what it was asked to be, what it is to become, and what its server says of itself.

    config.json   what is live, or was last
    wanted.json   what is to go live; its server takes it over or says why it does not
    status.json   written by the server alone
    lock          held by the server as long as it lives, however it ends
    log.txt       what the server prints

A secret is in none of them. Folder and files are for their owner only.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from smallfirst.errors import ConfigError
from smallfirst.files import is_locked
from smallfirst.interfaces.mlflow_deployments.config_rules import is_valid_name
from smallfirst.paths import home
from smallfirst.records import Record

R = TypeVar("R", bound=Record)


class EndpointRecord(Record):
    """An endpoint as it was asked for."""

    id: str
    """32 hex digits."""
    name: str
    """Under which it is asked."""
    number: int
    """Counts its configs, from 1."""
    created_at: datetime
    """When it was created, UTC."""
    updated_at: datetime
    """When it was asked to become this, UTC."""
    created_by: str
    """Who created it."""
    body: dict[str, Any]
    """The config, without secrets."""
    port: int
    """TCP port, the same as long as the endpoint exists."""
    environment: dict[str, str] = {}
    """Where MLflow's store is, as it was for whoever created it."""


class ServerStatus(Record):
    """What a server says of itself."""

    process: int
    """Its number."""
    live: int = 0
    """Number of the config that answers; 0 while none does."""
    versions: dict[str, int] = {}
    """Model version by name of a registered entity."""
    failed: int = 0
    """Number of a config that could not go live; 0 if the last one could."""
    why: str = ""
    """Why it could not, or why a moved alias is not followed."""
    notes: tuple[str, ...] = ()
    """What whoever wrote the config should know."""
    at: datetime
    """When this was written, UTC."""


class ServerProcess(Record):
    """The process that was started last."""

    process: int
    """Its number."""


class EndpointFolder:
    """One endpoint on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.lock, self.changing, self.output = folder / "lock", folder / "changing", folder / "log.txt"
        self.config_path, self.wanted_path = folder / "config.json", folder / "wanted.json"
        self.status_path, self.started_path = folder / "status.json", folder / "process.json"

    @property
    def exists(self) -> bool:
        """True if there is such an endpoint."""
        return self.config_path.is_file() or self.wanted_path.is_file()

    @property
    def config(self) -> EndpointRecord | None:
        """What is live or was last; None if nothing ever was."""
        return _load(EndpointRecord, self.config_path)

    @property
    def wanted(self) -> EndpointRecord | None:
        """What is to go live."""
        return _load(EndpointRecord, self.wanted_path)

    @property
    def status(self) -> ServerStatus | None:
        """What the server said last; it may be dead since."""
        return _load(ServerStatus, self.status_path)

    @property
    def process(self) -> int | None:
        """Number of the process that was started last."""
        started = _load(ServerProcess, self.started_path)
        return started.process if started else None

    @property
    def alive(self) -> bool:
        """True if its server lives."""
        return self.folder.is_dir() and is_locked(self.lock)

    def want(self, kept: EndpointRecord) -> None:
        """Nothing back; the config is to go live."""
        _private(kept.save(self.wanted_path))

    def take_over(self) -> None:
        """Nothing back; what was wanted is live."""
        self.wanted_path.replace(self.config_path)

    def drop_wanted(self) -> None:
        """Nothing back; what was wanted is wanted no more."""
        self.wanted_path.unlink(missing_ok=True)

    def started(self, process: int) -> None:
        """Nothing back; the number of the new process is kept, and what an earlier one said is gone."""
        self.status_path.unlink(missing_ok=True)
        ServerProcess(process=process).save(self.started_path)

    def tell(self, **values: Any) -> None:
        """Nothing back; the status of this process is written."""
        _private(ServerStatus(process=os.getpid(), at=datetime.now(UTC), **values).save(self.status_path))

    def output_tail(self, n: int = 12) -> str:
        """The end of what the server printed."""
        try:
            with self.output.open("rb") as file:
                file.seek(max(0, self.output.stat().st_size - 200 * n))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-n:])
        except OSError:
            return ""


def endpoints_folder() -> Path:
    """The folder of all endpoints, created if missing."""
    folder = home() / "endpoints"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def endpoint_folder(name: str) -> EndpointFolder:
    """The folder that an endpoint of this name has or would have. Raises ConfigError for what cannot be a name."""
    if not is_valid_name(name):
        shown = name[:128]
        raise ConfigError(f"{shown!r} cannot be an endpoint's name", hint="use 1 to 128 of A-Z a-z 0-9 . _ -")
    return EndpointFolder(endpoints_folder() / name)


def _load(kind: type[R], path: Path) -> R | None:
    try:
        return kind.load(path)
    except FileNotFoundError:
        return None


def _private(path: Path) -> None:
    path.chmod(0o600)
