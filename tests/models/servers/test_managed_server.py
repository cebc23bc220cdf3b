"""What becomes of an engine in a child process that crashes, hangs or is abandoned: with llama.cpp itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures.event_loop import in_loop
from fixtures.tiny_llama import (  # noqa: F401
    child_of,
    given_config,
    given_gguf,
    has_ended,
    opened,
    until,
)

from smallfirst.errors import Unavailable
from smallfirst.models.protocol import Request
from smallfirst.models.remote.http import UNIX_SOCKET_URL, BlockingSession, HttpSession
from smallfirst.models.servers import managed_server
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel
from smallfirst.models.servers.managed_server import ServerProcess
from smallfirst.models.servers.supervisor import RestartPolicy
from smallfirst.pricing.prices import PriceBook

SHORT = Request.ask("card", max_tokens=1)
LONG = Request.ask("where is my card", max_tokens=15_000)
"""Many seconds of work."""


async def process_of(model: LlamaCppModel) -> ServerProcess:
    return await model.server().supervisor.process()


@contextlib.asynccontextmanager
async def in_flight(model: LlamaCppModel, request: Request) -> AsyncIterator[asyncio.Task[None]]:
    """A request that the engine has begun to answer, cancelled at the end."""
    begun = asyncio.Event()

    async def read() -> None:
        async with contextlib.aclosing(model.stream(request)) as chunks:
            async for _ in chunks:
                begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@in_loop
async def test_crash_fails_the_requests_in_flight_and_the_next_one_restarts_the_engine(config: LlamaCppConfig) -> None:
    async with (
        opened(config.model_copy(update={"context_tokens": 16384})) as model,
        in_flight(model, LONG) as first,
        in_flight(model, LONG) as second,
    ):
        old = await process_of(model)
        os.kill(old.pid, signal.SIGKILL)
        errors = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(error) for error in errors] == [Unavailable, Unavailable]
        assert "tiny: the engine ended while it answered: ended by signal 9" in str(errors[0])
        assert (await model.complete(SHORT)).completion_tokens == 1
        assert (await process_of(model)).pid != old.pid


@in_loop
async def test_hanging_engine_is_killed_and_restarted(config: LlamaCppConfig) -> None:
    policy = RestartPolicy(probe_interval_s=0.1, probe_timeout_s=0.5)
    settings = {"restart": policy, "slots": 1, "context_tokens": 16384}
    async with opened(config.model_copy(update=settings)) as model, in_flight(model, LONG) as task:
        os.kill((await process_of(model)).pid, signal.SIGSTOP)
        with pytest.raises(Unavailable, match=r"killed: no answer to a probe within 0\.5 s"):
            await task


@pytest.mark.parametrize("whole", [True, False])
@in_loop
async def test_abandoned_request_frees_its_slot(config: LlamaCppConfig, whole: bool) -> None:
    async with opened(config.model_copy(update={"slots": 1, "context_tokens": 16384})) as model:
        await model.ready()
        if whole:
            server = model.server()
            task = asyncio.create_task(model.complete(LONG))
            await until(lambda: server.slots.n_free == 0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            async with in_flight(model, LONG):
                pass
        # The engine has one slot: it answers this only after it has dropped the long request.
        assert (await model.complete(SHORT)).completion_tokens == 1
        assert model.server().slots.n_free == 1


@in_loop
async def test_latency_counts_the_wait_for_a_slot_and_the_cost_does_not(
    config: LlamaCppConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(managed_server, "time", SimpleNamespace(perf_counter=lambda: now_s))
    async with opened(config.model_copy(update={"slots": 1})) as model:
        slots = model.server().slots
        async with slots.acquire("", 1, timeout_s=60):
            waiting = asyncio.create_task(model.complete(SHORT))
            await until(lambda: slots.n_queued == 1)
            now_s += 100
        found = await waiting
        assert (found.latency_ms, found.cost_usd) == (100_000, 0)


@in_loop
async def test_models_of_one_file_share_a_process_that_ends_with_the_last_of_them(config: LlamaCppConfig) -> None:
    model, other = (LlamaCppModel(config, PriceBook()) for _ in range(2))
    await model.complete(SHORT)
    process = await process_of(model)
    await other.complete(SHORT)
    assert (await process_of(other)).pid == process.pid
    await model.aclose()
    assert (await other.complete(SHORT)).completion_tokens == 1
    await other.aclose()
    await other.aclose()
    assert has_ended(process.pid)


@in_loop
async def test_nobody_else_reaches_the_engine(config: LlamaCppConfig) -> None:
    async with opened(config) as model:
        await model.ready()
        process = await process_of(model)
        socket = process.unix_socket
        assert stat.S_IMODE(socket.stat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert n_listening_ports(process.pid) == 0

        def without_key() -> int:
            session = BlockingSession(lambda: HttpSession(UNIX_SOCKET_URL, timeout_s=60, unix_socket=socket))
            with session:
                return session.send("GET", "/slots").status

        assert await asyncio.to_thread(without_key) == 401
    assert not socket.parent.exists()


@in_loop
async def test_busy_engine_is_ready(config: LlamaCppConfig) -> None:
    settings = {"slots": 1, "context_tokens": 16384}
    async with opened(config.model_copy(update=settings)) as model, in_flight(model, LONG) as task:
        await model.ready()
        assert not task.done()


def test_child_ends_with_its_parent(tiny_gguf: Path, tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel\n"
        "from smallfirst.models.protocol import Request\n"
        "from smallfirst.pricing.prices import PriceBook\n"
        "config = LlamaCppConfig(path=Path(sys.argv[1]), threads=1, context_tokens=1024)\n"
        "asyncio.run(LlamaCppModel(config, PriceBook()).complete(Request.ask('Hi', max_tokens=1)))\n"
        "print('answered', flush=True)\n"
        "time.sleep(600)\n"
    )
    root = str(Path(__file__).parents[3])
    command, environment = [sys.executable, "-c", code, str(tiny_gguf)], {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"answered\n"
        child = child_of(parent.pid)
        assert len(list(tmp_path.iterdir())) == 1
        parent.kill()
    asyncio.run(until(lambda: has_ended(child)))
    assert list(tmp_path.iterdir()) == []


def n_listening_ports(pid: int) -> int:
    """Return the number of TCP ports on which a process listens."""
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()]
    return sum(1 for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes)
