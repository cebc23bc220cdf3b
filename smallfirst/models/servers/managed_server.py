"""Models served by an engine in a child process: one process for all its models, a bounded queue, checked formats."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from smallfirst.errors import Unavailable
from smallfirst.models.protocol import Capability, Chunk, Completion, Request, stream_in_one_chunk
from smallfirst.models.remote.http import UNIX_SOCKET_URL
from smallfirst.models.remote.model import EndpointConfig, EndpointModel, open_session
from smallfirst.models.response_format import FREE_TEXT, OutputFormat, generate_in_format, requested_format
from smallfirst.models.servers.child_process import ChildProcess
from smallfirst.models.servers.joined_server import JoinedServer, check_health, post_adapter
from smallfirst.models.servers.slots import Slot, SlotPool
from smallfirst.models.servers.supervisor import RestartPolicy, Supervisor
from smallfirst.paths import home
from smallfirst.pricing.prices import PriceBook
from smallfirst.records import Record

READINESS_REQUEST = Request(messages=Request.ask("Hi").messages, max_tokens=1, tenant="readiness")
"""A tiny request that shows that a model would answer; no key has its tenant."""
STARTUP_PROBE_TIMEOUT_S = 2.0
MAX_SOCKET_BYTES = 100
"""The system's limit for a socket's path is 108 on Linux and 104 on macOS."""


class ManagedServerConfig(Record):
    """Limits of an engine in a child process."""

    timeout_s: Annotated[float, Field(gt=0)] = 300
    """Longest wait for a slot, and then for an answer. Long prompts on few cores take minutes."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 300
    """Longest wait for the weights to load."""
    max_queued_requests: Annotated[int, Field(ge=0)] = 32
    """Requests of tenants that may wait for a slot; one more is refused."""
    max_queued_characters: Annotated[int, Field(ge=0)] = 200_000
    """Characters that their prompts may have in all."""
    restart: RestartPolicy = RestartPolicy()
    """When a crashed engine is restarted, and a hanging one killed."""


class ServerProgram(NamedTuple):
    """The program of an engine that is started here."""

    command: Callable[[Path], Sequence[str]]
    """Its command line, given the Unix socket to listen on."""
    environment: Callable[[str], Mapping[str, str]]
    """Its environment, given the API key that it must ask for."""
    health_path: str
    """Answered with 2xx only while the engine works."""
    start_failure: tuple[str, str]


class ServerBackend(NamedTuple):
    """An engine, and how to speak to it."""

    name: str
    extra_body: Callable[[Request, OutputFormat, Slot, bool], dict[str, Any]]
    """Fields of a request body beside OpenAI's. With True, the engine must not reuse a cached prompt."""
    n_slots: int
    program: ServerProgram | None = None
    """None for one that runs already."""
    adapters: dict[str, Path] = {}
    """LoRA adapters by name, which are loaded before their first request."""


class ServerProcess(ChildProcess):
    """The running program, with its socket and key."""

    base_url = UNIX_SOCKET_URL

    def __init__(self, name: str, program: ServerProgram) -> None:
        self.key, self.unix_socket = secrets.token_urlsafe(32), _private_socket()
        self._name, self._program, self.adapters = name, program, set[str]()
        try:
            super().__init__(program.command(self.unix_socket), program.environment(self.key))
        except BaseException:
            self._remove_socket()
            raise

    @classmethod
    def start(cls, name: str, program: ServerProgram, timeout_s: float) -> ServerProcess:
        """Return the program once it answers. Block until then. Raise Unavailable if it does not."""
        process = cls(name, program)

        def is_healthy() -> bool:
            try:
                process.check_health(STARTUP_PROBE_TIMEOUT_S)
            except Unavailable:
                return False
            return True

        if not process.wait_until(is_healthy, timeout_s):
            process.stop()
            message, hint = program.start_failure
            log = process.write_output(home() / "logs" / f"{name}.log")
            raise Unavailable(f"{message}: {process.output_tail()}", hint=f"{hint}; all that it said is in {log}")
        return process

    def check_health(self, timeout_s: float) -> None:
        """Block until the engine answers. Raise Unavailable if it does not within `timeout_s`."""
        check_health(self, self._program.health_path, self._name, timeout_s)

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


class Lease(NamedTuple):
    """One request's time in a slot."""

    process: ServerProcess | JoinedServer
    slot: Slot
    share: float
    """Part of the machine's time that the request pays for, in (0, 1]."""
    started_s: float
    """When it got the slot, on `time.perf_counter`."""

    @property
    def busy_s(self) -> float:
        return (time.perf_counter() - self.started_s) * self.share


