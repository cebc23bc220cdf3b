"""Run a module in a process that outlives its parent, known by the lock it holds, or in one that ends with a call.

The child inherits the lock, so it counts as alive until it ends; a process id is used only to send signals.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from smallfirst.base.errors import without_secrets
from smallfirst.base.files import try_lock
from smallfirst.base.progress import disable_tqdm_in_pipes
from smallfirst.models.servers.supervisor import child_environment

RECORDED_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "SMALLFIRST_VOLUMES", "SMALLFIRST_TABLES")
"""Environment variables that a process keeps from its creation, whoever starts it again."""


class ProcessFailed(Exception):
    """A process gave no result; the message says why, for clients too."""


def recorded_environment() -> dict[str, str]:
    """Return the RECORDED_VARIABLES that are set, to be stored and passed to every later `start_process`.

    Secrets in them are left out: `start_process` takes those from its own environment.
    """
    return {name: without_secrets(os.environ[name]) for name in RECORDED_VARIABLES if os.environ.get(name)}


def start_process(
    module: str,
    folder: Path,
    lock: int,
    *,
    output: Path,
    environment: Mapping[str, str],
    working_folder: Path | None = None,
) -> int:
    """Start `python -m module FOLDER LOCK`, which inherits the lock descriptor `lock`; return its process id.

    `folder` is two levels below the state folder. What the process prints is appended to `output`, a file for its owner
    only. `environment` replaces the RECORDED_VARIABLES of this process, except where one differs by a secret alone. The
    caller closes `lock` afterwards.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in RECORDED_VARIABLES}
    here = {name: value for name in environment if (value := os.environ.get(name))}
    secret = {name: value for name, value in here.items() if without_secrets(value) == environment[name]}
    fixed = {"SMALLFIRST_HOME": str(folder.parents[1]), "PYTHONPATH": _python_path()}
    # -P: a file in the working folder must not shadow a module.
    command = [sys.executable, "-P", "-m", module, str(folder), str(lock)]
    with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
            cwd=working_folder or folder,
            env={**inherited, **environment, **secret, **fixed},
        )
    # Without a waiting thread the ended child would stay a zombie for as long as this process lives.
    threading.Thread(target=process.wait, daemon=True).start()
    return process.pid


async def run_module(module: str, *arguments: str, timeout_s: float) -> bytes:
    """Run `python -m module ARGUMENTS`, without secrets in its environment, and return what it prints.

    It never outlives the call. Raise ProcessFailed if it has not ended within `timeout_s`, or with an error.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=child_environment(PYTHONPATH=_python_path()),
    )
    try:
        async with asyncio.timeout(timeout_s):
            printed, _ = await process.communicate()
    except TimeoutError:
        raise ProcessFailed(f"it took more than {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ProcessFailed("its process ended without a result")
    return printed


def claim_lock(lock: Path, arguments: Sequence[str]) -> int | None:
    """Return the lock descriptor from the `arguments` FOLDER [LOCK], or None if another process holds the lock."""
    descriptor = int(arguments[1]) if len(arguments) > 1 else try_lock(lock)
    if descriptor is not None:
        os.set_inheritable(descriptor, False)
        disable_tqdm_in_pipes()
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    return descriptor


def output_tail(output: Path, n_lines: int = 12) -> str:
    """Return the last lines that a process printed; empty if it printed nothing."""
    try:
        with output.open("rb") as file:
            file.seek(max(0, output.stat().st_size - 400 * n_lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-n_lines:])
    except OSError:
        return ""


def _python_path() -> str:
    """Return PYTHONPATH for the child, with the folder of this package in front unless the package is installed."""
    package = Path(__file__).parents[2]
    installed = package.name in ("site-packages", "dist-packages")
    return os.pathsep.join(filter(None, ["" if installed else str(package), os.environ.get("PYTHONPATH", "")]))
