"""A real server with a keyring, bounded connections and a log that a test can read; not a test itself."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import uvicorn

from smallfirst.models.model import Model
from smallfirst.serving.app import build_app
from smallfirst.serving.connections import ConnectionLimits, bounded
from smallfirst.serving.extension import Extension
from smallfirst.serving.keyring import Keyring
from smallfirst.serving.ledger import Ledger
from smallfirst.serving.settings import ServeSettings


class House:
    """A running server: its address and its ledger."""

    def __init__(self, port: int, ledger: Ledger, server: uvicorn.Server) -> None:
        self.port, self.ledger, self._server = port, ledger, server
        self.url = f"http://127.0.0.1:{port}"

    @property
    def n_connections(self) -> int:
        """Connections the server holds."""
        return len(self._server.server_state.connections)

    def client(self, key: str = "none") -> openai.OpenAI:
        """OpenAI's own client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)

    def raw(self, *sent: bytes | float, seconds: float = 5.0) -> bytes:
        """All that comes back for these bytes, with waits between them, until the server closes or the time is up."""
        content = bytearray()
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as line:
            for step in sent:
                if isinstance(step, float):
                    time.sleep(step)
                    continue
                try:
                    line.sendall(step)
                except OSError:
                    break
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                line.settimeout(left)
                try:
                    piece = line.recv(65536)
                except OSError:
                    break
                if not piece:
                    break
                content += piece
        return bytes(content)


Build = Callable[..., House]


@contextmanager
def fortresses(folder: Path) -> Iterator[Build]:
    """Starts servers: `build(keyring, settings, limits=…, extension=…, name=model)`."""
    ledger = Ledger(folder / "ledger.sqlite")
    with ExitStack() as stack:

        def build(
            keyring: Keyring | None = None,
            settings: ServeSettings | None = None,
            *,
            limits: ConnectionLimits | None = None,
            extension: Extension | None = None,
            **models: Model,
        ) -> House:
            app = build_app(
                models, ledger=ledger, settings=settings or ServeSettings(), extension=extension, keyring=keyring
            )
            return stack.enter_context(_running(app, ledger, limits or ConnectionLimits()))

        yield build
    ledger.close()


@contextmanager
def _running(app: Any, ledger: Ledger, limits: ConnectionLimits) -> Iterator[House]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=bounded(limits), lifespan="off", log_config=None, timeout_graceful_shutdown=1, server_header=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield House(listener.getsockname()[1], ledger, server)
    finally:
        server.should_exit = True
        thread.join()


class Lines(logging.Handler):
    """Every log line as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.text += self.format(record) + "\n"
