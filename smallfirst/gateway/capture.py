"""Hand exchanges to the process that keeps them: a copy in shared memory, and the request goes on.

A request never waits for it. What was handed over is stored even if the proxy is killed; what finds no room, since the
disk is full or the traffic too dense, is not kept and counted.
"""

from __future__ import annotations

import json
import logging
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from smallfirst.gateway.assembly import is_stream
from smallfirst.gateway.http import GatewayRequest, UpstreamAnswer
from smallfirst.gateway.ring import Ring, shared_memory
from smallfirst.gateway.settings import CaptureSettings, GatewaySettings
from smallfirst.records import Record
from smallfirst.traffic.capture_store import FILE_NAME, CaptureStore

_log = logging.getLogger("smallfirst.gateway")
_ROUTES = (
    "/chat/completions", "/responses", "/completions", "/messages", "/embeddings", "/moderations", "/decisions",
    "/systemone",
)  # fmt: skip
"""Ends of the routes that are kept: questions that a model answers at once. Files, audio and jobs are not."""
_KEPT_HEADERS = frozenset({b"content-type", b"content-encoding"})
_RESTART_S = 5.0
_END_S = 10.0
FRAME = struct.Struct("<II")
"""Before an entry's three parts: the lengths of the first two, which are the facts as JSON and the request's body."""


class WorkerOrder(Record):
    """What the keeping process is told."""

    path: Path
    """File of the capture store."""
    settings: GatewaySettings
    wanted: CaptureSettings
    ring_fd: int
    wake_fd: int
    """Read end of the pipe; it ends when the proxy ends."""

    def open_store(self) -> CaptureStore:
        """Open the store. Raise ConfigError if it cannot be used, or its key is missing."""
        wanted = self.wanted
        return CaptureStore(self.path, max_rows=wanted.max_rows, keep_days=wanted.keep_days, key=wanted.key())


class Capture:
    """The proxy's side of the capture."""

    def __init__(self, settings: GatewaySettings, wanted: CaptureSettings, folder: Path) -> None:
        """Start the process that keeps exchanges in `folder`. Raise ConfigError if the store cannot be used."""
        self.wanted = wanted
        self._tenants = frozenset(wanted.tenants)
        self._ring = Ring(shared_memory(wanted.buffer_bytes), wanted.buffer_bytes)
        self._order = WorkerOrder(
            path=folder / FILE_NAME, settings=settings, wanted=wanted, ring_fd=self._ring.fd, wake_fd=0
        )
        self._order.open_store().close()
        self._start()

    def wants(self, request: GatewayRequest) -> bool:
        """Return True if this request is to be kept: its tenant has agreed, and chance has drawn it."""
        return (
            request.method == "POST"
            and request.path.endswith(_ROUTES)
            and request.tenant in self._tenants
            and len(request.body) <= self.wanted.max_body_bytes
            and (self.wanted.share >= 1 or random.random() < self.wanted.share)
        )

    def keep(self, request: GatewayRequest, answer: UpstreamAnswer, first_ms: float | None = None) -> None:
        """Hand an exchange over as it went over the line; of the headers, only those that say how to read the answer.

        `first_ms` is the time to the answer's first byte.
        """
        facts: dict[str, Any] = {
            "id": request.id,
            "at": request.at,
            "route": request.path,
            "tenant": "" if request.tenant == "default" else request.tenant,
            "status": answer.status,
            "upstream": answer.upstream,
            "latency_ms": answer.latency_ms,
            "first_token_ms": first_ms if is_stream(answer.headers) else None,
            "headers": [(k.decode("latin-1"), v.decode("latin-1")) for k, v in answer.headers if k in _KEPT_HEADERS],
        }
        if len(answer.body) > self.wanted.max_body_bytes:
            return
        head = json.dumps(facts).encode()
        if self._ring.put((FRAME.pack(len(head), len(request.body)), head, request.body, answer.body)):
            self._wake()

    @property
    def counts(self) -> dict[str, int]:
        """What became of the exchanges since the proxy has started."""
        return self._ring.counts

    def close(self) -> None:
        """Let the process store what is waiting, and wait for its end for some seconds."""
        os.close(self._wake_fd)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            _log.warning("the capture still stores %d bytes", self._ring.counts["waiting_bytes"])

    def _start(self) -> None:
        read_fd, self._wake_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        order = self._order.model_copy(update={"wake_fd": read_fd})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "smallfirst.gateway.capture_worker", order.model_dump_json()],
            pass_fds=(read_fd, self._ring.fd),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C ends the proxy first, and that ends it
        )
        os.close(read_fd)
        self._started_s = time.monotonic()

    def _wake(self) -> None:
        try:
            os.write(self._wake_fd, b"\0")
        except BlockingIOError:
            pass  # it has enough to wake up from
        except BrokenPipeError:
            if time.monotonic() - self._started_s > _RESTART_S:
                _log.warning("the capture's process has ended with %s; it is started again", self._process.poll())
                os.close(self._wake_fd)
                self._start()
