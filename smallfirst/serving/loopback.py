"""A temporary server on a free loopback port, in a thread of its own with a random key."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Model
from smallfirst.serving.app import build_app
from smallfirst.serving.server import Server
from smallfirst.serving.settings import ServeSettings


class Address(NamedTuple):
    """Address and key of an endpoint."""

    base_url: str
    """Up to and including `/v1`."""
    key: str = ""


@contextmanager
def serve_on_loopback(models: Mapping[str, Model]) -> Iterator[Address]:
    """Yield the address of a server of `models`; then stop it, close the models and delete its ledger."""
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        ledger = Ledger(Path(folder) / "ledger.db")
        keys = KeyStore(ledger)
        _, key = keys.create("loopback", KeyPolicy())
        app = build_app(models, ledger=ledger, settings=ServeSettings(port=0, max_queue=1024), key_store=keys)
        # Signals stay with the process: uvicorn takes them in the main thread only.
        server = Server(app, stopping=lambda: None)
        work = server.serve_and_close(listener, drain_s=0, held=list(models.values()))
        thread = threading.Thread(target=asyncio.run, args=(work,), name="loopback", daemon=True)
        thread.start()
        try:
            yield Address(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", key)
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join()
            ledger.close()
