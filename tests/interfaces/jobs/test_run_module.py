"""A module in a process that ends with the call: what it prints, its failures and its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from smallfirst.interfaces.jobs.run_module import ProcessFailed, run_module


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SOME_API_KEY", "secret")
    (tmp_path / "tells.py").write_text("import os, sys; print(sys.argv[1:], os.environ.get('SOME_API_KEY'))")
    (tmp_path / "fails.py").write_text("raise SystemExit('no')")
    (tmp_path / "waits.py").write_text("import sys, time; open(sys.argv[1], 'w'); time.sleep(600)")


def test_what_a_module_prints_is_returned_and_its_failure_is_an_error() -> None:
    assert asyncio.run(run_module("tells", "a", "b c", timeout_s=600)) == b"['a', 'b c'] None\n"
    with pytest.raises(ProcessFailed, match="ended without a result"):
        asyncio.run(run_module("fails", timeout_s=600))


@pytest.mark.parametrize("cancel", [False, True])
def test_a_process_ends_with_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancel: bool) -> None:
    processes = []
    start = asyncio.create_subprocess_exec

    async def start_and_keep(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        processes.append(await start(*command, **options))
        return processes[0]

    async def run() -> None:
        call = asyncio.create_task(run_module("waits", str(tmp_path / "here"), timeout_s=600 if cancel else 0.5))
        while cancel and not (processes and (tmp_path / "here").exists()):
            await asyncio.sleep(0.01)
        if cancel:
            call.cancel()
        await call

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_keep)
    with pytest.raises(asyncio.CancelledError if cancel else ProcessFailed):
        asyncio.run(run())
    assert processes[0].returncode == -9
