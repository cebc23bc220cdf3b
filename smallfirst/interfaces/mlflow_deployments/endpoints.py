"""Create, update and delete the endpoints of this machine, each a server process with a folder of its own.

The folder is readable by its owner only, and none of its files holds a secret:

config.json   the config that is to be live
status.json   written by the server alone
lock          held by the server as long as it lives; has the id of its process
log.txt       output of the server
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallfirst.base.errors import ConfigError, SmallfirstError, did_you_mean
from smallfirst.base.files import is_locked, locked, try_lock, write_atomically
from smallfirst.base.paths import home
from smallfirst.base.records import Record
from smallfirst.interfaces.jobs.supervisor import output_tail, recorded_environment, start_process, stop_process
from smallfirst.interfaces.mlflow_deployments.config import NAME, EndpointBody, parse_config

START_TIMEOUT_S = 300.0
"""Longest wait for a server to answer: models are read from disk."""
DOCUMENT = "docs/deploy.md"
_SERVER = "smallfirst.interfaces.mlflow_deployments.server"
_POLL_INTERVAL_S = 0.05
_LOCK_TIMEOUT_S = 1.0


class EndpointRecord(Record):
    """An endpoint and its config."""

    number: int
    """Of the config, from 1."""
    created_at: datetime
    updated_at: datetime
    body: EndpointBody
    """Holds no secret."""
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
    """Number of a config that could not be taken over."""
    why: str = ""
    """Why that config, or a moved alias, could not be taken over."""


class EndpointFolder:
    """One endpoint on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.lock, self.output = folder / "lock", folder / "log.txt"
        self.config_path, self.status_path = folder / "config.json", folder / "status.json"

    @property
    def config(self) -> EndpointRecord:
        return EndpointRecord.load(self.config_path)

    @property
    def status(self) -> ServerStatus:
        return ServerStatus.load(self.status_path) if self.status_path.is_file() else ServerStatus()

    @property
    def alive(self) -> bool:
        return self.folder.is_dir() and is_locked(self.lock)

    def save(self, record: EndpointRecord | ServerStatus) -> None:
        path = self.config_path if isinstance(record, EndpointRecord) else self.status_path
        write_atomically(path, record.model_dump_json(indent=2, exclude_unset=True).encode(), mode=0o600)

    def changing(self) -> AbstractContextManager[None]:
        """Hold the endpoint against other processes that would change it."""
        what = f"{self.name} is being changed by another process"
        return locked(self.folder / "changing", otherwise=SmallfirstError(what, hint="try again when it is done"))

    def start(self) -> None:
        """Start the server and wait until the config is live. Raise as `wait` does."""
        end = time.monotonic() + _LOCK_TIMEOUT_S
        while (lock := try_lock(self.lock)) is None and time.monotonic() < end:
            time.sleep(_POLL_INTERVAL_S)  # a process that only checks the lock holds it for a moment
        if lock is None:
            raise SmallfirstError(f"{self.name} runs already", hint="try again when it is done")
        record = self.config
        try:
            self.save(ServerStatus())
            process = start_process(_SERVER, self.folder, lock, output=self.output, environment=record.environment)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{process}\n".encode(), 0)
        finally:
            os.close(lock)  # the process inherited it
        self.wait(record.number)

    def wait(self, number: int) -> None:
        """Return once config `number` is live. Raise ConfigError if not, SmallfirstError if the server ended."""
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            alive, status = self.alive, self.status
            if status.live == number:
                return
            if status.failed == number:
                raise ConfigError(f"{self.name}: {status.why}")
            if not alive:
                break
            time.sleep(_POLL_INTERVAL_S)
        what = f"did not answer within {START_TIMEOUT_S:.0f} s" if self.alive else "ended"
        raise SmallfirstError(f"the server of {self.name} {what}; its last lines:\n{output_tail(self.output)}")

    def stop(self) -> bool:
        """Stop the server once its running requests are done; return False if none ran."""
        if not self.alive:
            return False
        grace_s = self.config.body.smallfirst.server.drain_s + 20.0
        stop_process(int(self.lock.read_text()), self.lock, grace_s=grace_s)
        return True


class EndpointNotFound(SmallfirstError):
    """No endpoint has this name."""


