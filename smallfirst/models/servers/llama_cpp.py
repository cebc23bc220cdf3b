"""A general model from a GGUF file on this machine: llama.cpp (through xllamacpp) in a child process.

Its queue is unbounded, so it never gets more requests than slots. Its slots cache prompts, whoever sent them, and the
time to the first token could tell one tenant what another has asked: each request names its slot and says whether it
may reuse the cache, a slot that changes hands starts without it, and tenants get their own slot back where it is free.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from smallfirst.base.errors import ConfigError, MissingExtra, Unavailable
from smallfirst.base.records import Record
from smallfirst.models.pricing import PriceBook
from smallfirst.models.protocol import Capability, Chunk, Completion, Request, stream_in_one_chunk
from smallfirst.models.remote.client import open_session
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.http import UNIX_SOCKET_URL, BlockingSession, ConnectionBroken, HttpSession
from smallfirst.models.remote.model import EndpointModel
from smallfirst.models.response_format import (
    FREE_TEXT,
    OutputFormat,
    generate_in_format,
    json_format,
    requested_format,
)
from smallfirst.models.servers.llama_cpp_main import KEY_VARIABLE
from smallfirst.models.servers.supervisor import ChildProcess, Supervisor, child_environment

START_TIMEOUT_S = 300.0
"""Longest wait for the weights to load."""
STARTUP_PROBE_TIMEOUT_S = 2.0
HEALTH = "/slots"
"""Answered by the thread that computes; /health is not."""
MAX_SOCKET_BYTES = 100
"""The system's limit for a socket's path is 108 on Linux and 104 on macOS."""
SLOT_POLL_S = 0.01
"""Seconds between looks for a free slot, whose requests take seconds."""
MAX_QUEUED_REQUESTS = 32
"""Requests of tenants that may wait for a slot; one more is refused."""
READINESS_REQUEST = Request(messages=Request.ask("Hi").messages, max_tokens=1, tenant="readiness")
"""A tiny request that shows that a model would answer; no key has its tenant."""


class LlamaCppConfig(Record):
    """The file to serve, and how much of the machine it may use."""

    path: Path
    """The GGUF file."""
    slots: Annotated[int, Field(ge=1)] = 2
    """Requests answered side by side; each slot gets an equal part of the context."""
    context_tokens: Annotated[int, Field(ge=64)] = 8192
    """Tokens of context over all slots. More allows longer prompts and takes memory."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Processor threads; by default one for each core."""
    timeout_s: Annotated[float, Field(gt=0)] = 300
    """Longest wait for a slot, and then for an answer. Long prompts on few cores take minutes."""


class LlamaCppProcess(ChildProcess):
    """The running program, with its socket and key."""

    def __init__(self, config: LlamaCppConfig) -> None:
        self.key, self.unix_socket, self._name = secrets.token_urlsafe(32), _private_socket(), config.path.stem
        options = {
            "socket": str(self.unix_socket),
            "model": str(config.path.absolute()),
            **config.model_dump(include={"slots", "context_tokens", "threads"}),
        }
        command = [sys.executable, "-m", "smallfirst.models.servers.llama_cpp_main", json.dumps(options)]
        package_root = str(Path(__file__).parents[3])
        paths = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        try:
            super().__init__(command, child_environment(**{KEY_VARIABLE: self.key, "PYTHONPATH": paths}))
        except BaseException:
            self._remove_socket()
            raise

    @classmethod
    def start(cls, config: LlamaCppConfig) -> LlamaCppProcess:
        """Return the program once it answers. Block until then. Raise Unavailable if it does not."""
        process = cls(config)

        def is_healthy() -> bool:
            with suppress(Unavailable):
                process.check_health(STARTUP_PROBE_TIMEOUT_S)
                return True
            return False

        if not process.wait_until(is_healthy, START_TIMEOUT_S):
            process.stop()
            raise Unavailable(
                f"{config.path} did not load: {process.output_tail()}",
                hint="check that it is a complete GGUF file and fits into memory",
            )
        return process

    def session(self, timeout_s: float) -> BlockingSession:
        """Return a session to it for code without an event loop."""
        key, socket = self.key, self.unix_socket
        return BlockingSession(lambda: HttpSession(UNIX_SOCKET_URL, key=key, timeout_s=timeout_s, unix_socket=socket))

    def check_health(self, timeout_s: float) -> None:
        """Block until the engine answers. Raise Unavailable if it does not within `timeout_s`."""
        try:
            with self.session(timeout_s) as session:
                status = session.send("GET", HEALTH).status
        except ConnectionBroken as error:
            raise Unavailable(f"{self._name}: {type(error).__name__}: {error}") from None
        if not 200 <= status < 300:
            raise Unavailable(f"{self._name}: HTTP {status}")

    def stop(self) -> None:
        super().stop()
        self._remove_socket()

    def _remove_socket(self) -> None:
        shutil.rmtree(self.unix_socket.parent, ignore_errors=True)


