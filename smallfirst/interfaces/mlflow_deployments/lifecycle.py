"""Create, update, start, stop and delete the endpoints of this machine, each a server process with a folder of its own.

The folder is readable by its owner only, and none of its files holds a secret:

config.json   the live config, or the last one that was live
pending.json  a config to go live; the server takes it over or reports why it does not
status.json   written by the server alone
lock          held by the server as long as it lives
log.txt       output of the server
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from smallfirst.errors import ConfigError, SmallfirstError, Unavailable, did_you_mean
from smallfirst.files import is_locked, locked, try_lock, write_atomically
from smallfirst.interfaces.mlflow_deployments.config import parse_config
from smallfirst.interfaces.mlflow_deployments.config_rules import is_valid_name
from smallfirst.jobs.job_folder import user_name
from smallfirst.jobs.supervisor import output_tail, recorded_environment, start_process, stop_process
from smallfirst.paths import home
from smallfirst.records import Record

START_TIMEOUT_S = 300.0
"""Longest wait for a server to answer: models are read from disk."""
_POLL_INTERVAL_S = 0.05
_LOCK_TIMEOUT_S = 1.0
_LOG_EVERY_S = 5.0
_DELETED = ".gone-"

Log = Callable[[str], None]
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


class EndpointNotFound(SmallfirstError):
    """No endpoint has this name."""


def create(name: str | None, config: Mapping[str, Any] | None, *, log: Log | None = None) -> EndpointFolder:
    """Return the new endpoint once it answers. Raise ConfigError, or SmallfirstError if its server ends."""
    parsed = parse_config(name, config)
    endpoint = endpoint_folder(parsed.name)
    try:
        endpoint.folder.mkdir(mode=0o700)
    except FileExistsError:
        hint = f'update_endpoint("{parsed.name}", …), or delete it first'
        raise ConfigError(f'there is an endpoint "{parsed.name}" already', hint=hint) from None
    now = datetime.now(UTC)
    try:
        with _exclusive(endpoint):
            record = EndpointRecord(
                id=uuid.uuid4().hex,
                name=parsed.name,
                number=1,
                created_at=now,
                updated_at=now,
                created_by=user_name(),
                body=parsed.body,
                port=parsed.settings.port or _free_port(parsed.settings.host),
                environment=recorded_environment(),
            )
            endpoint.set_pending(record)
            _start(endpoint, record)
            _wait_until_live(endpoint, record.number, log)
    except BaseException:
        _remove(endpoint)
        raise
    return endpoint


def update(name: str, config: Mapping[str, Any], *, log: Log | None = None) -> EndpointFolder:
    """Return the endpoint once the new config is live. Raise ConfigError if it cannot be; the old one then stays."""
    endpoint = find(name)
    with _exclusive(endpoint):
        before = endpoint.config
        if before is None:
            raise ConfigError(f"{name} has never been live", hint=f"smallfirst endpoints logs {name}")
        parsed = parse_config(name, config, before=before.body)
        if _server_part(parsed.body) != _server_part(before.body):
            raise ConfigError(
                f"{name}: smallfirst.server and auto_capture_config cannot change while the endpoint exists",
                hint="delete it, and create it with the new ones",
            )
        number = max(before.number, (endpoint.status.failed if endpoint.status else 0)) + 1
        changes = {"number": number, "body": parsed.body, "updated_at": datetime.now(UTC)}
        record = before.model_copy(update=changes)
        endpoint.set_pending(record)
        if not endpoint.alive:
            _start(endpoint, record)
        try:
            _wait_until_live(endpoint, number, log)
        except BaseException:
            endpoint.drop_pending()
            raise
    return endpoint


def start(name: str, *, log: Log | None = None) -> bool:
    """Start the endpoint's server and wait until it answers; return False if it ran already."""
    endpoint = find(name)
    with _exclusive(endpoint):
        record = endpoint.config
        if record is None:
            raise ConfigError(f"{name} has never been live", hint="delete it, and create it again")
        if endpoint.alive:
            return False
        _start(endpoint, record)
        _wait_until_live(endpoint, record.number, log)
    return True


def stop(name: str) -> bool:
    """Stop the server once its running requests are done; return False if none ran."""
    endpoint = find(name)
    with _exclusive(endpoint):
        return _stop(endpoint)