def endpoint_folder(name: str) -> EndpointFolder:
    """Return the folder of the endpoint `name`, whether or not it exists. Raise ConfigError for an invalid name."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name[:128]!r} cannot be an endpoint's name", hint="use 1 to 128 of A-Z a-z 0-9 . _ -")
    return EndpointFolder(_endpoints() / name)


def find(name: str) -> EndpointFolder:
    """Return the endpoint of this name. Raise EndpointNotFound with the nearest name."""
    endpoint = endpoint_folder(name)
    if not endpoint.config_path.is_file():
        names = [other.name for other in all_endpoints()]
        raise EndpointNotFound(
            f'no endpoint is called "{name}"{did_you_mean(name, names)}', hint="smallfirst endpoints"
        )
    return endpoint


def all_endpoints() -> list[EndpointFolder]:
    """Return all endpoints, by name."""
    return [EndpointFolder(path.parent) for path in sorted(_endpoints().glob("*/config.json"))]


def create(name: str | None, config: Mapping[str, Any] | None) -> EndpointFolder:
    """Return the new endpoint once it answers. Raise ConfigError, or SmallfirstError if its server ends."""
    body = parse_config(name, config)
    endpoint, now, server = endpoint_folder(body.name), datetime.now(UTC), body.smallfirst.server
    try:
        endpoint.folder.mkdir(mode=0o700)
    except FileExistsError:
        hint = f'update_endpoint("{body.name}", …), or delete it first'
        raise ConfigError(f'there is an endpoint "{body.name}" already', hint=hint) from None
    try:
        with endpoint.changing():
            record = EndpointRecord(
                number=1,
                created_at=now,
                updated_at=now,
                body=body,
                port=server.port if "port" in server.model_fields_set and server.port else _free_port(server.host),
                environment=recorded_environment(),
            )
            endpoint.save(record)
            endpoint.start()
    except BaseException:
        _remove(endpoint)
        raise
    return endpoint


def update(name: str, config: Mapping[str, Any]) -> EndpointFolder:
    """Return the endpoint once the new config is live; one that was killed is started again.

    Raise ConfigError if it cannot be; the old config then stays.
    """
    endpoint = find(name)
    with endpoint.changing():
        before = endpoint.config
        body = parse_config(name, config, before=before.body)
        if body.server_settings != before.body.server_settings:
            raise ConfigError(
                f"{name}: smallfirst.server and auto_capture_config cannot change while the endpoint exists",
                hint="delete it, and create it with the new ones",
            )
        number = max(before.number, endpoint.status.failed) + 1
        changes = {"number": number, "updated_at": datetime.now(UTC), "body": body}
        endpoint.save(before.model_copy(update=changes))
        try:
            if endpoint.alive:
                endpoint.wait(number)
            else:
                endpoint.start()
        except BaseException:
            endpoint.save(before)
            raise
    return endpoint


def delete(name: str) -> bool:
    """Stop the endpoint once its running requests are done and remove it; return False if there is none."""
    endpoint = endpoint_folder(name)
    if not endpoint.folder.is_dir():
        return False
    with endpoint.changing():
        _remove(endpoint)
    return True


def _endpoints() -> Path:
    folder = home() / "endpoints"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _remove(endpoint: EndpointFolder) -> None:
    endpoint.stop()
    shutil.rmtree(endpoint.folder, ignore_errors=True)


def _free_port(host: str) -> int:
    with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def describe(endpoint: EndpointFolder) -> dict[str, Any]:
    """Return the endpoint in Databricks' format, with `url` and, in `state`, the reason for its state."""
    record, alive, status = endpoint.config, endpoint.alive, endpoint.status
    body = record.body.model_dump(mode="json", exclude_unset=True)
    for entity, shown in zip(record.body.config.served_entities, body["config"]["served_entities"], strict=True):
        live = status.versions.get(entity.served_name) if alive else None
        shown |= {"name": entity.served_name, **({"live_version": str(live)} if live else {})}
    stopped = f'no server runs: update_endpoint("{endpoint.name}", {{}}) starts it again'
    why = status.why if alive else stopped
    return {
        **body,
        "creation_timestamp": int(record.created_at.timestamp() * 1000),
        "last_updated_timestamp": int(record.updated_at.timestamp() * 1000),
        "state": {
            "ready": "READY" if alive and status.live else "NOT_READY",
            "config_update": "NOT_UPDATING",
            **({"why": why} if why else {}),
        },
        "config": {**body["config"], "config_version": record.number},
        "task": "llm/v1/chat",
        "url": record.url,
        "log": str(endpoint.output),
    }
