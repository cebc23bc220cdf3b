"""Endpoints on this machine: created, changed, started, stopped and deleted, each a server process of its own.

A process outlives whoever asked for it and is known by the lock it holds, so a killed one is noticed at the next look.
Nothing brings it back by itself: `smallfirst endpoints start` does. The price of a process for each endpoint is one
copy of its models' weights for each.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallfirst.errors import ConfigError, SmallfirstError, Unavailable, did_you_mean
from smallfirst.files import try_lock
from smallfirst.interfaces.mlflow_deployments.config import ParsedConfig, parse_config
from smallfirst.interfaces.mlflow_deployments.endpoint_folder import (
    EndpointFolder,
    EndpointRecord,
    endpoint_folder,
    endpoints_folder,
)
from smallfirst.jobs.spec import user_name

START_TIMEOUT_S = 300.0
"""Longest wait for a server to answer: models are read from disk."""
KEPT_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
"""Environment variables that an endpoint keeps from its creation, whoever starts it again."""
_LOOK_S = 0.05
_LAST_LOOK_S = 1.0
_TELL_EVERY_S = 5.0
_GONE = ".gone-"

Say = Callable[[str], None]


class EndpointNotFound(SmallfirstError):
    """No endpoint has this name."""


def create(name: str | None, config: Mapping[str, Any] | None, *, say: Say | None = None) -> EndpointFolder:
    """The endpoint, once it answers; of one that does not, nothing is left.

    Raises ConfigError for a config with problems or a name that is taken, SmallfirstError if its server ends.
    """
    parsed = parse_config(name, config)
    endpoint = endpoint_folder(parsed.name)
    try:
        endpoint.folder.mkdir(mode=0o700)
    except FileExistsError:
        hint = f'update_endpoint("{parsed.name}", …), or delete it first'
        raise ConfigError(f'there is an endpoint "{parsed.name}" already', hint=hint) from None
    now = datetime.now(UTC)
    try:
        with _changing(endpoint):
            kept = EndpointRecord(
                id=uuid.uuid4().hex,
                name=parsed.name,
                number=1,
                created_at=now,
                updated_at=now,
                created_by=user_name(),
                body=parsed.body,
                port=parsed.settings.port or _free_port(parsed.settings.host),
                environment={name: os.environ[name] for name in KEPT_VARIABLES if os.environ.get(name)},
            )
            endpoint.want(kept)
            _start(endpoint, kept)
            _wait(endpoint, kept.number, say)
    except BaseException:
        _remove(endpoint)
        raise
    return endpoint


def update(name: str, config: Mapping[str, Any], *, say: Say | None = None) -> EndpointFolder:
    """The endpoint, once the new config answers; else the old one goes on answering.

    What the config does not speak of stays. Raises ConfigError for a config with problems or that cannot go live.
    """
    endpoint = find(name)
    with _changing(endpoint):
        before = endpoint.config
        if before is None:
            raise ConfigError(f"{name} has never been live", hint=f"smallfirst endpoints logs {name}")
        parsed = parse_config(name, config, before=before.body)
        _check_same_server(parsed, before)
        number = max(before.number, (endpoint.status.failed if endpoint.status else 0)) + 1
        update = {"number": number, "body": parsed.body, "updated_at": datetime.now(UTC)}
        kept = before.model_copy(update=update)
        endpoint.want(kept)
        if not endpoint.alive:
            _start(endpoint, kept)
        try:
            _wait(endpoint, number, say)
        except BaseException:
            endpoint.drop_wanted()
            raise
    return endpoint


def start(name: str, *, say: Say | None = None) -> bool:
    """True once the endpoint's server answers; False if it did already."""
    endpoint = find(name)
    with _changing(endpoint):
        kept = endpoint.config
        if kept is None:
            raise ConfigError(f"{name} has never been live", hint="delete it, and create it again")
        if endpoint.alive:
            return False
        _start(endpoint, kept)
        _wait(endpoint, kept.number, say)
    return True


def stop(name: str) -> bool:
    """True if a server was stopped, its running requests done; False if none ran."""
    endpoint = find(name)
    with _changing(endpoint):
        return _stop(endpoint)


def delete(name: str) -> bool:
    """True if the endpoint was stopped, its running requests done, and removed; False if there is none."""
    endpoint = endpoint_folder(name)
    if not endpoint.folder.is_dir():
        return False
    with _changing(endpoint):
        _remove(endpoint)
    return True


def find(name: str) -> EndpointFolder:
    """The endpoint of this name. Raises NoSuchEndpoint with the nearest one."""
    endpoint = endpoint_folder(name)
    if not endpoint.exists:
        names = [other.name for other in all_endpoints()]
        raise EndpointNotFound(
            f'no endpoint is called "{name}"{did_you_mean(name, names)}',
            hint=f"there are: {', '.join(names[:10])}" if names else "create one: docs/deploy.md",
        )
    return endpoint


def find_running(name: str) -> EndpointRecord:
    """What answers under this name. Raises NoSuchEndpoint, Unavailable if its server does not run."""
    endpoint = find(name)
    kept = endpoint.config
    if kept is None or not endpoint.alive:
        raise Unavailable(f"no server runs for {name}", hint=f"smallfirst endpoints start {name}")
    return kept


