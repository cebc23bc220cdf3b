"""`smallfirst doctor`: the machine, the packages, the places that are written to, and what a task needs.

Nothing is created, downloaded or paid. An endpoint is asked for its list of models on request only.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from smallfirst.base.errors import EXTRAS, WeightsNotFound, without_secrets
from smallfirst.base.paths import state_folder, tracking_uri
from smallfirst.base.progress import format_table
from smallfirst.interfaces.cli.options import JSON, OPTIONAL_TASK, as_typed, load_task_file, verb

if TYPE_CHECKING:
    from smallfirst.models.remote.config import EndpointConfig
    from smallfirst.path.project.task_file import TaskFile

GB = 1 << 30
LEAST_MEMORY, LEAST_DISK = 4 * GB, 2 * GB
"""Free bytes below which a fine-tune of the default base model, or weights and runs, may not fit."""
NEEDED = ("train", "serve")
"""Extras that most users want; the others are named only."""
TIMEOUT_S = 5.0


class Found(NamedTuple):
    """One thing that was looked at."""

    name: str
    """What: python, memory, state folder, …"""
    level: Literal["ok", "warn", "fail"]
    """`fail` where something does not work, `warn` where it works worse or not yet."""
    what: str
    next: str = ""
    """What to do about it; empty where nothing is wrong."""


@verb("smallfirst doctor", "smallfirst doctor tickets --ask-large", "smallfirst doctor --json")
@OPTIONAL_TASK
@click.option("--ask-large", is_flag=True, help="Ask the large model's endpoint for its list of models; costs nothing.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to serve at.")
@JSON
@click.pass_context
def doctor(ctx: click.Context, task_yaml: Path | None, ask_large: bool, port: int, as_json: bool) -> None:
    """Look at what this installation has and lacks.

    Machine, packages, state folder, MLflow store, base weights and port; with a TASK also what that needs. Nothing is
    created or downloaded. Exit code 1 if something does not work.
    """
    if task_yaml is None and Path("task.yaml").is_file():
        task_yaml = Path("task.yaml")
    found = [*examine(load_task_file(task_yaml) if task_yaml else None, ask_large=ask_large, port=port)]
    if as_json:
        click.echo(json.dumps([one._asdict() for one in found], indent=2, ensure_ascii=False))
    else:
        for line, one in zip(format_table([(one.level, one.name, one.what) for one in found]), found, strict=True):
            click.echo(without_secrets(line))
            if one.next:
                click.echo(as_typed(ctx, f"      next: {one.next}"))
    if any(one.level == "fail" for one in found):
        ctx.exit(1)


def examine(file: TaskFile | None, *, ask_large: bool = False, port: int = 8000) -> Iterator[Found]:
    """Yield what is found; `file` adds what its task needs."""
    yield Found("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _machine()
    for extra in dict.fromkeys((*NEEDED, *EXTRAS.values())):
        missing = [package for package, its in EXTRAS.items() if its == extra and not find_spec(package)]
        if missing:
            what, command = f"not installed: {', '.join(missing)}", f'pip install "smallfirst[{extra}]"'
            yield Found(f"extra {extra}", "warn" if extra in NEEDED else "ok", what, command)
        else:
            yield Found(f"extra {extra}", "ok", "installed")
    yield _state()
    yield _mlflow()
    yield from map(_weights, _bases(file))
    yield _port(port)
    if file is not None and file.large is not None and file.large.endpoint is not None:
        yield _endpoint(file.large.endpoint, ask=ask_large)
    if file is not None and (vllm := file.small.vllm) is not None:
        status = _get(vllm.url, "/health", os.environ.get(vllm.api_key_env, ""))
        if status == 200:
            yield Found("vLLM", "ok", f"{vllm.url} answers")
        else:
            yield Found("vLLM", "fail", f"{vllm.url} does not answer: {status}", "start it, or correct small.vllm.url")


def _machine() -> Iterator[Found]:
    from smallfirst.models.hardware import detect_hardware
    from smallfirst.training.hardware import system_memory

    found, memory = detect_hardware(), system_memory()
    what = f"{found.cores} cores, {found.gpus or 'no'} GPU, {', '.join(found.features) or 'no known features'}"
    if found.gpus or any("BF16" in feature for feature in found.features):
        yield Found("processor", "ok", what)
    else:
        slower = "nothing: without bf16 in hardware fine-tunes are slower; linear models are as fast"
        yield Found("processor", "warn", what, slower)
    what = f"{memory.bytes / GB:.1f} GB free" if memory else "unknown"
    if memory and memory.bytes >= LEAST_MEMORY:
        yield Found("memory", "ok", what)
    else:
        yield Found("memory", "warn", what, "smallfirst check task.yaml   says what a run takes")


def _state() -> Found:
    name, folder = "state folder", state_folder()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Found(name, "fail", f"{folder} cannot be written", "set SMALLFIRST_HOME to a folder that you can write")
    free = shutil.disk_usage(existing).free
    what = f"{folder}{'' if folder.exists() else ', not created yet'}; {free / GB:.1f} GB free"
    if free < LEAST_DISK:
        return Found(name, "warn", what, "free some space for weights and runs")
    return Found(name, "ok", what)


def _mlflow() -> Found:
    uri = tracking_uri(create=False) or f"sqlite:///{state_folder() / 'mlflow.db'}"
    if uri.startswith(("http://", "https://")):
        status = _get(uri, "/health", "")
        if isinstance(status, int):
            return Found("mlflow", "ok", f"{uri} answers")
        return Found("mlflow", "fail", f"{uri}: {status}", "start it, or unset MLFLOW_TRACKING_URI")
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///"):
        return Found("mlflow", "ok", f"{uri}, not asked")
    if not path.exists():
        return Found("mlflow", "ok", f"{path}, not created yet")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as store:
            store.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        return Found("mlflow", "fail", f"{path}: {error}", "restore it, or name another store")
    return Found("mlflow", "ok", str(path))


def _bases(file: TaskFile | None) -> list[str]:
    """Return the base models of the candidates to measure."""
    from smallfirst.path.project.candidate_registry import all_candidates
    from smallfirst.path.project.task_file import SmallConfig

    small, ladder = (file.small, file.ladder) if file else (SmallConfig(), None)
    wanted = [c for c in all_candidates() if (c.measured_by_default if ladder is None else c.name in ladder)]
    language = any(c.is_language_model for c in wanted)
    encoders = dict.fromkeys(name for c in wanted if (name := c.encoder_name(small)))
    return [*([small.base] if language else []), *encoders]


def _weights(name: str) -> Found:
    from smallfirst.models.catalog import find_weights

    try:
        return Found("weights", "ok", f"{name} in {find_weights(name, download=False)}")
    except WeightsNotFound as error:
        return Found("weights", "warn", f"{name} is not here; a run fetches it", error.hint or "")


def _port(port: int) -> Found:
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            return Found("port", "warn", f"{port}: {error.strerror}", f"smallfirst serve task.yaml --port {port + 1}")
    return Found("port", "ok", f"{port} is free")


def _endpoint(endpoint: EndpointConfig, *, ask: bool) -> Found:
    name, where, key = "large model", endpoint.base_url, os.environ.get(endpoint.api_key_env, "")
    export = f"export {endpoint.api_key_env}=…"
    if not key and not endpoint.is_loopback:
        return Found(name, "fail", f"{where}: {endpoint.api_key_env} is not set", export)
    if not ask:
        how = "smallfirst doctor task.yaml --ask-large   asks for its list of models"
        return Found(name, "ok", f"{where}, not asked", how)
    status = _get(where, "/models", key)
    if isinstance(status, str):
        return Found(name, "fail", f"{where}: {status}", "start it, or correct large.endpoint.base_url")
    if status in (401, 403):
        return Found(name, "fail", f"{where} refuses the key in {endpoint.api_key_env} (status {status})", export)
    return Found(name, "ok", f"{where} answers (status {status})")


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
