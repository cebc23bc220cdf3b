"""Create, update, start, stop and delete the endpoints of this machine, each a server process with a folder of its own.

The folder is readable by its owner only, and none of its files holds a secret:

config.json   the live config, or the last one that was live
pending.json  a config to go live; the server takes it over or reports why it does not
status.json   written by the server alone
lock          held by the server as long as it lives; has the id of its process
log.txt       output of the server
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from smallfirst.errors import ConfigError, SmallfirstError, did_you_mean
from smallfirst.files import is_locked, locked, try_lock, write_atomically
from smallfirst.interfaces.mlflow_deployments.config import EndpointBody, is_valid_name, parse_config
from smallfirst.jobs.job_folder import user_name
from smallfirst.jobs.supervisor import output_tail, recorded_environment, start_process, stop_process
from smallfirst.paths import home
from smallfirst.records import Record

START_TIMEOUT_S = 300.0
"""Longest wait for a server to answer: models are read from disk."""
_POLL_INTERVAL_S = 0.05
_LOCK_TIMEOUT_S = 1.0

R = TypeVar("R", bound=Record)


class EndpointRecord(Record):
    """An endpoint and one of its configs."""

    id: str
    """32 hex digits."""
    number: int
    """Of the config, from 1."""
    created_at: datetime
    updated_at: datetime
    created_by: str
    body: EndpointBody
    """Holds no secret."""
    notes: tuple[str, ...] = ()
    """What of the config has no effect."""
    port: int
    """TCP port, fixed as long as the endpoint exists."""
    environment: dict[str, str] = {}

    @property
    def url(self) -> str:
        host = self.body.smallfirst.server.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


class ServerStatus(Record):
    """The last report of a server."""

    live: int = 0
    """Number of the live config; 0 while there is none."""
    versions: dict[str, int] = {}
    failed: int = 0
    """Number of a config that could not go live; 0 if the last one could."""
    why: str = ""
    """Why that config, or a moved alias, could not be taken over."""
    notes: tuple[str, ...] = ()
    """What the cascades promise."""


class EndpointFolder:
    """One endpoint on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.lock, self.output = folder / "lock", folder / "log.txt"
        self.config_path, self.pending_path = folder / "config.json", folder / "pending.json"

    @property
    def config(self) -> EndpointRecord | None:
        """The live config or the last one; None if there never was one."""
        return _load(EndpointRecord, self.config_path)

    @property
    def pending(self) -> EndpointRecord | None:
        return _load(EndpointRecord, self.pending_path)

    @property
    def status(self) -> ServerStatus:
        return _load(ServerStatus, self.folder / "status.json") or ServerStatus()

    @property
    def alive(self) -> bool:
        return self.folder.is_dir() and is_locked(self.lock)

    def set_pending(self, record: EndpointRecord) -> None:
        _save(record, self.pending_path)

    def promote_pending(self) -> None:
        self.pending_path.replace(self.config_path)

    def drop_pending(self) -> None:
        self.pending_path.unlink(missing_ok=True)

    def report(self, status: ServerStatus) -> None:
        _save(status, self.folder / "status.json")


def endpoint_folder(name: str) -> EndpointFolder:
    """Return the folder of the endpoint `name`, whether or not it exists. Raise ConfigError for an invalid name."""
    if not is_valid_name(name):
        raise ConfigError(f"{name[:128]!r} cannot be an endpoint's name", hint="use 1 to 128 of A-Z a-z 0-9 . _ -")
    return EndpointFolder(_endpoints() / name)


def _endpoints() -> Path:
    folder = home() / "endpoints"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _load(kind: type[R], path: Path) -> R | None:
    try:
        return kind.load(path)
    except FileNotFoundError:
        return None


def _save(record: Record, path: Path) -> None:
    write_atomically(path, record.model_dump_json(indent=2, exclude_unset=True).encode(), mode=0o600)


class EndpointNotFound(SmallfirstError):
    """No endpoint has this name."""


def create(name: str | None, config: Mapping[str, Any] | None) -> EndpointFolder:
    """Return the new endpoint once it answers. Raise ConfigError, or SmallfirstError if its server ends."""
    body, notes = parse_config(name, config)
    endpoint = endpoint_folder(body.name)
    try:
        endpoint.folder.mkdir(mode=0o700)
    except FileExistsError:
        hint = f'update_endpoint("{body.name}", …), or delete it first'
        raise ConfigError(f'there is an endpoint "{body.name}" already', hint=hint) from None
    now, server = datetime.now(UTC), body.smallfirst.server
    try:
        with _exclusive(endpoint):
            record = EndpointRecord(
                id=uuid.uuid4().hex,
                number=1,
                created_at=now,
                updated_at=now,
                created_by=user_name(),
                body=body,
                notes=notes,
                port=server.port if "port" in server.model_fields_set and server.port else _free_port(server.host),
                environment=recorded_environment(),
            )
            endpoint.set_pending(record)
            _start(endpoint, record)
    except BaseException:
        _remove(endpoint)
        raise
    return endpoint


