"""A server of our own in a child process, used as a model: a bounded queue, one request's turn, one process for all.

Every request is streamed, also one that is wanted whole: an engine stops when its client hangs up, and some stop no
other request. Its answers are held to their form. Nothing is tried again but a form that was not kept.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, NamedTuple

import httpx
from pydantic import Field

from smallfirst.errors import Unavailable
from smallfirst.models.protocol import Capability, Chunk, Completion, Request, stream_in_one_chunk
from smallfirst.models.remote.model import EndpointConfig, EndpointModel
from smallfirst.models.response_format import FREE_TEXT, OutputFormat, generate_in_format, requested_format
from smallfirst.models.servers.child_process import ChildProcess
from smallfirst.models.servers.slots import Slot, SlotPool
from smallfirst.models.servers.supervisor import RestartPolicy, Supervisor
from smallfirst.models.servers.unix_socket import BASE_URL, SocketFolder, Sockets
from smallfirst.pricing import PriceBook
from smallfirst.records import Record

READINESS_REQUEST = Request(messages=Request.ask("Hi").messages, max_tokens=1, tenant="readiness")
"""The tiny piece of work that shows that a model would answer; its tenant is no key's."""


class ManagedServerConfig(Record):
    """How much is asked of an engine in a child process, and how long it is waited for."""

    timeout_s: Annotated[float, Field(gt=0)] = 300
    """Longest wait for a place, and then for an answer. Long prompts on few cores take minutes."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 300
    """Longest wait for the weights to load."""
    most_waiting: Annotated[int, Field(ge=0)] = 32
    """Requests of tenants that may wait for a place; one more is refused."""
    max_queued_characters: Annotated[int, Field(ge=0)] = 200_000
    """Characters that their prompts may have in all."""
    patience: RestartPolicy = RestartPolicy()
    """When a crashed engine is started again, and a silent one killed."""


class ServerProcess(ChildProcess):
    """The process of a server. With a folder it listens on a socket in it, else wherever it says."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        key: str,
        folder: SocketFolder | None = None,
        announces: str = "",
    ) -> None:
        """Started now, and not ready yet."""
        super().__init__(command, environment, announces=announces)
        self.key, self._folder = key, folder
        self.sockets = Sockets(folder.socket) if folder else None
        """Carries requests to its socket."""

    @property
    def address(self) -> str:
        """Its address; with a folder only through `sockets`."""
        return BASE_URL if self._folder else str(self.announced)

    def client(self, timeout_s: float) -> httpx.Client:
        """For short questions to the server itself."""
        return httpx.Client(
            base_url=self.address,
            transport=httpx.HTTPTransport(uds=str(self._folder.socket) if self._folder else None),
            headers={"Authorization": f"Bearer {self.key}"},
            trust_env=False,
            timeout=timeout_s,
        )

    def stop(self) -> None:
        """End it, and its socket."""
        super().stop()
        if self._folder is not None:
            self._folder.remove()


def new_key() -> str:
    """A key for one process, which nobody else will know."""
    return secrets.token_urlsafe(32)


class ServerBackend(NamedTuple):
    """What kind of server it is."""

    name: str
    """What it is called in messages."""
    start: Callable[[SocketFolder], ServerProcess]
    """Blocks until the server answers on the folder's socket. Raises Unavailable."""
    probe: Callable[[ServerProcess, float], None]
    """Blocks until the engine gives a sign of life; raises if there is none within the seconds given."""
    extra: Callable[[Request, OutputFormat, Slot, bool], dict[str, Any]]
    """What its request body holds beside OpenAI's fields; with True, nothing remembered may be used."""
    n_places: int
    """Requests under way at once."""


class Turn:
    """One request's time at a place."""

    def __init__(self, child: ServerProcess, place: Slot, share: float) -> None:
        self.child, self.place, self.share = child, place, share
        self.began = time.perf_counter()

    @property
    def busy_s(self) -> float:
        """Its part of the machine's time so far."""
        return (time.perf_counter() - self.began) * self.share