class ManagedServer:
    """One process for all models that use it. It starts with the first request."""

    def __init__(self, backend: ServerBackend, config: ManagedServerConfig, joined: JoinedServer | None = None) -> None:
        """Start the backend's program with the first request, or send requests to `joined`, which runs already."""
        self.backend, self.config = backend, config
        self.supervisor: Supervisor[Any] | JoinedServer
        if joined is not None:
            self.supervisor = joined
        else:
            assert backend.program is not None
            start = partial(ServerProcess.start, backend.name, backend.program, config.start_timeout_s)
            self.supervisor = Supervisor(backend.name, start, ServerProcess.check_health, config.restart)
        self.slots = SlotPool(
            backend.n_slots,
            name=backend.name,
            max_queued_requests=config.max_queued_requests,
            max_queued_characters=config.max_queued_characters,
        )

    @asynccontextmanager
    async def lease(self, request: Request, model: str = "") -> AsyncIterator[Lease]:
        """Wait for a slot, for the server, and for the adapter `model` if it is one. Raise Unavailable."""
        n_characters = sum(len(message.content) for message in request.messages)
        async with self.slots.acquire(request.tenant, n_characters, timeout_s=self.config.timeout_s) as slot:
            process = await self.supervisor.process()
            await self.load_adapter(process, model)
            with self.supervisor.request() as n_in_flight:
                yield Lease(process, slot, 1 / n_in_flight, time.perf_counter())

    async def load_adapter(self, process: ServerProcess | JoinedServer, name: str) -> None:
        """Load the adapter into a running server, unless it is there. Raise Unavailable if it cannot be loaded."""
        folder = self.backend.adapters.get(name)
        if folder is not None and name not in process.adapters:
            await post_adapter(process, name, folder, timeout_s=self.config.timeout_s)

    async def stream(
        self,
        lease: Lease,
        request: Request,
        output_format: OutputFormat,
        *,
        model: str,
        prices: PriceBook,
        fresh: bool = False,
    ) -> AsyncGenerator[Chunk, None]:
        config = EndpointConfig(
            base_url=f"{lease.process.base_url}/v1",
            model=model,
            timeout_s=self.config.timeout_s,
            max_retries=0,
            max_concurrency=1,
            priced_by="machine",
            extra_body=self.backend.extra_body(request, output_format, lease.slot, fresh),
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

    async def aclose(self) -> None:
        await asyncio.to_thread(self.supervisor.stop)


class ManagedServerModel:
    """A model of a managed server. An answer costs machine time, divided by the requests in flight at its start."""

    capabilities: frozenset[Capability] = frozenset(
        {Capability.STREAM, Capability.JSON, Capability.LOGPROBS, Capability.READINESS}
    )
    """No EMBEDDINGS: the engines serve chat models."""

    def __init__(
        self,
        acquire: Callable[[], ManagedServer],
        prices: PriceBook,
        *,
        model: str,
        name: str = "",
        output_format: OutputFormat | None = None,
    ) -> None:
        """Start nothing yet. `model` is its name at the server; every answer has `output_format`, if there is one."""
        self.name, self.output_format = name or model, output_format
        self._acquire, self._prices, self._model = acquire, prices, model
        self._server: ManagedServer | None = None

    async def complete(self, request: Request) -> Completion:
        began = time.perf_counter()
        output_format = self.output_format or await requested_format(request.response_format)
        request = request.model_copy(update={"response_format": None})  # extra_body asks for the format
        server = self.server()
        async with server.lease(request, self._model) as lease:

            async def generate(fresh: bool) -> Completion:
                chunks = server.stream(
                    lease, request, output_format, model=self._model, prices=self._prices, fresh=fresh
                )
                async with aclosing(chunks):
                    last = [chunk async for chunk in chunks][-1]
                assert last.completion is not None
                return last.completion

            return self._priced(await generate_in_format(output_format, generate), began, lease)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        if self.output_format is not None or request.response_format is not None:
            async for chunk in stream_in_one_chunk(self, request):
                yield chunk
            return
        began, server = time.perf_counter(), self.server()
        async with (
            server.lease(request, self._model) as lease,
            aclosing(server.stream(lease, request, FREE_TEXT, model=self._model, prices=self._prices)) as chunks,
        ):
            async for chunk in chunks:
                whole = chunk.completion
                yield chunk if whole is None else Chunk(completion=self._priced(whole, began, lease))

    async def ready(self) -> None:
        """Generate one token; if every slot is busy, probe the engine instead. Raise ModelError if it fails."""
        server = self.server()
        if server.slots.n_free:
            async with server.lease(READINESS_REQUEST, self._model) as lease:
                async for _ in server.stream(
                    lease, READINESS_REQUEST, FREE_TEXT, model=self._model, prices=self._prices
                ):
                    pass
        else:
            process = await server.supervisor.process()
            await asyncio.to_thread(server.supervisor.check_health, process)

    async def aclose(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await release(server)

    def server(self) -> ManagedServer:
        if self._server is None:
            self._server = self._acquire()
        return self._server

    def _priced(self, completion: Completion, began: float, lease: Lease) -> Completion:
        tokens, latency_ms = completion.charges[0].tokens, (time.perf_counter() - began) * 1000
        charge = self._prices.machine.charge(self.name, lease.busy_s, tokens)
        return completion.with_charges((charge,), answered_by=self.name, latency_ms=latency_ms)


_SERVERS: dict[ManagedServerConfig, tuple[ManagedServer, int]] = {}
"""Servers by their config, each with the number of its users."""
_LOCK = threading.Lock()


def acquire(
    backend: ServerBackend, config: ManagedServerConfig, join: Callable[[], JoinedServer] | None = None
) -> ManagedServer:
    """Return the server of `config`, the same one for all who ask; give it back with `release`."""
    with _LOCK:
        server, n_users = _SERVERS.get(config) or (ManagedServer(backend, config, join() if join else None), 0)
        _SERVERS[config] = server, n_users + 1
    return server


async def release(server: ManagedServer) -> None:
    """Give a server back; its process ends with its last user."""
    with _LOCK:
        _, n_users = _SERVERS[server.config]
        if n_users > 1:
            _SERVERS[server.config] = server, n_users - 1
            return
        del _SERVERS[server.config]
    await server.aclose()
