"""The fine-tuning API on a real server at a free port of the loopback interface, and rows to upload."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from smallfirst.interfaces.openai_fine_tuning import fine_tuning
from smallfirst.interfaces.openai_settings import FineTuningSettings
from smallfirst.models.model import Chunk, Completion, Request, stream_whole
from smallfirst.serving.app import build_app
from smallfirst.serving.keys import hash_key
from smallfirst.serving.ledger import Ledger
from smallfirst.serving.settings import ServeSettings


class FixedModel:
    """A model that the server was started with."""

    name = "fixed"

    async def complete(self, request: Request) -> Completion:
        return Completion(text="fixed", answered_by=self.name, latency_ms=1, cost_usd=0)

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return stream_whole(self, request)

    async def aclose(self) -> None:
        """Holds nothing."""


class Server:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)


StartApi = Callable[..., Server]


@contextmanager
def running(settings: FineTuningSettings, keys: tuple[str, ...], ledger: Ledger, models: dict[str, Any]) -> Any:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    serving = ServeSettings(api_keys_sha256=tuple(map(hash_key, keys)))
    app = build_app(models, ledger=ledger, settings=serving, extension=fine_tuning(settings))
    config = uvicorn.Config(app, http="h11", lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield Server(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def start_api(tiny_folder: Path, tmp_path: Path) -> Iterator[StartApi]:
    """Starts a server that can fine-tune the model `tiny`; its settings as keywords."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with ExitStack() as stack:

        def start(*keys: str, **settings: Any) -> Server:
            chosen = FineTuningSettings(base_models={"tiny": str(tiny_folder)}, **settings)
            return stack.enter_context(running(chosen, keys, ledger, {"fixed": FixedModel()}))

        yield start
    ledger.close()


def chat_lines(n_rows: int = 48) -> list[str]:
    """Conversations of one question and its answer."""
    things = ("card", "pin", "euro", "refund")
    return [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"where is my {things[i % 4]}"},
                    {"role": "assistant", "content": "on its way"},
                ]
            }
        )
        for i in range(n_rows)
    ]


@pytest.fixture
def chat_file() -> bytes:
    """48 good rows."""
    return "\n".join(chat_lines()).encode()


@pytest.fixture
def broken_file() -> bytes:
    """12 rows; line 7 is no conversation."""
    lines = chat_lines(12)
    lines[6] = '{"messages": [{"role": "user", "content": "and?"}]}'
    return "\n".join(lines).encode()
