"""A GGUF file in a child process: the tiny seeded model, run by the real engine, which crashes, hangs or is left."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures.tiny_llama import (  # noqa: F401
    LABELS,
    child_of,
    formed,
    given_config,
    given_gguf,
    has_ended,
    opened,
)
from fixtures.waiting import until, until_async

from smallfirst.base.errors import BadAnswer, Unavailable
from smallfirst.models import pricing
from smallfirst.models.pricing import PriceBook
from smallfirst.models.protocol import Capability, Model, Request
from smallfirst.models.remote.http import UNIX_SOCKET_URL, BlockingSession, HttpResponse, HttpSession
from smallfirst.models.response_format import FREE_TEXT
from smallfirst.models.servers import llama_cpp
from smallfirst.models.servers.llama_cpp import (
    EngineSlot,
    LlamaCppConfig,
    LlamaCppModel,
    LlamaCppProcess,
    LlamaCppServer,
    SlotPool,
)

COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
CLOSED = COLOUR | {"additionalProperties": False}
SHORT = Request.ask("card", max_tokens=1)
PROMPT = "where is my card, I want to know about the card please, " * 3
LONG = Request.ask("where is my card", max_tokens=15_000)
"""Many seconds of work."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The body of every request that reaches the engine."""
    bodies: list[dict[str, Any]] = []
    post = HttpSession.post

    async def recorded(self: HttpSession, path: str, body: bytes) -> HttpResponse:
        bodies.append(json.loads(body))
        return await post(self, path, body)

    monkeypatch.setattr(HttpSession, "post", recorded)
    return bodies


async def test_a_file_that_is_no_gguf_says_so_and_is_not_tried_for_ever(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    async with opened(LlamaCppConfig(path=path)) as model:
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"broken.gguf did not load: .*exit code 1\n  next: check that it is"):
                await model.complete(SHORT)
        with pytest.raises(Unavailable, match=r"broken: the engine crashed again and restarts in 1 s; .*exit code 1"):
            await model.complete(SHORT)


async def test_answers_are_limited_to_those_given(config: LlamaCppConfig) -> None:
    async with opened(config, answers=LABELS) as model:
        assert isinstance(model, Model)
        assert Capability.READINESS in model.capabilities
        found = await model.complete(Request.ask("I lost my card", max_tokens=16))
        assert found.text in LABELS
        assert found.answered_by == "tiny"
        assert found.cost_usd > 0
        assert found.prompt_tokens > found.completion_tokens > 0
        with pytest.raises(BadAnswer, match="next: raise max_tokens"):
            await model.complete(SHORT)
        assert (await model.complete(formed(CLOSED))).text in LABELS  # whatever the request asks for


async def test_tenants_never_reuse_each_others_prompts(config: LlamaCppConfig) -> None:
    async with opened(config.model_copy(update={"slots": 1})) as model:
        first, own, other, back, again = [await reused(model, tenant) for tenant in ("ann", "ann", "bob", "ann", "ann")]
    assert (first, other, back) == (0, 0, 0)
    assert own == again > 20


async def reused(model: LlamaCppModel, tenant: str) -> int:
    """Prompt tokens that the engine took from its cache, as it reports itself."""
    request = Request.ask(PROMPT, max_tokens=1).model_copy(update={"tenant": tenant})
    async with model.server().lease(request) as lease:
        body = {"messages": [message.model_dump() for message in request.messages], "max_tokens": 1}
        body |= llama_cpp.extra_body(FREE_TEXT, lease.slot)

        def send() -> dict[str, Any]:
            with lease.process.session(60) as session:
                return json.loads(session.read(session.send("POST", "/v1/chat/completions", body)))

        reply = await asyncio.to_thread(send)
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_only_known_fields_reach_the_engine(config: LlamaCppConfig, sent: list[dict[str, Any]]) -> None:
    request = formed(CLOSED).model_copy(update={"tags": {"n_discard": "-1"}, "tenant": "ann", "stop": ("#",)})
    async with opened(config) as model:
        await model.complete(request)
        await model.complete(request)
    first, second = sent
    expected = {"model", "messages", "max_tokens", "temperature", "stop", "stream", "stream_options"}
    assert set(first) == expected | {"chat_template_kwargs", "grammar", "id_slot", "cache_prompt"}
    assert (first["id_slot"], first["cache_prompt"]) == (0, False)
    assert (second["id_slot"], second["cache_prompt"]) == (0, True)


