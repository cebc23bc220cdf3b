"""`smallfirst doctor`: the machine, the packages, the places that are written to, and what a task needs.

Nothing is created, downloaded or paid. An endpoint is asked for its list of models on request only.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from smallfirst.base.errors import EXTRAS, WeightsNotFound, without_secrets
from smallfirst.base.paths import state_folder, tracking_uri
from smallfirst.base.progress import format_table
from smallfirst.interfaces.cli.options import OPTIONAL_TASK, as_typed, load_task_file, verb

if TYPE_CHECKING:
    from smallfirst.path.project.task_file import TaskFile

GB = 1 << 30
LEAST_MEMORY, LEAST_DISK = 4 * GB, 2 * GB
"""Free bytes below which a fine-tune of the default base model, or weights and runs, may not fit."""
NEEDED = ("train", "serve")
"""Extras that most users want; the others are named only."""
TIMEOUT_S = 5.0


class Diagnosis(NamedTuple):
    """One thing that was looked at."""

    level: Literal["ok", "warn", "fail"]
    """`fail` where something does not work, `warn` where it works worse or not yet."""
    name: str
    what: str
    next: str = ""
    """What to do about it."""


@verb("smallfirst doctor", "smallfirst doctor tickets --ask-large")
@OPTIONAL_TASK
@click.option("--ask-large", is_flag=True, help="Ask the large model's endpoint for its list of models; costs nothing.")
@click.pass_context
def doctor(ctx: click.Context, task_yaml: Path | None, ask_large: bool) -> None:
    """Look at what this installation has and lacks.

    Machine, packages, state folder, MLflow store and base weights; with a TASK also what that needs. Nothing is
    created or downloaded. Exit code 1 if something does not work.
    """
    if task_yaml is None and Path("task.yaml").is_file():
        task_yaml = Path("task.yaml")
    found = [*examine(load_task_file(task_yaml) if task_yaml else None, ask_large=ask_large)]
    for line, one in zip(format_table([one[:3] for one in found]), found, strict=True):
        click.echo(without_secrets(line))
        if one.next:
            click.echo(as_typed(ctx, f"      next: {one.next}"))
    if any(one.level == "fail" for one in found):
        ctx.exit(1)


def examine(file: TaskFile | None, *, ask_large: bool = False) -> Iterator[Diagnosis]:
    """Yield what is found; `file` adds what its task needs."""
    yield Diagnosis("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _machine()
    for extra in dict.fromkeys((*NEEDED, *EXTRAS.values())):
        missing = [package for package, its in EXTRAS.items() if its == extra and not find_spec(package)]
        if missing:
            what, command = f"not installed: {', '.join(missing)}", f'pip install "smallfirst[{extra}]"'
            yield Diagnosis("warn" if extra in NEEDED else "ok", f"extra {extra}", what, command)
        else:
            yield Diagnosis("ok", f"extra {extra}", "installed")
    yield _state()
    uri = tracking_uri(create=False) or str(state_folder() / "mlflow.db")
    if uri.startswith(("http://", "https://")):
        yield _answering("mlflow", uri, "/health", "", "start it, or unset MLFLOW_TRACKING_URI")
    else:
        yield Diagnosis("ok", "mlflow", uri)
    yield from map(_weights, _bases(file))
    if file is not None and file.large is not None and (endpoint := file.large.endpoint) is not None:
        name, where, key = "large model", endpoint.base_url, os.environ.get(endpoint.api_key_env, "")
        export = f"export {endpoint.api_key_env}=…"
        if not key and not endpoint.is_loopback:
            yield Diagnosis("fail", name, f"{where}: {endpoint.api_key_env} is not set", export)
        elif ask_large:
            yield _answering(name, where, "/models", key, f"start it, {export}, or correct large.endpoint")
        else:
            how = "smallfirst doctor task.yaml --ask-large   asks for its list of models"
            yield Diagnosis("ok", name, f"{where}, not asked", how)
    if file is not None and (vllm := file.small.vllm) is not None:
        key = os.environ.get(vllm.api_key_env, "")
        yield _answering("vLLM", vllm.url, "/health", key, "start it, or correct small.vllm.url")


def _machine() -> Iterator[Diagnosis]:
    from smallfirst.models.batching import usable_cores
    from smallfirst.training.estimates import system_memory

    memory, n_gpus = system_memory(), len(list(Path("/dev").glob("nvidia[0-9]*")))
    what = f"{usable_cores()} cores, {n_gpus or 'no'} GPU"
    yield Diagnosis("ok", "processor", what)
    enough = memory.bytes >= LEAST_MEMORY
    advice = "" if enough else "smallfirst check task.yaml   says what a run takes"
    yield Diagnosis("ok" if enough else "warn", "memory", f"{memory.bytes / GB:.1f} GB free", advice)


def _state() -> Diagnosis:
    name, folder = "state folder", state_folder()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        advice = "set SMALLFIRST_HOME to a folder that you can write"
        return Diagnosis("fail", name, f"{folder} cannot be written", advice)
    free = shutil.disk_usage(existing).free
    what = f"{folder}{'' if folder.exists() else ', not created yet'}; {free / GB:.1f} GB free"
    return Diagnosis("ok", name, what) if free >= LEAST_DISK else Diagnosis("warn", name, what, "free some space")


def _bases(file: TaskFile | None) -> list[str]:
    """Return the base models of the candidates to measure."""
    from smallfirst.path.project.candidate_registry import all_candidates
    from smallfirst.path.project.task_file import SmallConfig

    small, ladder = (file.small, file.ladder) if file else (SmallConfig(), None)
    asked = [c for c in all_candidates() if (c.asked_for(file) if file else c.measured_by_default)]
    asked = [c for c in asked if not c.for_other_languages]  # the rows say whether it is
    wanted = asked if ladder is None else [c for c in all_candidates() if c.name in ladder]
    language = any(c.is_language_model for c in wanted)
    encoders = dict.fromkeys(name for c in wanted if (name := c.encoder_name(small)))
    return [*([small.base] if language else []), *encoders]


def _weights(name: str) -> Diagnosis:
    from smallfirst.models.catalog import find_weights

    try:
        return Diagnosis("ok", "weights", f"{name} in {find_weights(name, download=False)}")
    except WeightsNotFound as error:
        return Diagnosis("warn", "weights", f"{name} is not here; a run fetches it", error.hint or "")


def _answering(name: str, url: str, path: str, key: str, advice: str) -> Diagnosis:
    """Ask a server by GET; it fails without an answer, and where the key is refused."""
    from smallfirst.models.remote.http import ConnectionBroken, HttpSession, ResponseTimeout

    async def status() -> int:
        session = HttpSession(url, key=key, timeout_s=TIMEOUT_S)
        try:
            return (await session.send("GET", path)).status
        finally:
            await session.aclose()

    try:
        found = asyncio.run(status())
    except (ConnectionBroken, ResponseTimeout) as error:
        return Diagnosis("fail", name, f"{url}: no answer: {error}", advice)
    if found in (401, 403):
        return Diagnosis("fail", name, f"{url} refuses the key (status {found})", advice)
    return Diagnosis("ok", name, f"{url} answers (status {found})")