def all_endpoints() -> list[EndpointFolder]:
    """All endpoints, by name."""
    folders = sorted(path for path in endpoints_folder().iterdir() if path.is_dir() and not path.name.startswith("."))
    return [endpoint for endpoint in map(EndpointFolder, folders) if endpoint.exists]


def endpoint_url(kept: EndpointRecord) -> str:
    """Address of an endpoint, without a path."""
    host = str(kept.body.get("smallfirst", {}).get("server", {}).get("host", "127.0.0.1"))
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{kept.port}"


@contextmanager
def _changing(endpoint: EndpointFolder) -> Iterator[None]:
    """A block that nobody else changes the endpoint in. Raises SmallfirstError if somebody does."""
    held = try_lock(endpoint.changing)
    if held is None:
        raise SmallfirstError(f"{endpoint.name} is being changed by another process", hint="try again when it is done")
    try:
        yield
    finally:
        os.close(held)


def _start(endpoint: EndpointFolder, kept: EndpointRecord) -> None:
    """Nothing back; a process that inherits the held lock serves the endpoint."""
    end = time.monotonic() + _LAST_LOOK_S
    while (held := try_lock(endpoint.lock)) is None and time.monotonic() < end:
        time.sleep(_LOOK_S)  # somebody who only looks holds it for a moment too
    if held is None:
        raise SmallfirstError(f"{endpoint.name} runs already", hint=f"smallfirst endpoints stop {endpoint.name}")
    own = {"SMALLFIRST_HOME": str(endpoint.folder.parents[1]), "PYTHONPATH": _module_path()}
    inherited = {name: value for name, value in os.environ.items() if name not in KEPT_VARIABLES}
    # -P: a file in the working folder must not stand in for a module.
    command = [
        sys.executable,
        "-P",
        "-m",
        "smallfirst.interfaces.mlflow_deployments.server",
        str(endpoint.folder),
        str(held),
    ]
    try:
        with os.fdopen(os.open(endpoint.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(held,),
                cwd=endpoint.folder,
                env={**inherited, **kept.environment, **own},
            )
        endpoint.started(process.pid)
    finally:
        os.close(held)  # the process has it now
    # Somebody must wait for it, or it stays a zombie for as long as this process lives.
    threading.Thread(target=process.wait, daemon=True).start()


def _wait(endpoint: EndpointFolder, number: int, say: Say | None) -> None:
    """Nothing once config `number` answers. Raises ConfigError if it cannot, SmallfirstError if the server ended."""
    began = told = time.monotonic()
    while (now := time.monotonic()) - began < START_TIMEOUT_S:
        alive, status = endpoint.alive, endpoint.status
        if status is not None and status.live == number:
            return
        if status is not None and status.failed == number:
            raise ConfigError(f"{endpoint.name}: {status.why}")
        if not alive:
            raise SmallfirstError(f"the server of {endpoint.name} ended; its last lines:\n{endpoint.output_tail()}")
        if say is not None and now - told >= _TELL_EVERY_S:
            told = now
            say(f"{endpoint.name}: waiting for its models, {now - began:.0f} s")
        time.sleep(_LOOK_S)
    raise SmallfirstError(f"{endpoint.name} did not answer within {START_TIMEOUT_S:.0f} s:\n{endpoint.output_tail()}")


def _stop(endpoint: EndpointFolder) -> bool:
    """True if the server was told to stop and has ended; one that does not drain in time is killed."""
    kept, process = endpoint.config or endpoint.wanted, endpoint.process
    if process is None or not endpoint.alive:
        return False
    drain_s = kept.body.get("smallfirst", {}).get("server", {}).get("drain_s", 30) if kept else 30
    for number, patience_s in ((signal.SIGTERM, drain_s + 20.0), (signal.SIGKILL, 10.0)):
        _signal(endpoint, process, number)
        end = time.monotonic() + patience_s
        while endpoint.alive and time.monotonic() < end:
            time.sleep(_LOOK_S)
    return True


def _signal(endpoint: EndpointFolder, process: int, number: int) -> None:
    """Nothing back; the server gets the signal, and never another process that was given its number."""
    with suppress(ProcessLookupError):
        if not hasattr(os, "pidfd_open"):  # not Linux: a moment is left in which the number could change hands
            if endpoint.alive:
                os.kill(process, number)
            return
        handle = os.pidfd_open(process)
        try:
            if endpoint.alive:  # so the number was still its own when the handle was made
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def _remove(endpoint: EndpointFolder) -> None:
    _stop(endpoint)
    gone = endpoint.folder.with_name(f"{_GONE}{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        endpoint.folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _check_same_server(parsed: ParsedConfig, before: EndpointRecord) -> None:
    if _server_part(parsed.body) != _server_part(before.body):
        raise ConfigError(
            f"{before.name}: smallfirst.server and auto_capture_config cannot change while the endpoint exists",
            hint="delete it, and create it with the new ones",
        )


def _server_part(body: Mapping[str, Any]) -> tuple[Any, Any]:
    """What the process was started with."""
    return body.get("smallfirst", {}).get("server"), body["config"].get("auto_capture_config")


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])


def _module_path() -> str:
    """PYTHONPATH, and before it the folder that holds this package, unless Python finds it there by itself."""
    package = Path(__file__).parents[3]
    installed = package.name in ("site-packages", "dist-packages")
    return os.pathsep.join(filter(None, ["" if installed else str(package), os.environ.get("PYTHONPATH", "")]))
