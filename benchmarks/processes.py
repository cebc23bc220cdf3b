"""Processes that the benchmarks start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.datasets import ROOT

SMALLFIRST = (sys.executable, "-P", "-m", "smallfirst.interfaces.cli.main")
"""The command line of the smallfirst in PYTHONPATH."""


def printed(command: Sequence[object], **environment: str) -> str:
    """Return the last line that a command prints; exit with what it said if it fails."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return done.stdout.strip().splitlines()[-1]


@contextmanager
def running(
    command: Sequence[str], *, folder: Path = ROOT, log: Path | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that runs in `folder` and whose output can be read; its errors go to `log`. It is ended afterwards."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    errors = log.open("w", encoding="utf-8") if log else None
    process = subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def processor_s(pid: int) -> float:
    """Return user and system seconds of a process and its ended children, all threads."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system + times.children_user + times.children_system
