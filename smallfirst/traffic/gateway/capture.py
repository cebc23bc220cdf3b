"""Keep exchanges: the proxy hands a copy over in shared memory, and another process reads, prices and stores it.

A request never waits for it. What was handed over is stored even if the proxy is killed: the process ends once the
proxy has ended and all is stored. What finds no room, since the disk is full or the traffic too dense, is counted.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import random
import re
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallfirst.base.errors import SmallfirstError
from smallfirst.base.records import Record
from smallfirst.data.redaction import redact_logs
from smallfirst.traffic.capture_store import FILE_NAME, CaptureStore, CaptureUnavailable
from smallfirst.traffic.exchange import Exchange, billed
from smallfirst.traffic.gateway.http import GatewayRequest, UpstreamAnswer, header_of, read_response
from smallfirst.traffic.settings import CaptureSettings, GatewaySettings

_log = logging.getLogger("smallfirst.gateway")
_ROUTES = (
    "/chat/completions", "/responses", "/completions", "/messages", "/embeddings", "/moderations", "/decisions"
)  # fmt: skip
"""Ends of the routes that are kept: questions that a model answers at once. Files, audio and jobs are not."""
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context: version, trace id, parent id and flags."""
_KEPT_HEADERS = frozenset({b"content-type", b"content-encoding"})
_RESTART_S = 5.0
_END_S = 10.0
MAX_BODY_BYTES = 1024 * 1024
"""Exchanges with a larger body, of the request or of the answer, are not kept."""
BUFFER_BYTES = 16 * 1024 * 1024
"""Memory for what waits to be stored; what comes while it is full is not kept, and counted."""
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
        self._ring = Ring(shared_memory(BUFFER_BYTES), BUFFER_BYTES)
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
            and len(request.body) <= MAX_BODY_BYTES
            and (self.wanted.share >= 1 or random.random() < self.wanted.share)
        )

    def keep(self, request: GatewayRequest, answer: UpstreamAnswer) -> None:
        """Hand an exchange over as it went over the line, with the headers alone that say how to read the answer."""
        named = _TRACEPARENT.match(header_of(request.headers, b"traceparent"))
        facts: dict[str, Any] = {
            "id": request.id,
            "trace": named[1] if named else "",
            "at": request.at,
            "route": request.path,
            "tenant": "" if request.tenant == "default" else request.tenant,
            "status": answer.status,
            "upstream": answer.upstream,
            "latency_ms": answer.latency_ms,
            "headers": [(k.decode("latin-1"), v.decode("latin-1")) for k, v in answer.headers if k in _KEPT_HEADERS],
        }
        if len(answer.body) > MAX_BODY_BYTES:
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
            [sys.executable, "-m", "smallfirst.traffic.gateway.capture", order.model_dump_json()],
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


_HEAD_BYTES = 64
_PUT, _TAKEN, _REFUSED, _STORED, _UNREADABLE = range(5)
_LENGTH = struct.Struct("<I")


class Ring:
    """The queue. The writer wakes the reader through a pipe of its own, which orders their accesses to memory."""

    def __init__(self, fd: int, size: int) -> None:
        """Map the shared memory of `size` bytes behind `fd` (see `shared_memory`)."""
        self.fd, self._size = fd, size - _HEAD_BYTES
        self._map = mmap.mmap(fd, size)
        self._numbers = memoryview(self._map)[:_HEAD_BYTES].cast("Q")

    def put(self, parts: Sequence[bytes]) -> bool:
        """Append one entry, given in parts; return False if there is no room for it."""
        length = sum(map(len, parts))
        at = self._numbers[_PUT]
        if at + length + _LENGTH.size - self._numbers[_TAKEN] > self._size:
            self._numbers[_REFUSED] += 1
            return False
        for part in (_LENGTH.pack(length), *parts):
            at = self._write(at, part)
        self._numbers[_PUT] = at  # last, so that an entry is there as a whole or not at all
        return True

    def entries(self, most: int) -> tuple[list[bytes], int]:
        """Return up to `most` waiting entries, oldest first, and the place behind them, for `take`."""
        found: list[bytes] = []
        at, end = self._numbers[_TAKEN], self._numbers[_PUT]
        while at < end and len(found) < most:
            (length,) = _LENGTH.unpack(self._read(at, _LENGTH.size))
            found.append(self._read(at + _LENGTH.size, length))
            at += _LENGTH.size + length
        return found, at

    def take(self, until: int, *, stored: int, unreadable: int) -> None:
        """Give the room of the entries before `until` free, and count what became of them."""
        self._numbers[_STORED] += stored
        self._numbers[_UNREADABLE] += unreadable
        self._numbers[_TAKEN] = until

    @property
    def counts(self) -> dict[str, int]:
        """What became of the entries: `no_room` did not fit, `unreadable` could not be stored, whatever the room."""
        put, taken, refused, stored, unreadable = self._numbers[: _UNREADABLE + 1]
        return {"stored": stored, "waiting_bytes": put - taken, "no_room": refused, "unreadable": unreadable}

    def _write(self, at: int, part: bytes) -> int:
        start = at % self._size
        first = min(len(part), self._size - start)
        self._map[_HEAD_BYTES + start : _HEAD_BYTES + start + first] = part[:first]
        if first < len(part):
            self._map[_HEAD_BYTES : _HEAD_BYTES + len(part) - first] = part[first:]
        return at + len(part)

    def _read(self, at: int, length: int) -> bytes:
        start = at % self._size
        first = self._map[_HEAD_BYTES + start : _HEAD_BYTES + min(start + length, self._size)]
        return first + self._map[_HEAD_BYTES : _HEAD_BYTES + length - len(first)]


