"""A GGUF file in a child process: the tiny seeded model, run by the real engine, which crashes, hangs or is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures.event_loop import in_loop
from fixtures.tiny_llama import (  # noqa: F401
    LABELS,
    child_of,
    formed,
    given_config,
    given_gguf,
    has_ended,
    opened,
    until,
)

from smallfirst.base.errors import BadAnswer, ConfigError, RequestRefused, Unavailable
from smallfirst.models.pricing import PriceBook
from smallfirst.models.protocol import Capability, Model, Request
from smallfirst.models.remote.http import UNIX_SOCKET_URL, BlockingSession, HttpResponse, HttpSession
from smallfirst.models.response_format import FREE_TEXT, OutputFormat
from smallfirst.models.servers import llama_cpp
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel, LlamaCppProcess, choice_grammar

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


def test_grammar_admits_exactly_the_answers() -> None:
    assert choice_grammar(("card", 'a "b"\\')) == 'root ::= "card" | "a \\"b\\"\\\\"'


def test_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"none\.gguf: no such GGUF file"):
        LlamaCppModel(LlamaCppConfig(path=Path("none.gguf")), PriceBook())


@in_loop
async def test_file_that_is_no_gguf_says_so(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    async with opened(LlamaCppConfig(path=path)) as model:
        with pytest.raises(Unavailable, match=r"broken.gguf did not load: .*exit code 1\n  next: check that it is a"):
            await model.complete(SHORT)


@in_loop
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


@in_loop
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
        body |= llama_cpp.extra_body(FREE_TEXT, lease.slot, fresh=False)

        def send() -> dict[str, Any]:
            with lease.process.session(60) as session:
                return json.loads(session.read(session.send("POST", "/v1/chat/completions", body)))

        reply = await asyncio.to_thread(send)
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])


@in_loop
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


@in_loop
async def test_answer_follows_the_format_of_the_request(config: LlamaCppConfig) -> None:
    async with opened(config) as model:
        pieces = [piece.text async for piece in model.stream(formed(CLOSED))]
        whole = await model.complete(formed(CLOSED))
        cut = await model.complete(formed(CLOSED, max_tokens=4))
        assert whole.text in ('{"colour": "red"}', '{"colour": "blue"}')
        assert pieces == [whole.text, ""]
        assert cut.finish_reason == "length"
        assert whole.text.startswith(cut.text)
        assert (await model.complete(formed(None, max_tokens=300))).text.startswith("{")


@in_loop
async def test_schema_that_makes_no_grammar_is_refused(config: LlamaCppConfig) -> None:
    bad = {"type": "string", "pattern": "(?=x)"}
    with pytest.raises(ConfigError, match="no answer can be written under this schema"):
        LlamaCppModel(config, PriceBook(), schema=bad)
    async with opened(config) as model:
        with pytest.raises(RequestRefused, match="look-around"):
            await model.complete(formed(bad))


@in_loop
async def test_answer_without_its_format_is_requested_once_more(
    config: LlamaCppConfig, sent: list[dict[str, Any]]
) -> None:
    async with opened(config, schema=CLOSED) as model:
        assert model.output_format is not None
        # As if the engine had dropped the grammar.
        model.output_format = OutputFormat('root ::= "no"', model.output_format.accepts)
        with pytest.raises(BadAnswer, match="tiny wrote what its schema forbids"):
            await model.complete(Request.ask("card"))
    assert [body["cache_prompt"] for body in sent] == [False, False]


@in_loop
async def test_free_text_is_streamed(config: LlamaCppConfig) -> None:
    async with opened(config) as model:
        *pieces, last = [piece async for piece in model.stream(Request.ask("Hi", max_tokens=4))]
    assert len(pieces) > 1
    assert last.completion is not None
    assert last.completion.text == "".join(piece.text for piece in pieces)
    assert last.completion.finish_reason == "length"


async def process_of(model: LlamaCppModel) -> LlamaCppProcess:
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
async def test_hanging_engine_is_killed(config: LlamaCppConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallfirst.models.servers.supervisor.PROBE_INTERVAL_S", 0.1)
    monkeypatch.setattr("smallfirst.models.servers.supervisor.PROBE_TIMEOUT_S", 0.5)
    settings = {"slots": 1, "context_tokens": 16384}
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
    monkeypatch.setattr(llama_cpp, "time", SimpleNamespace(perf_counter=lambda: now_s))
    async with opened(config.model_copy(update={"slots": 1})) as model:
        slots = model.server().slots
        async with slots.acquire("", timeout_s=60):
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
        "from smallfirst.models.pricing import PriceBook\n"
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
