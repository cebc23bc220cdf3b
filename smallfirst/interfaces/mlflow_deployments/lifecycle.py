"""Create, update, start, stop and delete the endpoints of this machine, each a server process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, suppress
from datetime import UTC, datetime
from typing import Any

from smallfirst.errors import ConfigError, SmallfirstError, Unavailable, did_you_mean
from smallfirst.files import locked_or_raise, try_lock
from smallfirst.interfaces.mlflow_deployments.config import parse_config
from smallfirst.interfaces.mlflow_deployments.endpoint_folder import (
    EndpointFolder,
    EndpointRecord,
    endpoint_folder,
    endpoints_folder,
)
from smallfirst.jobs.job_folder import user_name
from smallfirst.jobs.supervisor import output_tail, recorded_environment, start_process, stop_process

START_TIMEOUT_S = 300.0
"""Longest wait for a server to answer: models are read from disk."""
_POLL_INTERVAL_S = 0.05
_LOCK_TIMEOUT_S = 1.0
_LOG_EVERY_S = 5.0
_DELETED = ".gone-"

Log = Callable[[str], None]


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
    return locked_or_raise(endpoint.changing, SmallfirstError(what, hint="try again when it is done"))


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
