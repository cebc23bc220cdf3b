"""A general model from a GGUF file on this machine: llama.cpp (through xllamacpp) in a child process.

Its queue is unbounded, so it never gets more requests than slots. Its slots cache prompts, whoever sent them, and the
time to the first token could tell one tenant what another has asked: each request names its slot and says whether it
may reuse the cache, a slot that changes hands starts without it, and tenants get their own slot back where it is free.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from smallfirst.base.errors import ConfigError, MissingExtra, Unavailable
from smallfirst.base.paths import child_environment
from smallfirst.base.records import Record
from smallfirst.models.pricing import BusyTime, PriceBook
from smallfirst.models.protocol import Capability, Chunk, Completion, Request, stream_in_one_chunk
from smallfirst.models.remote.client import CircuitBreaker
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.http import UNIX_SOCKET_URL, BlockingSession, ConnectionBroken, HttpSession, error_text
from smallfirst.models.remote.model import EndpointModel
from smallfirst.models.response_format import FREE_TEXT, OutputFormat, json_format, requested_format, require_format
from smallfirst.models.servers.llama_cpp_main import KEY_VARIABLE

START_TIMEOUT_S, STARTUP_PROBE_TIMEOUT_S, POLL_INTERVAL_S = 300.0, 2.0, 0.05
"""Longest wait for the weights to load, and for an answer to each probe meanwhile."""
STOP_TIMEOUT_S, EXIT_TIMEOUT_S = 5.0, 0.5
PROBE_INTERVAL_S, PROBE_TIMEOUT_S = 5.0, 60.0
"""While requests are in flight the engine is probed, and killed if it does not answer. It answers no probe while it
reads one batch of a prompt."""
MAX_CRASHES = 2
"""So many crashes without an answer between them open the circuit; a single one restarts at once."""
SHOWN_LINES, MAX_LINE_CHARACTERS = 5, 500
HEALTH = "/slots"
"""Answered by the thread that computes; /health is not."""
MAX_SOCKET_BYTES = 100
"""The system's limit for a socket's path is 108 on Linux and 104 on macOS."""
SLOT_POLL_S = 0.01
"""Seconds between looks for a free slot, whose requests take seconds."""
MAX_QUEUED_REQUESTS = 32
"""Requests of tenants that may wait for a slot; one more is refused."""


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


class LlamaCppProcess:
    """The running program, with its socket and key. It has a session of its own, and ends with its standard input."""

    def __init__(self, config: LlamaCppConfig) -> None:
        """Start the program; `wait_until_it_answers` says when it may be used."""
        self.key, self.unix_socket, self._name = secrets.token_urlsafe(32), _private_socket(), config.path.stem
        options = {
            "socket": str(self.unix_socket),
            "model": str(config.path.absolute()),
            **config.model_dump(include={"slots", "context_tokens", "threads"}),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "smallfirst.models.servers.llama_cpp_main", json.dumps(options)],
            env=child_environment(**{KEY_VARIABLE: self.key}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.ended = threading.Event()
        """Set once the program has ended or closed its output."""
        self._lines = deque[str](maxlen=SHOWN_LINES)
        self._reader = threading.Thread(target=self._read, name=f"output of {self._name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def output_tail(self) -> str:
        """Return the last lines of its output, and how it ended."""
        if self.ended.is_set():  # its output closes a moment before the process ends
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_TIMEOUT_S)
        code = self._process.poll()
        end = () if code is None else (f"exit code {code}" if code >= 0 else f"ended by signal {-code}",)
        return " / ".join((*self._lines, *end)) or "no output"

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
            raise Unavailable(f"{self._name}: the engine does not answer: {error_text(error)}") from None
        if not 200 <= status < 300:
            raise Unavailable(f"{self._name}: the engine does not answer: HTTP {status}")

    def wait_until_it_answers(self) -> bool:
        """Block until it has loaded the file. Return False if it ends before, or takes more than START_TIMEOUT_S."""
        until = time.monotonic() + START_TIMEOUT_S
        while not self.ended.wait(POLL_INTERVAL_S) and time.monotonic() < until:
            with suppress(Unavailable):
                self.check_health(STARTUP_PROBE_TIMEOUT_S)
                return True
        return False

    def kill(self, reason: str) -> None:
        """Kill it; `reason` becomes the last line of its output."""
        self._lines.append(reason)
        self._process.kill()

    def stop(self) -> None:
        """Close its input, and kill it after STOP_TIMEOUT_S. Safe to call twice."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(STOP_TIMEOUT_S)
        shutil.rmtree(self.unix_socket.parent, ignore_errors=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while line := output.readline(1 << 16):
                if text := line.decode(errors="replace").strip():
                    self._lines.append(text[:MAX_LINE_CHARACTERS])
        self.ended.set()


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
    busy: BusyTime


class LlamaCppServer:
    """One process for all models of a config, in any number of event loops and threads.

    It starts with the first request, again after a crash, and ends with its last user.
    """

    def __init__(self, config: LlamaCppConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self.name = config, config.path.stem
        self.slots = SlotPool(config.slots, name=self.name)
        self._starting = threading.Lock()
        self._process: LlamaCppProcess | None = None
        self._breaker, self._last_output = CircuitBreaker(clock, max_failures=MAX_CRASHES), ""

    def process(self) -> LlamaCppProcess:
        """Return the running process, started if there is none. Block until it answers. Raise Unavailable."""
        with self._starting:
            if self._process is not None and self._process.ended.is_set():
                self._end_crashed(self._process)
            if self._process is not None:
                return self._process
            if not self._breaker.enter():
                raise Unavailable(
                    f"{self.name}: the engine crashed again and restarts in {self._breaker.remaining_open_s:.0f} s; "
                    f"its last output: {self._last_output}",
                    hint="if memory is short, lower context_tokens or slots",
                )
            self._process = process = LlamaCppProcess(self.config)
            if not process.wait_until_it_answers():
                self._end_crashed(process)
                raise Unavailable(
                    f"{self.config.path} did not load: {self._last_output}",
                    hint="check that it is a complete GGUF file and fits into memory",
                )
            threading.Thread(target=self._watch, args=(process,), daemon=True).start()
            return process

    def stop(self) -> None:
        """End the process, also one that is just starting; a later request starts a new one."""
        if (process := self._process) is not None:
            process.stop()
        with self._starting:
            self._process = None
            self._breaker.record(answered=True)

    @asynccontextmanager
    async def lease(self, request: Request) -> AsyncIterator[Lease]:
        """Wait for a slot and for the engine. Raise Unavailable."""
        async with self.slots.acquire(request.tenant, timeout_s=self.config.timeout_s) as slot:
            process = await asyncio.to_thread(self.process)
            yield Lease(process, slot, BusyTime(1 / (self.config.slots - self.slots.n_free)))

    def _end_crashed(self, process: LlamaCppProcess) -> None:
        """Count a crash. Hold the lock."""
        process.stop()
        self._process, self._last_output = None, process.output_tail()
        self._breaker.record(answered=False)

    def _watch(self, process: LlamaCppProcess) -> None:
        """Kill the process if it does not answer a probe while requests are in flight; return when it ends."""
        while not process.ended.wait(PROBE_INTERVAL_S):
            if self.slots.n_free < self.config.slots:
                try:
                    process.check_health(PROBE_TIMEOUT_S)
                except Unavailable:
                    process.kill(f"killed: no answer to a probe within {PROBE_TIMEOUT_S:g} s")

    async def stream(
        self, lease: Lease, request: Request, output_format: OutputFormat, prices: PriceBook
    ) -> AsyncGenerator[Chunk, None]:
        config = EndpointConfig(
            base_url=f"{UNIX_SOCKET_URL}/v1",
            model=self.name,
            timeout_s=self.config.timeout_s,
            max_retries=0,
            max_concurrency=1,
            priced_by="machine",
            extra_body=extra_body(output_format, lease.slot),
        )
        process = lease.process
        endpoint = EndpointModel(config, prices, api_key=process.key, unix_socket=process.unix_socket)
        try:
            async with aclosing(endpoint.stream(request)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield chunk
            self._breaker.record(answered=True)
        except Unavailable:
            # Sockets break a moment before the process ends.
            if not await asyncio.to_thread(lease.process.ended.wait, EXIT_TIMEOUT_S):
                raise
            said = f"{self.name}: the engine ended while it answered: {lease.process.output_tail()}"
            raise Unavailable(said, hint="retry; it is restarted") from None
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
    await asyncio.to_thread(server.stop)


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
            grammar = f"root ::= {' | '.join(map(json.dumps, answers))}"
            self.output_format = OutputFormat(grammar, answers.__contains__, answers)
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
            async with aclosing(server.stream(lease, request, output_format, self._prices)) as chunks:
                last = [chunk async for chunk in chunks][-1]
            assert last.completion is not None
            found = self._priced(last.completion, began, lease)
        return await require_format(output_format, found, request.bill)

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
        """Start the engine if it does not run, and probe it. Raise Unavailable."""
        process = await asyncio.to_thread(self.server().process)
        await asyncio.to_thread(process.check_health, PROBE_TIMEOUT_S)

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
        charge = self._prices.machine.charge(self.name, lease.busy.seconds, tokens)
        return completion.with_charges((charge,), answered_by=self.name, latency_ms=latency_ms)


def extra_body(output_format: OutputFormat, slot: EngineSlot) -> dict[str, Any]:
    """Return the fields of a request's body beside OpenAI's."""
    body: dict[str, Any] = {"id_slot": slot.number, "cache_prompt": slot.may_reuse_cache}
    body |= {"chat_template_kwargs": {"enable_thinking": False}}  # reasoning takes minutes on a processor
    return body if output_format.grammar is None else body | {"grammar": output_format.grammar}