def _private_socket() -> Path:
    """Return the path of a Unix socket in a new folder that only this user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="smallfirst-"))
    if len(str(folder)) + 8 > MAX_SOCKET_BYTES:  # a deep TMPDIR
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="smallfirst-", dir="/tmp"))
    return folder / "e.sock"  # llama.cpp takes anything that does not end in .sock for a host name


class EngineSlot(NamedTuple):
    """Where a request is answered."""

    number: int
    may_reuse_cache: bool
    """True if the last prompt read here came from the same tenant."""


class SlotPool:
    """Gives out slots first come, first served, to any number of event loops."""

    def __init__(self, n_slots: int, *, name: str) -> None:
        self._name, self._n_slots = name, n_slots
        self._lock = threading.Lock()
        self._free = deque(range(n_slots))  # longest idle first
        self._tenants: dict[int, str] = {}
        self._queue: deque[object] = deque()

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_queued(self) -> int:
        return len(self._queue)

    @asynccontextmanager
    async def acquire(self, tenant: str, *, timeout_s: float) -> AsyncIterator[EngineSlot]:
        """Yield a slot. Raise Unavailable if the queue is full (never without a tenant), or after `timeout_s`."""
        slot, used = await self._wait(tenant, timeout_s if tenant else None), False
        try:
            yield slot
            used = True
        finally:
            with self._lock:
                self._free.append(slot.number)
                if not used:  # it is not certain that the tenant's prompt was read: the next starts without a cache
                    self._tenants.pop(slot.number)

    async def _wait(self, tenant: str, timeout_s: float | None) -> EngineSlot:
        turn = object()
        with self._lock:
            if tenant and len(self._queue) >= MAX_QUEUED_REQUESTS:
                raise Unavailable(
                    f"{self._name} is busy: {self._n_slots} requests in flight, {len(self._queue)} queued",
                    hint="retry after a while",
                )
            self._queue.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                while (slot := self._take(turn, tenant)) is None:
                    await asyncio.sleep(SLOT_POLL_S)
            return slot
        except TimeoutError:
            message = f"{self._name} is busy: no slot was free within {timeout_s:g} s"
            raise Unavailable(message, hint="retry after a while") from None
        finally:
            with self._lock:
                self._queue.remove(turn)

    def _take(self, turn: object, tenant: str) -> EngineSlot | None:
        """Take the tenant's own slot, else one that no tenant has used, else the longest idle; None if none is free."""
        with self._lock:
            if not self._free or self._queue[0] is not turn:
                return None
            own = [number for number in self._free if self._tenants.get(number) == tenant]
            unused = [number for number in self._free if number not in self._tenants]
            number = (own[-1:] or unused or [self._free[0]])[0]
            self._free.remove(number)
            self._tenants[number] = tenant
            return EngineSlot(number, may_reuse_cache=bool(own))


class Lease(NamedTuple):
    """One request's time in a slot."""

    process: LlamaCppProcess
    slot: EngineSlot
    share: float
    """Part of the machine's time that the request pays for, in (0, 1]."""
    started_s: float
    """When it got the slot, on `time.perf_counter`."""

    @property
    def busy_s(self) -> float:
        return (time.perf_counter() - self.started_s) * self.share