def shared_memory(size: int) -> int:
    """Return the descriptor of new memory that a child process can map as well; it has no name in the file system."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("smallfirst-capture")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


# The process that keeps them, with a `WorkerOrder` as its argument

_BATCH = 100
_GATHER_S = 0.05
"""After the first of a batch, time for more of them."""
_EXPIRE_S = 3600.0
_RETRY_S = 1.0
_LAST_TRIES = 30
"""How often a full disk is tried again after the proxy has ended."""


def read_entry(entry: bytes, order: WorkerOrder) -> Exchange | None:
    """Return the exchange of a ring's entry; None if its bodies are no JSON objects."""
    n_facts, n_request = FRAME.unpack_from(entry)
    start = FRAME.size + n_facts
    facts: dict[str, Any] = json.loads(entry[FRAME.size : start])
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in facts.pop("headers")]
    try:
        request = json.loads(entry[start : start + n_request])
    except (ValueError, RecursionError):
        return None
    response = read_response(headers, entry[start + n_request :])
    if not isinstance(request, dict) or response is None:
        return None
    models = [name if isinstance(name := body.get("model"), str) else "" for body in (request, response)]
    upstream = order.settings.upstreams.get(facts.pop("upstream"))
    exchange = Exchange(
        **{**facts, "at": datetime.fromtimestamp(facts["at"], UTC)},
        request=request,
        response=response,
        model=models[0],
        answered_by=models[1],
    )
    named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    address = upstream.base_url if upstream else None
    return billed(exchange, order.settings.prices, api_url=address, headers=named)


class Worker:
    """Moves entries from the ring to the store."""

    def __init__(self, order: WorkerOrder, store: CaptureStore, ring: Ring) -> None:
        self._order, self._store, self._ring = order, store, ring
        self._ended = False
        self._expired_s = -_EXPIRE_S

    def run(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Store entries until the proxy has ended and nothing waits."""
        while not self._ended:
            if time.monotonic() - self._expired_s >= _EXPIRE_S:
                self._expired_s = time.monotonic()
                with suppress(Exception):  # a full disk, which the next entry reports
                    self._store.expire()
            self._listen(_EXPIRE_S)
            sleep(_GATHER_S)
            while (found := self._ring.entries(_BATCH))[0]:
                entries, end = found
                exchanges = [one for one in map(self._read, entries) if one is not None]
                kept = self._append(exchanges, sleep)
                self._ring.take(end, stored=kept, unreadable=len(entries) - kept)

    def _listen(self, timeout_s: float) -> None:
        """Wait until the proxy has put something, or has ended, at most so long."""
        waiting = select.poll()  # select.select takes no descriptor above 1,023
        waiting.register(self._order.wake_fd, select.POLLIN)
        if not self._ended and waiting.poll(1000 * timeout_s):
            self._ended = not os.read(self._order.wake_fd, 65536)

    def _read(self, entry: bytes) -> Exchange | None:
        try:
            return read_entry(entry, self._order)
        except Exception:
            _log.exception("an exchange cannot be kept")
            return None

    def _append(self, exchanges: list[Exchange], sleep: Callable[[float], None]) -> int:
        """Append all that are not too long, and return how many; wait while the disk is full.

        Once the proxy has ended, the wait is not for ever.
        """
        tries = 0
        while not self._ended or tries < _LAST_TRIES:
            try:
                return self._store.append(exchanges)
            except CaptureUnavailable as error:
                if not tries:
                    _log.warning("%s", error)
                tries += 1
                sleep(_RETRY_S)
                self._listen(0)
            except (SmallfirstError, ValueError):
                _log.exception("exchanges cannot be kept")
                break
        return 0


def main() -> None:
    """Serve one proxy."""
    logging.basicConfig(format="%(name)s: %(message)s")
    redact_logs()
    order = WorkerOrder.model_validate_json(sys.argv[1])
    os.nice(5)  # an answer comes before its copy
    with closing(order.open_store()) as store:
        Worker(order, store, Ring(order.ring_fd, BUFFER_BYTES)).run()


if __name__ == "__main__":
    main()