async def test_answer_follows_the_format_of_the_request(config: LlamaCppConfig) -> None:
    async with opened(config) as model:
        *free, last = [piece async for piece in model.stream(Request.ask("Hi", max_tokens=4))]
        assert len(free) > 1
        assert last.completion.text == "".join(piece.text for piece in free)
        pieces = [piece.text async for piece in model.stream(formed(CLOSED))]
        whole = await model.complete(formed(CLOSED))
        cut = await model.complete(formed(CLOSED, max_tokens=4))
        assert whole.text in ('{"colour": "red"}', '{"colour": "blue"}')
        assert pieces == [whole.text, ""]
        assert cut.finish_reason == "length"
        assert whole.text.startswith(cut.text)
        assert (await model.complete(formed(None, max_tokens=300))).text.startswith("{")


async def process_of(model: LlamaCppModel) -> LlamaCppProcess:
    return await asyncio.to_thread(model.server().process)


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


def test_crashes_in_a_row_are_refused_for_a_while(config: LlamaCppConfig) -> None:
    now_s = 0.0
    server = LlamaCppServer(config, clock=lambda: now_s)
    for _ in range(2):  # the first one is restarted at once
        process = server.process()
        os.kill(process.pid, signal.SIGKILL)
        assert process.ended.wait(60)
    with pytest.raises(Unavailable, match=r"crashed again and restarts in 1 s; .*ended by signal 9"):
        server.process()
    now_s = 2.0
    assert not server.process().ended.is_set()
    server.stop()


async def test_hanging_engine_is_killed_while_somebody_waits(
    config: LlamaCppConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "PROBE_INTERVAL_S", 0.1)
    monkeypatch.setattr(llama_cpp, "PROBE_TIMEOUT_S", 0.5)
    settings = {"slots": 1, "context_tokens": 16384}
    async with opened(config.model_copy(update=settings)) as model:
        process = await process_of(model)
        os.kill(process.pid, signal.SIGSTOP)
        assert not process.ended.wait(1)
        os.kill(process.pid, signal.SIGCONT)
        async with in_flight(model, LONG) as task:
            await model.ready()  # it is busy, and answers
            os.kill(process.pid, signal.SIGSTOP)
            with pytest.raises(Unavailable, match=r"killed: no answer to a probe within 0\.5 s"):
                await task


async def test_one_process_is_started_though_who_asked_first_leaves(config: LlamaCppConfig) -> None:
    async with opened(config) as model:
        tasks = [asyncio.create_task(process_of(model)) for _ in range(4)]
        await asyncio.sleep(0)
        tasks.pop(0).cancel()
        assert len({process.pid for process in await asyncio.gather(*tasks)}) == 1