class LlamaCppServer:
    """One process for all models of a config. It starts with the first request, and ends with its last user."""

    def __init__(self, config: LlamaCppConfig) -> None:
        self.config, self.name = config, config.path.stem
        start = partial(LlamaCppProcess.start, config)
        self.supervisor = Supervisor(self.name, start, LlamaCppProcess.check_health)
        self.slots = SlotPool(config.slots, name=self.name)

    @asynccontextmanager
    async def lease(self, request: Request) -> AsyncIterator[Lease]:
        """Wait for a slot and for the engine. Raise Unavailable."""
        async with self.slots.acquire(request.tenant, timeout_s=self.config.timeout_s) as slot:
            process = await self.supervisor.process()
            with self.supervisor.request() as n_in_flight:
                yield Lease(process, slot, 1 / n_in_flight, time.perf_counter())

    async def stream(
        self, lease: Lease, request: Request, output_format: OutputFormat, prices: PriceBook, *, fresh: bool = False
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the answer; with `fresh` no cached prompt is reused."""
        config = EndpointConfig(
            base_url=f"{UNIX_SOCKET_URL}/v1",
            model=self.name,
            timeout_s=self.config.timeout_s,
            max_retries=0,
            max_concurrency=1,
            priced_by="machine",
            extra_body=extra_body(output_format, lease.slot, fresh=fresh),
        )
        connect = partial(open_session, unix_socket=lease.process.unix_socket)
        endpoint = EndpointModel(config, prices, connect=connect, api_key=lease.process.key)
        try:
            async with aclosing(endpoint.stream(request)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield chunk
        except Unavailable as error:
            raise await asyncio.to_thread(self.supervisor.crash_error, lease.process) or error from None
        finally:
            await endpoint.aclose()


_SERVERS: dict[LlamaCppConfig, tuple[LlamaCppServer, int]] = {}
"""Servers by their config, each with the number of its users."""
_LOCK = threading.Lock()


def _acquire(config: LlamaCppConfig) -> LlamaCppServer:
    with _LOCK:
        server, n_users = _SERVERS.get(config) or (LlamaCppServer(config), 0)
        _SERVERS[config] = server, n_users + 1
    return server


async def _release(server: LlamaCppServer) -> None:
    with _LOCK:
        _, n_users = _SERVERS[server.config]
        if n_users > 1:
            _SERVERS[server.config] = server, n_users - 1
            return
        del _SERVERS[server.config]
    await asyncio.to_thread(server.supervisor.stop)


class LlamaCppModel:
    """A model from a GGUF file. An answer costs machine time, divided by the requests in flight at its start."""

    capabilities: frozenset[Capability] = frozenset(
        {Capability.STREAM, Capability.JSON, Capability.LOGPROBS, Capability.READINESS}
    )

    def __init__(
        self,
        config: LlamaCppConfig,
        prices: PriceBook,
        *,
        name: str = "",
        answers: tuple[str, ...] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Load nothing yet; allow `answers` only, or JSON of `schema`. Raise ConfigError, or MissingExtra."""
        if not config.path.is_file():
            raise ConfigError(f"{config.path}: no such GGUF file")
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtra("running a GGUF file", "llama")
        self.name = name or config.path.stem
        self.output_format: OutputFormat | None = None
        """The format of every answer; None leaves it to the request."""
        if answers is not None:
            self.output_format = OutputFormat(choice_grammar(answers), answers.__contains__, answers)
        elif schema is not None:
            self.output_format = json_format(schema)
        self._config, self._prices = config, prices
        self._server: LlamaCppServer | None = None

    async def complete(self, request: Request) -> Completion:
        began = time.perf_counter()
        output_format = self.output_format or await requested_format(request.response_format)
        request = request.model_copy(update={"response_format": None})  # extra_body asks for the format
        server = self.server()
        async with server.lease(request) as lease:

            async def generate(fresh: bool) -> Completion:
                async with aclosing(server.stream(lease, request, output_format, self._prices, fresh=fresh)) as chunks:
                    last = [chunk async for chunk in chunks][-1]
                assert last.completion is not None
                return last.completion

            return self._priced(await generate_in_format(output_format, generate, request.bill), began, lease)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the answer as it is generated; one in a format comes whole, once it is checked."""
        if (self.output_format or request.response_format) is not None:
            async for chunk in stream_in_one_chunk(self, request):
                yield chunk
            return
        began, server = time.perf_counter(), self.server()
        async with (
            server.lease(request) as lease,
            aclosing(server.stream(lease, request, FREE_TEXT, self._prices)) as chunks,
        ):
            async for chunk in chunks:
                if chunk.completion is not None:
                    chunk = Chunk(completion=self._priced(chunk.completion, began, lease))
                yield chunk

    async def ready(self) -> None:
        """Answer a tiny request; if all slots are busy, probe the engine instead. Raise ModelError if it fails."""
        server = self.server()
        if not server.slots.n_free:
            process = await server.supervisor.process()
            await asyncio.to_thread(server.supervisor.check_health, process)
            return
        async with server.lease(READINESS_REQUEST) as lease:
            async for _ in server.stream(lease, READINESS_REQUEST, FREE_TEXT, self._prices):
                pass

    async def aclose(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await _release(server)

    def server(self) -> LlamaCppServer:
        if self._server is None:
            self._server = _acquire(self._config)
        return self._server

    def _priced(self, completion: Completion, began: float, lease: Lease) -> Completion:
        tokens, latency_ms = completion.charges[0].tokens, (time.perf_counter() - began) * 1000
        charge = self._prices.machine.charge(self.name, lease.busy_s, tokens)
        return completion.with_charges((charge,), answered_by=self.name, latency_ms=latency_ms)


def choice_grammar(answers: tuple[str, ...]) -> str:
    """Return a GBNF grammar for exactly these texts."""
    return "root ::= " + " | ".join(json.dumps(answer) for answer in answers)


def extra_body(output_format: OutputFormat, slot: EngineSlot, *, fresh: bool) -> dict[str, Any]:
    """Return the fields of a request's body beside OpenAI's."""
    body: dict[str, Any] = {"id_slot": slot.number, "cache_prompt": slot.may_reuse_cache and not fresh}
    body |= {"chat_template_kwargs": {"enable_thinking": False}}  # reasoning takes minutes on a processor
    return body if output_format.grammar is None else body | {"grammar": output_format.grammar}
