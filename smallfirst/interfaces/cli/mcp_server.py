"""A Model Context Protocol server: an assistant checks rows, runs a task, and reads what is live and why.

Each tool is a verb of the command line with `--json`, in a process of its own in the server's folder, so it says what
the verb says. Paths that lead out of that folder, also by a link, are refused: what a log or a row says may have
misled the assistant. Lines of progress go to clients that ask for progress. A call that is cancelled interrupts its
process as Ctrl-C does: `run` with `resume` goes on from there.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

import smallfirst

INSTRUCTIONS = """smallfirst finds the smallest model that is proven good enough for a narrow task. A task is a folder
with task.yaml. Check its rows, run it, then read `outcome.sentence` and `next_steps`. `tasks` and `discover` are about
recorded traffic, `explain` about one served answer. A run takes minutes, and asks a large model if task.yaml names one:
`max_usd` bounds what that costs."""
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(destructive_hint=False, open_world_hint=True)
MAX_LINES = 20
"""Last lines of progress that an error quotes."""

RUNS = asyncio.Lock()
"""One run at a time: the next one begins when one that was cancelled has ended."""
server = MCPServer("smallfirst", version=smallfirst.__version__, instructions=INSTRUCTIONS)


async def answer_of(ctx: Context[Any, Any], verb: str, *words: str, **options: object) -> dict[str, Any]:
    """Return what a verb prints as JSON; options that are None are left out, True stands alone.

    Raise ToolError with the verb's own message if it prints none.
    """
    given = [
        word
        for name, value in options.items()
        if value not in (None, False)
        for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "smallfirst.interfaces.cli.main", verb, "--json", *given, "--", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    reading, said = asyncio.create_task(process.stdout.read()), deque[str](maxlen=MAX_LINES)
    try:
        n = 0
        while line := (await process.stderr.readline()).decode(errors="replace"):
            n += 1
            said.append(line.rstrip())
            await ctx.report_progress(n, message=said[-1])
        printed = await reading
        await process.wait()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            with anyio.CancelScope(shield=True):
                await process.wait()
    try:
        found: dict[str, Any] = json.loads(printed)
    except ValueError:
        raise ToolError("\n".join(said) or f"smallfirst {verb} ended with {process.returncode}") from None
    return found


def inside(*paths: str) -> None:
    """Raise ToolError for a path that leads out of the server's folder, links resolved."""
    root = Path.cwd().resolve()
    for path in paths:
        try:
            leads_out = not Path(path).resolve().is_relative_to(root)
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL character
            raise ToolError(f"{path}: {error}") from None
        if leads_out:
            raise ToolError(
                f"{path} leads out of {root}: copy it there, or start `smallfirst mcp` in a folder above both"
            )


@server.tool(annotations=READS)
async def check(ctx: Context[Any, Any], task: str = "task.yaml") -> dict[str, Any]:
    """Look at a task's rows before anything is spent: verdict GO, FIX or NO, findings with places, minutes, memory."""
    inside(task)
    return await answer_of(ctx, "check", task)


@server.tool(annotations=WRITES)
async def run(
    ctx: Context[Any, Any],
    task: str = "task.yaml",
    minutes: float | None = None,
    max_usd: float | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train, measure, gate, promote, certify and report a task: outcome, accuracy and cost of every candidate.

    `minutes` and `max_usd` bound the run and what a large model's answers may cost, in place of what task.yaml says.
    """
    inside(task)
    async with RUNS:
        return await answer_of(ctx, "run", task, minutes=minutes, max_usd=max_usd, resume=resume)


@server.tool(annotations=READS)
async def tasks(ctx: Context[Any, Any], folder: str = "discovered", days: int = 30) -> dict[str, Any]:
    """List the tasks of the proxy's traffic: requests, bill, who answers, promise, savings over so many days."""
    inside(folder)
    return await answer_of(ctx, "tasks", folder, days=days)


@server.tool(annotations=READS)
async def explain(ctx: Context[Any, Any], response_id: str, task: str | None = None) -> dict[str, Any]:
    """Explain a served answer by its id: steps, scores, thresholds, prices, guarantee, audits and feedback."""
    inside(task or ".")
    return await answer_of(ctx, "explain", response_id, task=task)


@server.tool(annotations=WRITES)
async def discover(
    ctx: Context[Any, Any], sources: list[str], out: str = "discovered", max_error: float = 0.05
) -> dict[str, Any]:
    """Find the tasks in logs of a large model, and which share could move; writes a folder for each below `out`.

    `sources` are below the folder of the server; none: what the proxy has kept. `max_error`: kept answers that may
    differ, 0 to 1.
    """
    inside(*sources, out)
    return await answer_of(ctx, "discover", *sources, out=out, max_error=max_error)
