"""Small real models, and a real server for them on a free port of the loopback interface."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import openai
import pytest
import uvicorn

from smallfirst.models.model import Chunk, Completion, Model, Request, Route, stream_whole
from smallfirst.serving.app import build_app
from smallfirst.serving.connections import ConnectionLimits, bounded
from smallfirst.serving.extension import Extension
from smallfirst.serving.ledger import Ledger
from smallfirst.serving.settings import ServeSettings


class EchoModel:
    """Says the question again, word by word; waits for `gate` before the second word."""

    name = "echo-1"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.cancelled = threading.Event()

    async def complete(self, request: Request) -> Completion:
        chunks = [chunk async for chunk in self.stream(request)]
        assert chunks[-1].completion is not None
        return chunks[-1].completion

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        words = request.text.split(" ")
        yield Chunk(text=words[0])
        self.started.set()
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        for word in words[1:]:
            await asyncio.sleep(0)
            yield Chunk(text=f" {word}")
        yield Chunk(
            completion=Completion(
                text=request.text,
                answered_by=self.name,
                latency_ms=3.0,
                cost_usd=0.5,
                prompt_tokens=len(words),
                completion_tokens=len(words),
            )
        )

    async def aclose(self) -> None:
        """Holds nothing."""


class LabelModel:
    """Answers one label at once, as a Router does that keeps it small."""

    name = "labels-1"

    async def complete(self, request: Request) -> Completion:
        return Completion(
            text="refund",
            answered_by=self.name,
            latency_ms=1.5,
            cost_usd=0.25,
            prompt_tokens=4,
            completion_tokens=1,
            alternatives=(("refund", 0.75), ("other", 0.25)),
            route=Route(stage="small", why="sure", certified=True, threshold=0.5, confidence=0.75),
        )

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return stream_whole(self, request)

    async def aclose(self) -> None:
        """Holds nothing."""


class FailingModel:
    """Raises `error`, in a stream after `words`."""

    name = "failing-1"

    def __init__(self, error: Exception, *, words: int = 0) -> None:
        self.error = error
        self.words = words

    async def complete(self, request: Request) -> Completion:
        raise self.error

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        for _ in range(self.words):
            yield Chunk(text="word ")
            await asyncio.sleep(0.02)
        raise self.error

    async def aclose(self) -> None:
        """Holds nothing."""


class House:
    """A running server: its address, its ledger and a client."""

    def __init__(self, port: int, ledger: Ledger) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.ledger = ledger

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)


Start = Callable[..., House]


@contextmanager
def server(
    models: Mapping[str, Model], ledger: Ledger, settings: ServeSettings, extension: Extension | None = None
) -> Iterator[House]:
    """A server in a thread of its own, stopped at the end."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = build_app(models, ledger=ledger, settings=settings, extension=extension)
    config = uvicorn.Config(
        app, http=bounded(ConnectionLimits()), lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield House(listener.getsockname()[1], ledger)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def running() -> Callable[..., AbstractContextManager[House]]:
    """Starts a server for models, a ledger, settings and an extension; it stops with the context."""
    return server


@pytest.fixture
def echo() -> EchoModel:
    return EchoModel()


@pytest.fixture
def label() -> LabelModel:
    return LabelModel()


@pytest.fixture
def failing() -> type[FailingModel]:
    return FailingModel


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server for models by name; settings as keywords."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with ExitStack() as stack:

        def start_one(settings: ServeSettings | None = None, **models: Model) -> House:
            return stack.enter_context(server(models, ledger, settings or ServeSettings()))

        yield start_one
    ledger.close()
