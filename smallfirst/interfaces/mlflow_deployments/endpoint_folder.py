"""The folder of one endpoint, readable by its owner only; none of its files holds a secret.

config.json   the live config, or the last one that was live
pending.json  a config to go live; the server takes it over or reports why it does not
status.json   written by the server alone
lock          held by the server as long as it lives
log.txt       output of the server
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from smallfirst.errors import ConfigError
from smallfirst.files import is_locked, write_atomically
from smallfirst.interfaces.mlflow_deployments.config_rules import is_valid_name
from smallfirst.paths import home
from smallfirst.records import Record

R = TypeVar("R", bound=Record)


class EndpointRecord(Record):
    """An endpoint and one of its configs."""

    id: str
    """32 hex digits."""
    name: str
    number: int
    created_at: datetime
    updated_at: datetime
    created_by: str
    body: dict[str, Any]
    """The config, without secrets."""
    port: int
    """TCP port, fixed as long as the endpoint exists."""
    environment: dict[str, str] = {}

    @property
    def server_settings(self) -> dict[str, Any]:
        return dict(self.body.get("smallfirst", {}).get("server") or {})

    @property
    def url(self) -> str:
        host = str(self.server_settings.get("host", "127.0.0.1"))
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


class ServerStatus(Record):
    """The last report of a server."""

    process: int
    live: int = 0
    """Number of the live config; 0 while there is none."""
    versions: dict[str, int] = {}
    failed: int = 0
    """Number of a config that could not go live; 0 if the last one could."""
    why: str = ""
    """Why that config, or a moved alias, could not be taken over."""
    notes: tuple[str, ...] = ()
    at: datetime


class ServerProcess(Record):
    """The process that was started last."""

    process: int


class EndpointFolder:
    """One endpoint on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.lock, self.changing, self.output = folder / "lock", folder / "changing", folder / "log.txt"
        self.config_path, self.pending_path = folder / "config.json", folder / "pending.json"
        self.status_path, self.process_path = folder / "status.json", folder / "process.json"

    @property
    def exists(self) -> bool:
        return self.config_path.is_file() or self.pending_path.is_file()

    @property
    def config(self) -> EndpointRecord | None:
        """The live config or the last one; None if there never was one."""
        return _load(EndpointRecord, self.config_path)

    @property
    def pending(self) -> EndpointRecord | None:
        return _load(EndpointRecord, self.pending_path)

    @property
    def status(self) -> ServerStatus | None:
        return _load(ServerStatus, self.status_path)

    @property
    def process(self) -> int | None:
        started = _load(ServerProcess, self.process_path)
        return started.process if started else None

    @property
    def alive(self) -> bool:
        return self.folder.is_dir() and is_locked(self.lock)

    def set_pending(self, record: EndpointRecord) -> None:
        _save(record, self.pending_path)

    def promote_pending(self) -> None:
        self.pending_path.replace(self.config_path)

    def drop_pending(self) -> None:
        self.pending_path.unlink(missing_ok=True)

    def record_process(self, process: int) -> None:
        """Record the id of a new process and delete the report of the one before."""
        self.status_path.unlink(missing_ok=True)
        _save(ServerProcess(process=process), self.process_path)

    def report_status(self, **values: Any) -> None:
        """Write the status of this process; `values` are fields of ServerStatus."""
        _save(ServerStatus(process=os.getpid(), at=datetime.now(UTC), **values), self.status_path)


def endpoints_folder() -> Path:
    """Return the folder of all endpoints, created if missing."""
    folder = home() / "endpoints"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def endpoint_folder(name: str) -> EndpointFolder:
    """Return the folder of the endpoint `name`, whether or not it exists. Raise ConfigError for an invalid name."""
    if not is_valid_name(name):
        shown = name[:128]
        raise ConfigError(f"{shown!r} cannot be an endpoint's name", hint="use 1 to 128 of A-Z a-z 0-9 . _ -")
    return EndpointFolder(endpoints_folder() / name)


def _load(kind: type[R], path: Path) -> R | None:
    try:
        return kind.load(path)
    except FileNotFoundError:
        return None


def _save(record: Record, path: Path) -> None:
    write_atomically(path, record.model_dump_json(indent=2).encode(), mode=0o600)
