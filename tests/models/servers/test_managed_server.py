"""What becomes of an engine in a child process that dies, hangs, is left, is asked too much: by llama.cpp itself."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fixtures.tiny_llama import ask, child_of, given_config, given_gguf, given_model, gone_within, opened  # noqa: F401

from smallfirst.errors import Unavailable
from smallfirst.models.protocol import Request
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel
from smallfirst.models.servers.supervisor import RestartPolicy
from smallfirst.pricing import PriceBook


def test_dead_child_is_started_again(model: LlamaCppModel) -> None:
    first = ask(model)
    os.kill(child_of(os.getpid()), signal.SIGKILL)
    time.sleep(0.2)  # a request that meets a dying engine fails
    assert ask(model).text == first.text


def test_requests_under_way_fail_at_once_when_the_engine_dies(config: LlamaCppConfig) -> None:
    async def run() -> None:
        async with opened(config) as model:
            await model.ready()
            tasks = [asyncio.create_task(model.complete(Request.ask("card", max_tokens=900))) for _ in range(2)]
            await asyncio.sleep(0.2)
            killed_s = time.monotonic()
            os.kill(child_of(os.getpid()), signal.SIGKILL)
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert time.monotonic() - killed_s < 2
            assert [type(error) for error in errors] == [Unavailable, Unavailable]
            assert "tiny: the engine died while it answered: it was ended by signal 9" in str(errors[0])
            assert (await model.complete(Request.ask("card", max_tokens=2))).completion_tokens == 2

    asyncio.run(run())


def test_hung_engine_is_killed_and_started_again(config: LlamaCppConfig) -> None:
    patience = RestartPolicy(probe_interval_s=0.2, probe_timeout_s=0.5)

    async def run() -> None:
        async with opened(config.model_copy(update={"patience": patience})) as model:
            await model.ready()
            task = asyncio.create_task(model.complete(Request.ask("card", max_tokens=900)))
            await asyncio.sleep(0.2)
            os.kill(child_of(os.getpid()), signal.SIGSTOP)
            with pytest.raises(Unavailable, match=r"killed: it gave no sign of life for 0\.5 s"):
                await asyncio.wait_for(task, 10)
            assert (await model.complete(Request.ask("card", max_tokens=2))).completion_tokens == 2

    asyncio.run(run())


def test_leaving_frees_the_slot(config: LlamaCppConfig) -> None:
    long = Request.ask("where is my card", max_tokens=15_000)  # some 15 s of work

    async def run() -> None:
        async with opened(config.model_copy(update={"slots": 1, "context_tokens": 16384})) as model:
            await model.ready()
            task = asyncio.create_task(model.complete(long))
            await asyncio.sleep(0.3)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            began_s = time.monotonic()
            await model.complete(Request.ask("card", max_tokens=1))
            assert time.monotonic() - began_s < 4
            stream = model.stream(long)
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            began_s = time.monotonic()
            await model.complete(Request.ask("card", max_tokens=1))
            assert time.monotonic() - began_s < 4

    asyncio.run(run())


def test_queue_is_bounded_by_requests_and_characters(config: LlamaCppConfig) -> None:
    few = config.model_copy(update={"slots": 1, "most_waiting": 1, "max_queued_characters": 100})

    def of_ann(text: str, max_tokens: int) -> Request:
        return Request.ask(text, max_tokens=max_tokens).model_copy(update={"tenant": "ann"})

    async def run() -> None:
        async with opened(few) as model:
            await model.ready()
            working = asyncio.create_task(model.complete(of_ann("card", 900)))
            await asyncio.sleep(0.1)
            with pytest.raises(Unavailable, match="at most 1 with 100 may wait"):
                await model.complete(of_ann("x" * 101, 1))
            waiting = asyncio.create_task(model.complete(of_ann("card", 1)))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable, match="tiny is busy: 1 requests under way, 1 with 4 characters waiting"):
                await model.complete(of_ann("x", 1))
            first, second = await asyncio.gather(working, waiting)
            assert second.latency_ms > 0.5 * first.latency_ms  # its wait counts
            assert second.cost_usd < 0.5 * first.cost_usd  # and costs nothing

    asyncio.run(run())


def test_engine_is_shared_and_ends_with_its_last_user(config: LlamaCppConfig, model: LlamaCppModel) -> None:
    async def run() -> None:
        other = LlamaCppModel(config, PriceBook())
        await model.complete(Request.ask("card"))
        child = child_of(os.getpid())
        await other.complete(Request.ask("card", max_tokens=1))
        assert child_of(os.getpid()) == child
        await model.aclose()
        assert (await other.complete(Request.ask("card", max_tokens=1))).completion_tokens == 1
        await other.aclose()
        await other.aclose()
        assert gone_within(child, seconds=1)

    asyncio.run(run())


def test_only_the_user_reaches_the_engine(model: LlamaCppModel) -> None:
    async def run() -> None:
        await model.ready()
        child = await model.open().supervisor.child()
        socket = Path(child.sockets._path)
        assert stat.S_IMODE(socket.stat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert listening(child.pid) == 0
        async with httpx.AsyncClient(transport=child.sockets) as client:
            assert (await client.get("http://localhost/slots")).status_code == 401
        await model.aclose()
        assert not socket.parent.exists()

    asyncio.run(run())


def test_engine_at_work_is_ready(config: LlamaCppConfig) -> None:
    async def run() -> None:
        async with opened(config.model_copy(update={"slots": 1, "context_tokens": 16384})) as model:
            await model.ready()
            working = asyncio.create_task(model.complete(Request.ask("where is my card", max_tokens=15_000)))
            await asyncio.sleep(0.1)
            await model.ready()
            assert not working.done()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    asyncio.run(run())


def test_child_dies_with_its_parent(tiny_gguf: Path, tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel\n"
        "from smallfirst.models.protocol import Request\n"
        "from smallfirst.pricing import PriceBook\n"
        "config = LlamaCppConfig(path=Path(sys.argv[1]), threads=1, context_tokens=1024)\n"
        "asyncio.run(LlamaCppModel(config, PriceBook()).complete(Request.ask('Hi', max_tokens=1)))\n"
        "print('asked', flush=True)\n"
        "time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[3])
    command, place = [sys.executable, "-c", program, str(tiny_gguf)], {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=place) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"asked\n"
        child = child_of(parent.pid)
        assert len(list(tmp_path.iterdir())) == 1
        parent.kill()
    assert gone_within(child, seconds=5)
    assert list(tmp_path.iterdir()) == []


def test_closing_ends_the_child_and_is_safe_twice(model: LlamaCppModel) -> None:
    ask(model)
    child = child_of(os.getpid())
    asyncio.run(model.aclose())
    asyncio.run(model.aclose())
    assert gone_within(child, seconds=1)


def listening(pid: int) -> int:
    """TCP ports on which a process listens."""
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()]
    return sum(1 for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes)