class ManagedServer:
    """One process, for all who use it. It starts with the first request."""

    def __init__(self, engine: ServerBackend, config: ManagedServerConfig) -> None:
        """Nothing runs yet; use `acquire`."""
        self._engine, self.config = engine, config
        self.supervisor: Supervisor[ServerProcess] = Supervisor(engine.name, self._start, engine.probe, config.patience)
        self.places = SlotPool(
            engine.n_places,
            name=engine.name,
            most_waiting=config.most_waiting,
            max_queued_characters=config.max_queued_characters,
        )
        self._child: ServerProcess | None = None

    async def complete(self, request: Request, form: OutputFormat, *, model: str, prices: PriceBook) -> Completion:
        """The whole answer, in its form. Raises ModelError; Unavailable too if too many requests wait."""
        began = time.perf_counter()
        async with self.turn(request) as turn:

            async def write(fresh: bool) -> Completion:
                async with aclosing(self._written(turn, request, form, model, fresh)) as pieces:
                    last = [piece async for piece in pieces][-1]
                assert last.completion is not None
                return last.completion

            return _whole(await generate_in_format(form, write), began, turn, prices)

    async def stream(self, request: Request, *, model: str, prices: PriceBook) -> AsyncGenerator[Chunk, None]:
        """An answer without a form, piece by piece. Raises ModelError."""
        began = time.perf_counter()
        async with (
            self.turn(request) as turn,
            aclosing(self._written(turn, request, FREE_TEXT, model, False)) as pieces,
        ):
            async for piece in pieces:
                done = piece.completion
                yield Chunk(completion=_whole(done, began, turn, prices)) if done is not None else piece

    async def ready(self, *, model: str, prices: PriceBook) -> None:
        """Nothing if it would answer: one token is written, or every place is at work and the engine lives.

        Raises ModelError.
        """
        if self.places.n_free:
            await self.complete(READINESS_REQUEST, FREE_TEXT, model=model, prices=prices)
        else:
            child = await self.supervisor.child()
            await asyncio.to_thread(self.supervisor.check_health, child)

    @asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[Turn]:
        """A place, and the process that is behind it. Raises Unavailable."""
        n_characters = sum(len(message.content) for message in request.messages)
        async with self.places.turn(request.tenant, n_characters, limit_s=self.config.timeout_s) as place:
            child = await self.supervisor.child()
            with self.supervisor.at_work() as n_in_flight:
                yield Turn(child, place, 1 / n_in_flight)

    async def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None and child.sockets is not None:
            await child.sockets.close()
        await asyncio.to_thread(self.supervisor.stop)

    async def _written(
        self, turn: Turn, request: Request, form: OutputFormat, model: str, fresh: bool
    ) -> AsyncGenerator[Chunk, None]:
        """What the engine writes. Its endpoint is made anew for each request, since their bodies differ."""
        config = EndpointConfig(
            base_url=f"{turn.child.address}/v1",
            model=model,
            timeout_s=self.config.timeout_s,
            max_retries=0,
            max_concurrency=1,
            priced_by="machine",
            extra_body=self._engine.extra(request, form, turn.place, fresh),
        )
        endpoint = EndpointModel(config, PriceBook(), transport=turn.child.sockets, api_key=turn.child.key)
        try:
            async with aclosing(endpoint.stream(request)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece
        except Unavailable as error:
            raise await asyncio.to_thread(self.supervisor.died, turn.child) or error from None
        finally:
            await endpoint.aclose()

    def _start(self) -> ServerProcess:
        folder = SocketFolder()
        try:
            self._child = self._engine.start(folder)
        except BaseException:
            folder.remove()
            raise
        return self._child


class ManagedServerModel:
    """A name that a process answers to, itself a Model; models of one config share the process."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM, Capability.READINESS})
    """What it can do beyond answering."""

    def __init__(
        self,
        name: str,
        prices: PriceBook,
        own: OutputFormat | None,
        engine: Callable[[], ServerBackend],
        config: ManagedServerConfig,
    ) -> None:
        """Nothing runs yet. Every answer has the form `own`, if there is one."""
        self.name, self.own = name, own
        self._prices, self._engine, self._config = prices, engine, config
        self._hosted: ManagedServer | None = None

    async def complete(self, request: Request) -> Completion:
        """The whole answer. Raises ModelError; Unavailable too if too many requests wait."""
        form = self.own or await requested_format(request.response_format)
        asked = request.model_copy(update={"response_format": None})  # the form takes its place
        return await self.open().complete(asked, form, model=self.name, prices=self._prices)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer piece by piece; one that has a form in one piece. Raises ModelError."""
        if self.own is not None or request.response_format is not None:
            async for chunk in stream_in_one_chunk(self, request):
                yield chunk
            return
        async with aclosing(self.open().stream(request, model=self.name, prices=self._prices)) as pieces:
            async for chunk in pieces:
                yield chunk

    async def ready(self) -> None:
        """Nothing if it would answer: one token is written, or all places are at work. Raises ModelError."""
        await self.open().ready(model=self.name, prices=self._prices)

    async def aclose(self) -> None:
        """End the process, if nobody else uses it; a later request would start a new one."""
        hosted, self._hosted = self._hosted, None
        if hosted is not None:
            await release(hosted)

    def open(self) -> ManagedServer:
        """The process, which may not run yet."""
        if self._hosted is None:
            self._hosted = acquire(self._engine(), self._config)
        return self._hosted


def _whole(completion: Completion, began: float, turn: Turn, prices: PriceBook) -> Completion:
    """With the wait for a place in its latency, and the machine's time as its cost."""
    latency_ms = (time.perf_counter() - began) * 1000
    return completion.model_copy(update={"latency_ms": latency_ms, "cost_usd": prices.machine.cost_usd(turn.busy_s)})


_IN_USE: dict[ManagedServerConfig, tuple[ManagedServer, int]] = {}
"""Processes by what they run, with the number of their users."""
_LOCK = threading.Lock()


def acquire(engine: ServerBackend, config: ManagedServerConfig) -> ManagedServer:
    """The process of `config`, the same for all who ask; give it back with `release`."""
    with _LOCK:
        hosted, n_users = _IN_USE.get(config) or (ManagedServer(engine, config), 0)
        _IN_USE[config] = hosted, n_users + 1
    return hosted


async def release(hosted: ManagedServer) -> None:
    """Give it back; the process ends with its last user."""
    with _LOCK:
        _, n_users = _IN_USE[hosted.config]
        if n_users > 1:
            _IN_USE[hosted.config] = hosted, n_users - 1
            return
        del _IN_USE[hosted.config]
    await hosted.close()