def delete(name: str) -> bool:
    """Stop the endpoint once its running requests are done and remove it; return False if there is none."""
    endpoint = endpoint_folder(name)
    if not endpoint.folder.is_dir():
        return False
    with _exclusive(endpoint):
        _remove(endpoint)
    return True


def find(name: str) -> EndpointFolder:
    """Return the endpoint of this name. Raise EndpointNotFound with the nearest name."""
    endpoint = endpoint_folder(name)
    if not endpoint.exists:
        names = [other.name for other in all_endpoints()]
        raise EndpointNotFound(
            f'no endpoint is called "{name}"{did_you_mean(name, names)}',
            hint=f"there are: {', '.join(names[:10])}" if names else "create one: docs/deploy.md",
        )
    return endpoint


def find_running(name: str) -> EndpointRecord:
    """Return the live config of this name. Raise EndpointNotFound, Unavailable if its server does not run."""
    endpoint = find(name)
    record = endpoint.config
    if record is None or not endpoint.alive:
        raise Unavailable(f"no server runs for {name}", hint=f"smallfirst endpoints start {name}")
    return record


def all_endpoints() -> list[EndpointFolder]:
    """Return all endpoints, by name."""
    folders = sorted(path for path in endpoints_folder().iterdir() if path.is_dir() and not path.name.startswith("."))
    return [endpoint for endpoint in map(EndpointFolder, folders) if endpoint.exists]


def _exclusive(endpoint: EndpointFolder) -> AbstractContextManager[None]:
    what = f"{endpoint.name} is being changed by another process"
    return locked(endpoint.changing, otherwise=SmallfirstError(what, hint="try again when it is done"))


def _start(endpoint: EndpointFolder, record: EndpointRecord) -> None:
    end = time.monotonic() + _LOCK_TIMEOUT_S
    while (lock := try_lock(endpoint.lock)) is None and time.monotonic() < end:
        time.sleep(_POLL_INTERVAL_S)  # a process that only checks the lock holds it for a moment
    if lock is None:
        raise SmallfirstError(f"{endpoint.name} runs already", hint=f"smallfirst endpoints stop {endpoint.name}")
    try:
        process = start_process(
            "smallfirst.interfaces.mlflow_deployments.server",
            endpoint.folder,
            lock,
            output=endpoint.output,
            environment=record.environment,
        )
        endpoint.record_process(process)
    finally:
        os.close(lock)  # the process inherited it


def _wait_until_live(endpoint: EndpointFolder, number: int, log: Log | None) -> None:
    """Return once config `number` is live. Raise ConfigError if it cannot be, SmallfirstError if the server ended."""
    began = logged = time.monotonic()
    while (now := time.monotonic()) - began < START_TIMEOUT_S:
        alive, status = endpoint.alive, endpoint.status
        if status is not None and status.live == number:
            return
        if status is not None and status.failed == number:
            raise ConfigError(f"{endpoint.name}: {status.why}")
        if not alive:
            tail = output_tail(endpoint.output)
            raise SmallfirstError(f"the server of {endpoint.name} ended; its last lines:\n{tail}")
        if log is not None and now - logged >= _LOG_EVERY_S:
            logged = now
            log(f"{endpoint.name}: waiting for its models, {now - began:.0f} s")
        time.sleep(_POLL_INTERVAL_S)
    tail = output_tail(endpoint.output)
    raise SmallfirstError(f"{endpoint.name} did not answer within {START_TIMEOUT_S:.0f} s:\n{tail}")


def _stop(endpoint: EndpointFolder) -> bool:
    """Return True if a server ran; one that does not drain in time is killed."""
    record, process = endpoint.config or endpoint.pending, endpoint.process
    if process is None or not endpoint.alive:
        return False
    drain_s = record.server_settings.get("drain_s", 30) if record else 30
    stop_process(process, endpoint.lock, grace_s=drain_s + 20.0)
    return True


def _remove(endpoint: EndpointFolder) -> None:
    _stop(endpoint)
    deleted = endpoint.folder.with_name(f"{_DELETED}{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        endpoint.folder.rename(deleted)
    shutil.rmtree(deleted, ignore_errors=True)


def _server_part(body: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what cannot change while the endpoint exists."""
    return body.get("smallfirst", {}).get("server"), body["config"].get("auto_capture_config")


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])
