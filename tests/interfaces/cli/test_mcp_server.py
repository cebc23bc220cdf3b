"""The official client over standard input and output: tools say what verbs say, and runs are one at a time."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from fixtures.preflight import things
from mcp import Client, StdioServerParameters

MAIN = ["-P", "-m", "smallfirst.interfaces.cli.main"]


@pytest.fixture
def server(tmp_path: Path) -> StdioServerParameters:
    rows = "".join(json.dumps(row) + "\n" for row in things(160))
    (tmp_path / "rows.jsonl").write_text(rows)
    task = {"name": "desk", "data": {"train": "rows.jsonl"}, "ladder": ["words"], "gate": {"accuracy_at_least": 0.5}}
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    return StdioServerParameters(command=sys.executable, args=[*MAIN, "mcp"], cwd=tmp_path, env=env)


def test_an_assistant_checks_runs_and_is_told_what_is_wrong(server: StdioServerParameters) -> None:
    lines: list[str] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        lines.append(message or "")

    async def use() -> list[Any]:
        async with Client(server) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {
                "check", "run", "tasks", "explain", "discover",
            }  # fmt: skip
            checked = await client.call_tool("check", {})
            ran = await client.call_tool("run", {"minutes": 5}, progress_callback=progress)
            listed = await client.call_tool("tasks", {"days": 7})
            wrong = [
                await client.call_tool("check", {"task": "nowhere.yaml"}),
                await client.call_tool("explain", {"response_id": "--help", "task": "task.yaml"}),
            ]
            return [checked, ran, listed, *wrong]

    checked, ran, listed, *wrong = asyncio.run(use())
    assert checked.structured_content["verdict"] in ("GO", "FIX")
    assert ran.structured_content["outcome"]["candidate"] == "words"
    assert any("gate: passing words" in line for line in lines)
    assert listed.structured_content["tasks"] == []
    for found, words in zip(wrong, ("nowhere.yaml", "ledger"), strict=True):
        assert found.is_error
        assert words in found.content[0].text


def test_a_run_begins_when_the_one_that_was_cancelled_has_ended(server: StdioServerParameters) -> None:
    began = anyio.Event()

    async def progress(done: float, total: float | None, message: str | None) -> None:
        if "words" in (message or ""):  # fitted
            began.set()

    async def use() -> Any:
        async with Client(server) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: client.call_tool("run", {}, progress_callback=progress))
                await began.wait()
                group.cancel_scope.cancel()
            return await client.call_tool("run", {})

    next_one = anyio.run(use)
    assert not next_one.is_error, next_one.content
    assert next_one.structured_content["outcome"]["candidate"] == "words"
