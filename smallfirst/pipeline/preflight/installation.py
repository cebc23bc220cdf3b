"""What an installation has: the machine, the packages, the places that are written to, and what a task needs.

Nothing is created, downloaded or paid. An endpoint is asked for its list of models on request only.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from smallfirst.errors import EXTRAS, SmallfirstError, WeightsNotFound, without_secrets
from smallfirst.models.catalog import find_weights
from smallfirst.models.hardware import detect_hardware
from smallfirst.models.remote.config import EndpointConfig, VllmServer
from smallfirst.paths import state_folder, tracking_uri
from smallfirst.project.candidate_registry import all_candidates
from smallfirst.project.task_file import SmallConfig, TaskFile
from smallfirst.records import Record
from smallfirst.training.hardware import system_memory

GB = 1 << 30
LEAST_MEMORY = 4 * GB
"""Free bytes below which a fine-tune of the default base model may not fit."""
LEAST_DISK = 2 * GB
"""Free bytes below which weights and runs may not fit."""
NEEDED = ("train", "serve")
"""Extras that most users want; the others are named only."""
TIMEOUT_S = 5.0


class Finding(Record):
    """One thing that was looked at."""

    name: str
    """What: python, memory, state folder, …"""
    level: Literal["ok", "warn", "fail"]
    """`fail` where something does not work, `warn` where it works worse or not yet."""
    what: str
    next: str = ""
    """What to do about it; empty where nothing is wrong."""


Result = tuple[Literal["ok", "warn", "fail"], str, str]
"""Level, what was found, what to do."""


def examine(file: TaskFile | None, *, ask_large: bool = False, port: int = 8000) -> list[Finding]:
    """Return the findings; `file` adds what its task needs."""
    looks: list[tuple[str, Callable[[], Result]]] = [
        ("python", _python),
        ("processor", _processor),
        ("memory", _memory),
        *((f"extra {extra}", partial(_extra, extra)) for extra in dict.fromkeys((*NEEDED, *EXTRAS.values()))),
        ("state folder", _state),
        ("mlflow", _mlflow),
        *(("weights", partial(_weights, base)) for base in _bases(file)),
        ("port", partial(_port, port)),
    ]
    if file is not None and file.large is not None and file.large.endpoint is not None:
        looks.append(("large model", partial(_endpoint, file.large.endpoint, ask=ask_large)))
    if file is not None and file.small.vllm is not None:
        looks.append(("vLLM", partial(_vllm, file.small.vllm)))
    return [_finding(name, look) for name, look in looks]


def _finding(name: str, look: Callable[[], Result]) -> Finding:
    try:
        level, what, next_step = look()
    except SmallfirstError as error:
        level, what, next_step = "fail", str(error.args[0]), error.hint or ""
    except (OSError, sqlite3.Error) as error:
        level, what, next_step = "fail", f"{type(error).__name__}: {error}", ""
    return Finding(name=name, level=level, what=without_secrets(what), next=next_step)


def _python() -> Result:
    return "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""


def _processor() -> Result:
    found = detect_hardware()
    what = f"{found.cores} cores, {found.gpus or 'no'} GPU, {', '.join(found.features) or 'no known features'}"
    if found.gpus or any("BF16" in feature for feature in found.features):
        return "ok", what, ""
    return "warn", what, "nothing: without bf16 in hardware fine-tunes are slower; linear models are as fast"


def _memory() -> Result:
    memory = system_memory()
    what = f"{memory.bytes / GB:.1f} GB free" if memory else "unknown"
    if memory and memory.bytes >= LEAST_MEMORY:
        return "ok", what, ""
    return "warn", what, "smallfirst check task.yaml   says what a run takes"


def _extra(extra: str) -> Result:
    missing = [package for package, its in EXTRAS.items() if its == extra and not find_spec(package)]
    command = f'pip install "smallfirst[{extra}]"'
    if not missing:
        return "ok", "installed", ""
    return "warn" if extra in NEEDED else "ok", f"not installed: {', '.join(missing)}", command


def _state() -> Result:
    folder = state_folder()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return "fail", f"{folder} cannot be written", "set SMALLFIRST_HOME to a folder that you can write"
    free = shutil.disk_usage(existing).free
    what = f"{folder}{'' if folder.exists() else ', not created yet'}; {free / GB:.1f} GB free"
    return ("ok", what, "") if free >= LEAST_DISK else ("warn", what, "free some space for weights and runs")


def _mlflow() -> Result:
    uri = tracking_uri(create=False) or f"sqlite:///{state_folder() / 'mlflow.db'}"
    if uri.startswith(("http://", "https://")):
        status = _get(uri, "/health", "")
        if isinstance(status, int):
            return "ok", f"{uri} answers", ""
        return "fail", f"{uri}: {status}", "start it, or unset MLFLOW_TRACKING_URI"
    if not uri.startswith("sqlite:///"):
        return "ok", f"{uri}, not asked", ""
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        return "ok", f"{path}, not created yet", ""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as store:
        store.execute("SELECT count(*) FROM sqlite_master")
    return "ok", str(path), ""


def _bases(file: TaskFile | None) -> list[str]:
    """Return the base models of the candidates to measure."""
    small, ladder = (file.small, file.ladder) if file else (SmallConfig(), None)
    wanted = [c for c in all_candidates() if (c.measured_by_default if ladder is None else c.name in ladder)]
    language = any(c.is_language_model for c in wanted)
    encoders = dict.fromkeys(name for c in wanted if (name := c.encoder_name(small)))
    return [*([small.base] if language else []), *encoders]


def _weights(name: str) -> Result:
    try:
        return "ok", f"{name} in {find_weights(name, download=False)}", ""
    except WeightsNotFound as error:
        return "warn", f"{name} is not here; a run fetches it", error.hint or ""


def _port(port: int) -> Result:
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            return "warn", f"{port}: {error.strerror}", f"smallfirst serve task.yaml --port {port + 1}"
    return "ok", f"{port} is free", ""


def _endpoint(endpoint: EndpointConfig, *, ask: bool) -> Result:
    where, key = endpoint.base_url, os.environ.get(endpoint.api_key_env, "")
    export = f"export {endpoint.api_key_env}=…"
    if not key and not endpoint.is_loopback:
        return "fail", f"{where}: {endpoint.api_key_env} is not set", export
    if not ask:
        return "ok", f"{where}, not asked", "smallfirst doctor task.yaml --ask-large   asks for its list of models"
    status = _get(where, "/models", key)
    if isinstance(status, str):
        return "fail", f"{where}: {status}", "start it, or correct large.endpoint.base_url"
    if status in (401, 403):
        return "fail", f"{where} refuses the key in {endpoint.api_key_env} (status {status})", export
    return "ok", f"{where} answers (status {status})", ""


def _vllm(server: VllmServer) -> Result:
    status = _get(server.url, "/health", os.environ.get(server.api_key_env, ""))
    if status != 200:
        return "fail", f"{server.url} does not answer: {status}", "start it, or correct small.vllm.url"
    return "ok", f"{server.url} answers", ""


def _get(base_url: str, path: str, key: str) -> int | str:
    """Return the HTTP status of a GET, or why there is none."""
    from smallfirst.models.remote.http import ConnectionBroken, HttpSession, ResponseTimeout

    async def status() -> int:
        session = HttpSession(base_url, key=key, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S)
        try:
            return (await session.send("GET", path)).status
        finally:
            await session.aclose()

    try:
        return asyncio.run(status())
    except (ConnectionBroken, ResponseTimeout) as error:
        return f"no answer: {error}"