def update(name: str, config: Mapping[str, Any]) -> EndpointFolder:
    """Return the endpoint once the new config is live. Raise ConfigError if it cannot be; the old one then stays."""
    endpoint = find(name)
    with _exclusive(endpoint):
        before = _once_live(endpoint)
        body, notes = parse_config(name, config, before=before.body)
        if body.server_settings != before.body.server_settings:
            raise ConfigError(
                f"{name}: smallfirst.server and auto_capture_config cannot change while the endpoint exists",
                hint="delete it, and create it with the new ones",
            )
        changes = {"number": max(before.number, endpoint.status.failed) + 1, "updated_at": datetime.now(UTC)}
        record = before.model_copy(update={**changes, "body": body, "notes": notes})
        endpoint.set_pending(record)
        try:
            if endpoint.alive:
                _wait_until_live(endpoint, record.number)
            else:
                _start(endpoint, record)
        except BaseException:
            endpoint.drop_pending()
            raise
    return endpoint


def start(name: str) -> bool:
    """Start the endpoint's server and wait until it answers; return False if it ran already."""
    endpoint = find(name)
    with _exclusive(endpoint):
        record = _once_live(endpoint)
        if endpoint.alive:
            return False
        _start(endpoint, record)
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
    if not endpoint.config_path.is_file():
        names = [other.name for other in all_endpoints()]
        raise EndpointNotFound(
            f'no endpoint is called "{name}"{did_you_mean(name, names)}',
            hint=f"there are: {', '.join(names[:10])}" if names else "create one: docs/deploy.md",
        )
    return endpoint


def all_endpoints() -> list[EndpointFolder]:
    """Return all endpoints, by name."""
    folders = sorted(path for path in _endpoints().iterdir() if (path / "config.json").is_file())
    return [EndpointFolder(path) for path in folders if is_valid_name(path.name)]


def _once_live(endpoint: EndpointFolder) -> EndpointRecord:
    if (record := endpoint.config) is None:
        raise ConfigError(f"{endpoint.name} has never been live", hint="delete it, and create it again")
    return record


def _exclusive(endpoint: EndpointFolder) -> AbstractContextManager[None]:
    what = f"{endpoint.name} is being changed by another process"
    return locked(endpoint.folder / "changing", otherwise=SmallfirstError(what, hint="try again when it is done"))


def _start(endpoint: EndpointFolder, record: EndpointRecord) -> None:
    """Start the server and wait until the config is live. Raise as `_wait_until_live` does."""
    end = time.monotonic() + _LOCK_TIMEOUT_S
    while (lock := try_lock(endpoint.lock)) is None and time.monotonic() < end:
        time.sleep(_POLL_INTERVAL_S)  # a process that only checks the lock holds it for a moment
    if lock is None:
        raise SmallfirstError(f"{endpoint.name} runs already", hint=f"smallfirst endpoints stop {endpoint.name}")
    try:
        endpoint.report(ServerStatus())
        module = "smallfirst.interfaces.mlflow_deployments.server"
        process = start_process(module, endpoint.folder, lock, output=endpoint.output, environment=record.environment)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{process}\n".encode(), 0)
    finally:
        os.close(lock)  # the process inherited it
    _wait_until_live(endpoint, record.number)


def _wait_until_live(endpoint: EndpointFolder, number: int) -> None:
    """Return once config `number` is live. Raise ConfigError if it cannot be, SmallfirstError if the server ended."""
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        alive, status = endpoint.alive, endpoint.status
        if status.live == number:
            return
        if status.failed == number:
            raise ConfigError(f"{endpoint.name}: {status.why}")
        if not alive:
            break
        time.sleep(_POLL_INTERVAL_S)
    what = f"did not answer within {START_TIMEOUT_S:.0f} s" if endpoint.alive else "ended"
    raise SmallfirstError(f"the server of {endpoint.name} {what}; its last lines:\n{output_tail(endpoint.output)}")


def _stop(endpoint: EndpointFolder) -> bool:
    """Return True if a server ran; one that does not drain in time is killed."""
    if not endpoint.alive:
        return False
    record = endpoint.config or endpoint.pending
    drain_s = record.body.smallfirst.server.drain_s if record else 30
    stop_process(int(endpoint.lock.read_text()), endpoint.lock, grace_s=drain_s + 20.0)
    return True


def _remove(endpoint: EndpointFolder) -> None:
    _stop(endpoint)
    shutil.rmtree(endpoint.folder, ignore_errors=True)


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])
