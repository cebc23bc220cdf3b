"""A vLLM that runs elsewhere, joined at its address: its health, its load, and which adapters it has."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.errors import Unavailable
from smallfirst.models.remote.http import (
    BlockingSession,
    ConnectionBroken,
    HttpSession,
    error_text,
)

LOOK_EVERY_S = 1.0
"""Its load is read before a request, at most so often."""
PROBE_TIMEOUT_S = 5.0
SHOWN_BYTES = 300
_GAUGES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_cache": "vllm:kv_cache_usage_perc",
}


class Load(NamedTuple):
    """What a vLLM is doing, from its `/metrics`: sums over its engines, the cache's largest."""

    running: int = 0
    """Requests in the batch."""
    waiting: int = 0
    """Requests that wait inside it, those of all its clients."""
    kv_cache: float = 0.0
    """Share of the memory for keys and values in use, in [0, 1]."""

    @classmethod
    def read(cls, metrics: str) -> Load:
        """Return the load in a text of Prometheus' format; what is missing counts as 0."""
        values: dict[str, list[float]] = {name: [] for name in _GAUGES}
        for line in metrics.splitlines():
            metric, _, value = line.rpartition(" ")
            for name, gauge in _GAUGES.items():
                if metric.partition("{")[0] == gauge:
                    values[name].append(float(value))
        running, waiting, kv_cache = values.values()
        return cls(int(sum(running)), int(sum(waiting)), max(kv_cache, default=0.0))


class JoinedServer:
    """Stands where a Supervisor and its process stand for a server that is started here."""

    def __init__(self, url: str, key: str, *, name: str, max_waiting: int) -> None:
        self.base_url, self.key, self.unix_socket, self.load = url, key, None, Load()
        self.adapters: set[str] = set()
        """Adapters that it is known to have, by name."""
        self._name, self._max_waiting = name, max_waiting
        self._error: Unavailable | None = None
        self._looked_at_s = float("-inf")

    async def process(self) -> JoinedServer:
        """Return itself. Raise Unavailable if it cannot be reached, or if too many requests wait inside it."""
        if time.monotonic() - self._looked_at_s >= LOOK_EVERY_S:
            self._looked_at_s = time.monotonic()  # others go by what was seen last
            await self._look()
        if self._error is not None:
            raise self._error
        if self.load.waiting >= self._max_waiting:
            raise Unavailable(
                f"{self._name} is busy: {self.load.waiting} requests wait inside the vLLM at {self.base_url}",
                hint="retry after a while, or run another vLLM",
            )
        return self

    async def _look(self) -> None:
        session = _session(self, PROBE_TIMEOUT_S)
        try:
            response = await session.send("GET", "/metrics")
            metrics = await response.read()
            if response.status != 200:
                raise ConnectionBroken(f"HTTP {response.status}")
            self.load, self._error = Load.read(metrics.decode()), None
        except (ConnectionBroken, ValueError) as error:
            message = f"{self._name}: the vLLM at {self.base_url} does not answer: {error_text(error)}"
            self._error = Unavailable(message, hint="start it again; it is asked every second")
            self.adapters.clear()  # a new process has none of them
        finally:
            await session.aclose()

    @contextmanager
    def request(self) -> Iterator[int]:
        yield max(1, self.load.running)

    def crash_error(self, process: Any) -> None:
        """Return None: an error from elsewhere says itself what is wrong."""

    def check_health(self, process: Any) -> None:
        """Block until it answers. Raise Unavailable if it does not."""
        check_health(self, "/health", self._name, PROBE_TIMEOUT_S)

    def stop(self) -> None:
        """Do nothing: whoever started it stops it."""


def blocking_session(server: Any, timeout_s: float) -> BlockingSession:
    """Return a session for code without an event loop, to a server with `base_url`, `key` and `unix_socket`."""
    return BlockingSession(lambda: _session(server, timeout_s))


def _session(server: Any, timeout_s: float) -> HttpSession:
    return HttpSession(server.base_url, key=server.key, timeout_s=timeout_s, unix_socket=server.unix_socket)


def check_health(server: Any, path: str, name: str, timeout_s: float) -> None:
    """Block until the engine answers. Raise Unavailable if it does not within `timeout_s`."""
    try:
        with blocking_session(server, timeout_s) as session:
            status = session.send("GET", path).status
    except ConnectionBroken as error:
        raise Unavailable(f"{name}: {type(error).__name__}: {error}") from None
    if not 200 <= status < 300:
        raise Unavailable(f"{name}: HTTP {status}")


async def post_adapter(server: Any, name: str, folder: Path, *, timeout_s: float) -> None:
    """Load an adapter into a vLLM, and note it in `server.adapters`. Raise Unavailable."""
    place = str(folder.absolute())
    session = _session(server, timeout_s)
    try:
        body = json.dumps({"lora_name": name, "lora_path": place}).encode()
        response = await session.post("/v1/load_lora_adapter", body)
        answer = (await response.read_start(SHOWN_BYTES)).decode(errors="replace")
    except ConnectionBroken as error:
        raise Unavailable(f"{name}: the engine does not answer: {error_text(error)}") from None
    finally:
        await session.aclose()
    if response.status != 200 and "already been loaded" not in answer:
        raise Unavailable(
            f"{name}: vLLM did not load this adapter (HTTP {response.status}): {answer}",
            hint=f"let it read {place}, and set VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 where nobody else reaches it; or "
            f"start it with --lora-modules {name}={place}",
        )
    server.adapters.add(name)