async def test_stopping_an_engine_that_is_starting_ends_it(
    config: LlamaCppConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[LlamaCppProcess] = []
    never = LlamaCppProcess.wait_until_it_answers

    def wait(process: LlamaCppProcess) -> bool:
        started.append(process)
        return process.ended.wait(60) and never(process)

    monkeypatch.setattr(LlamaCppProcess, "wait_until_it_answers", wait)
    server = LlamaCppServer(config)
    task = asyncio.create_task(asyncio.to_thread(server.process))
    await until_async(lambda: bool(started))
    server.stop()
    with pytest.raises(Unavailable, match="did not load"):
        await task
    assert has_ended(started[0].pid)


@pytest.mark.parametrize("whole", [True, False])
async def test_abandoned_request_frees_its_slot(config: LlamaCppConfig, whole: bool) -> None:
    async with opened(config.model_copy(update={"slots": 1, "context_tokens": 16384})) as model:
        await model.ready()
        if whole:
            server = model.server()
            task = asyncio.create_task(model.complete(LONG))
            await until_async(lambda: server.slots.n_free == 0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            async with in_flight(model, LONG):
                pass
        # The engine has one slot: it answers this only after it has dropped the long request.
        assert (await model.complete(SHORT)).completion_tokens == 1
        assert model.server().slots.n_free == 1


async def test_latency_counts_the_wait_for_a_slot_and_the_cost_does_not(
    config: LlamaCppConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    for module in (llama_cpp, pricing):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now_s, monotonic=time.monotonic))
    async with opened(config.model_copy(update={"slots": 1})) as model:
        slots = model.server().slots
        async with slots.acquire("", timeout_s=60):
            waiting = asyncio.create_task(model.complete(SHORT))
            await until_async(lambda: len(slots._queue) == 1)
            now_s += 100
        found = await waiting
        assert (found.latency_ms, found.cost_usd) == (100_000, 0)


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


async def test_nobody_else_reaches_the_engine(config: LlamaCppConfig) -> None:
    async with opened(config) as model:
        await model.ready()
        process = await process_of(model)
        socket = process.unix_socket
        assert stat.S_IMODE(socket.stat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert n_listening_ports(process.pid) == 0
        assert os.getsid(process.pid) == process.pid  # Ctrl-C does not reach it

        def without_key() -> int:
            session = BlockingSession(lambda: HttpSession(UNIX_SOCKET_URL, timeout_s=60, unix_socket=socket))
            with session:
                return session.send("GET", "/slots").status

        assert await asyncio.to_thread(without_key) == 401
    assert not socket.parent.exists()


def test_child_ends_with_its_parent(tiny_gguf: Path) -> None:
    code = (
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel\n"
        "from smallfirst.models.protocol import Request\n"
        "from smallfirst.models.pricing import PriceBook\n"
        "config = LlamaCppConfig(path=Path(sys.argv[1]), threads=1, context_tokens=1024)\n"
        "model = LlamaCppModel(config, PriceBook())\n"
        "asyncio.run(model.complete(Request.ask('Hi', max_tokens=1)))\n"
        "print('answered', flush=True)\n"
        "time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[3])
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # a socket has no long name
        command, environment = [sys.executable, "-c", code, str(tiny_gguf)], {**os.environ, "TMPDIR": short}
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=environment) as parent:
            said = parent.stdout.readline()
            child, folders = child_of(parent.pid), os.listdir(short)
            parent.kill()
        assert (said, len(folders)) == (b"answered\n", 1)
        until(lambda: has_ended(child))
        assert os.listdir(short) == []


def n_listening_ports(pid: int) -> int:
    """Return the number of TCP ports on which a process listens."""
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()]
    return sum(1 for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes)


# --- slots


async def visit(slots: SlotPool, tenant: str, *, timeout_s: float = 60) -> EngineSlot:
    async with slots.acquire(tenant, timeout_s=timeout_s) as slot:
        return slot


async def queued(slots: SlotPool, tenant: str) -> asyncio.Task[EngineSlot]:
    """A request that waits for a slot."""
    task = asyncio.create_task(visit(slots, tenant))
    await asyncio.sleep(0)
    return task


async def test_tenants_get_their_own_slot_back_and_the_longest_idle_one_otherwise() -> None:
    two = SlotPool(2, name="engine")
    # cid takes bob's slot, idle for longest; bob then takes ann's; ann is left with cid's.
    assert [tuple(await visit(two, tenant)) for tenant in ("ann", "bob", "ann", "cid", "bob", "ann")] == [
        *[(0, False), (1, False), (0, True), (1, False), (0, False), (1, False)]
    ]


async def test_the_queue_is_served_in_order_bounded_for_tenants_and_left_by_who_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llama_cpp, "MAX_QUEUED_REQUESTS", 2)
    one, order = SlotPool(1, name="engine"), list[str]()
    async with one.acquire("a", timeout_s=60):
        with pytest.raises(Unavailable, match=r"no slot was free within 0\.01 s"):
            await visit(one, "b", timeout_s=0.01)
        leaver = await queued(one, "c")
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        assert len(one._queue) == 0
        waiting = [await queued(one, tenant) for tenant in ("b", "a")]
        with pytest.raises(Unavailable, match="1 requests in flight, 2 queued"):
            await visit(one, "c")
        waiting += [await queued(one, "") for _ in range(50)]
        for n, task in enumerate(waiting):
            task.add_done_callback(lambda _, n=n: order.append(n))
    slots = await asyncio.gather(*waiting)
    assert (order, one.n_free, len(one._queue)) == ([*range(52)], 1, 0)
    assert [slot.may_reuse_cache for slot in slots[:4]] == [False, False, False, True]


async def test_cache_is_not_reused_where_the_last_prompt_may_not_have_been_read() -> None:
    """The slot is b's by name, and what it has cached may still be a's."""
    one = SlotPool(1, name="engine")
    assert await visit(one, "a") == EngineSlot(0, False)
    with pytest.raises(RuntimeError):
        async with one.acquire("b", timeout_s=60):
            raise RuntimeError("the engine was away")
    assert await visit(one, "b") == EngineSlot(0, False)


async def test_event_loops_share_the_slots() -> None:
    one, held, release = SlotPool(1, name="engine"), threading.Event(), threading.Event()

    async def hold_until_released() -> None:
        async with one.acquire("a", timeout_s=60):
            held.set()
            await asyncio.to_thread(release.wait)

    other = threading.Thread(target=asyncio.run, args=(hold_until_released(),))
    other.start()
    held.wait()
    task = await queued(one, "b")
    assert len(one._queue) == 1
    release.set()
    assert await task == EngineSlot(0, False)
    other.join()
    assert one.n_free == 1
