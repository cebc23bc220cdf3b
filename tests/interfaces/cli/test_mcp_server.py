"""The official client over standard input and output: tools say what verbs say, and runs are one at a time."""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from fixtures.preflight import things
from mcp import Client, StdioServerParameters

from smallfirst.base.paths import STATE

MAIN = ["-P", "-m", "smallfirst.interfaces.cli.main"]


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> StdioServerParameters:
    (tmp_path / STATE).mkdir()
    shutil.copy(empty_store, tmp_path / STATE)
    rows = "".join(json.dumps(row) + "\n" for row in things(160))
    (tmp_path / "rows.jsonl").write_text(rows)
    task = {"name": "desk", "data": {"train": "rows.jsonl"}, "ladder": ["words"], "gate": {"accuracy_at_least": 0.5}}
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    return StdioServerParameters(command=sys.executable, args=[*MAIN, "mcp"], cwd=tmp_path, env=env)


def command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):  # it has ended
        return process.cmdline()
    return []


def test_an_assistant_checks_runs_and_is_told_what_is_wrong(server: StdioServerParameters) -> None:
    """A run that is cancelled ends before the next one begins."""
    lines: list[str] = []
    at_once: list[int] = []
    began = anyio.Event()

    async def cancelled_at(done: float, total: float | None, message: str | None) -> None:
        if "words" in (message or ""):  # fitted
            began.set()

    async def count_runs() -> None:
        while True:
            [server] = [one for one in psutil.Process().children() if "mcp" in command(one)]  # others are other tests'
            at_once.append(sum("run" in command(child) for child in server.children()))
            await anyio.sleep(0.01)

    async def progress(done: float, total: float | None, message: str | None) -> None:
        lines.append(message or "")

    async def use() -> list[Any]:
        async with Client(server) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {
                "check", "run", "tasks", "explain", "discover",
            }  # fmt: skip
            checked = await client.call_tool("check", {})
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: client.call_tool("run", {}, progress_callback=cancelled_at))
                await began.wait()
                group.cancel_scope.cancel()
            async with anyio.create_task_group() as group:
                group.start_soon(count_runs)
                ran = await client.call_tool("run", {"minutes": 5}, progress_callback=progress)
                group.cancel_scope.cancel()
            listed = await client.call_tool("tasks", {"days": 7})
            wrong = [
                await client.call_tool("check", {"task": "nowhere.yaml"}),
                await client.call_tool("explain", {"response_id": "--help", "task": "task.yaml"}),
            ]
            return [checked, ran, listed, *wrong]

    checked, ran, listed, *wrong = anyio.run(use)
    assert checked.structured_content["verdict"] in ("GO", "FIX")
    assert not ran.is_error, ran.content
    assert max(at_once) == 1
    assert ran.structured_content["outcome"]["candidate"] == "words"
    assert any("gate: passing words" in line for line in lines)
    assert listed.structured_content["tasks"] == []
    for found, words in zip(wrong, ("nowhere.yaml", "ledger"), strict=True):
        assert found.is_error
        assert words in found.content[0].text


def test_no_path_leads_out_of_the_servers_folder(
    server: StdioServerParameters, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "log.jsonl").write_text('{"secret": 1}\n')
    (tmp_path / "link").symlink_to(outside)
    asked: list[tuple[str, dict[str, Any]]] = [
        ("discover", {"sources": [str(outside / "log.jsonl")]}),
        ("discover", {"sources": ["link/log.jsonl"]}),
        ("discover", {"sources": ["rows.jsonl"], "out": str(outside / "found")}),
        ("discover", {"sources": ["../"]}),
        ("check", {"task": "link/task.yaml"}),
        ("run", {"task": "/etc"}),
        ("tasks", {"folder": "/"}),
        ("explain", {"response_id": "x", "task": "link/task.yaml"}),
    ]

    async def use() -> list[Any]:
        async with Client(server) as client:
            return [await client.call_tool(name, values) for name, values in asked]

    for found in anyio.run(use):
        assert found.is_error
        assert f"leads out of {tmp_path.resolve()}: copy it there, or start `smallfirst mcp`" in found.content[0].text
    assert not (outside / "found").exists()
