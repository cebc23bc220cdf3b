"""The clients of gateway.py, in a separate process: an open loop at a rate, or a closed loop of clients.

    python -m benchmarks.serving.gateway_load '{"port": 1, "key": "k", "model": "m", "rate": 200, "seconds": 10}'

Open loop: requests are due at random moments of a fixed seed (a Poisson process) whether earlier ones are answered or
not, and each is timed from the moment it was due, so a gateway that falls behind cannot hide it. With `clients` in
place of `rate`, that many clients ask again as soon as they are answered. An answer later than PATIENCE_S, another status than
200 or a broken connection is a failure. Raw sockets with keep-alive. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
import sys
import time
from collections import deque
from typing import Any, NamedTuple

PATIENCE_S = 10.0
MOST_LINES = 512
"""Most connections; `select` can watch 1,024."""


class Done(NamedTuple):
    """One answered or failed request."""

    ms: float
    ok: bool


class Load:
    """Due requests, idle connections and results."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        content = f"Tell me in one sentence why {'the sky is blue and the sea is green, and ' * 2}so on."
        asked = {"model": order["model"], "messages": [{"role": "user", "content": content}]}
        body = json.dumps({**asked, "stream": True} if order.get("stream") else asked).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in order.get("headers", {}).items())
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{order['port']}\r\n"
            f"authorization: Bearer {order['key']}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{more}\r\n"
        )
        self.request = head.encode() + body
        self.waiting: deque[float] = deque()
        self.idle: list[Line] = []
        self.n_lines = 0
        self.done: list[Done] = []
        self.first_ms: list[float] = []
        self.sent = 0
        self.again_until = 0.0

    async def due(self, moment: float) -> None:
        self.sent += 1
        if self.idle:
            self.idle.pop().ask(moment)
            return
        self.waiting.append(moment)
        if self.n_lines < MOST_LINES:
            self.n_lines += 1
            try:
                await asyncio.get_running_loop().create_connection(lambda: Line(self), "127.0.0.1", self.order["port"])
            except OSError:
                self.n_lines -= 1

    def free(self, line: Line) -> None:
        now = time.perf_counter()
        if line.answered and now < self.again_until:
            self.sent += 1
            line.ask(now)
            return
        while self.waiting:
            moment = self.waiting.popleft()
            if now - moment < PATIENCE_S:
                line.ask(moment)
                return
            self.done.append(Done(1000 * PATIENCE_S, False))
        self.idle.append(line)

    async def open_loop(self, rate: float, seconds: float) -> None:
        gaps, tasks = random.Random(1), set()
        moment = began = time.perf_counter()
        while (moment := moment + gaps.expovariate(rate)) < began + seconds:
            if (wait := moment - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if self.idle:
                await self.due(moment)
            else:
                task = asyncio.create_task(self.due(moment))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        ends = time.perf_counter() + PATIENCE_S
        while len(self.done) < self.sent and time.perf_counter() < ends:
            await asyncio.sleep(0.01)

    async def closed_loop(self, clients: int, seconds: float) -> None:
        self.again_until = time.perf_counter() + seconds
        await asyncio.gather(*(self.due(time.perf_counter()) for _ in range(clients)))
        while len(self.done) < self.sent and time.perf_counter() < self.again_until + PATIENCE_S:
            await asyncio.sleep(0.002)


class Line(asyncio.Protocol):
    """One connection to the gateway."""

    def __init__(self, load: Load) -> None:
        self.load, self.buffer, self.moment, self.answered, self.begun = load, b"", 0.0, False, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.load.free(self)

    def ask(self, moment: float) -> None:
        self.moment = moment
        self.transport.write(self.load.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        if b"transfer-encoding: chunked" in head:
            if not self.begun and b"data:" in self.buffer:
                self.begun = True
                self.load.first_ms.append(1000 * (time.perf_counter() - self.moment))
            if not self.buffer.endswith(b"\r\n0\r\n\r\n"):
                return
        elif len(self.buffer) < end + 4 + int(head[head.index(b"content-length:") + 15 :].split(b"\r\n", 1)[0]):
            return
        self._end(self.buffer[9:12] == b"200" and time.perf_counter() - self.moment < PATIENCE_S)
        self.buffer, self.answered, self.begun = b"", True, False
        self.load.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.n_lines -= 1
        if self in self.load.idle:
            self.load.idle.remove(self)
        if self.moment:
            self._end(False)

    def _end(self, ok: bool) -> None:
        self.load.done.append(Done(1000 * (time.perf_counter() - self.moment), ok))
        self.moment = 0.0


async def main() -> None:
    order = json.loads(sys.argv[1])
    load = Load(order)
    began = time.perf_counter()
    if "rate" in order:
        await load.open_loop(order["rate"], order["seconds"])
    else:
        await load.closed_loop(order["clients"], order["seconds"])
    seconds = time.perf_counter() - began
    times = sorted(done.ms for done in load.done if done.ok)
    n, failed = load.sent, load.sent - len(times)
    at = {f"p{p}_ms": times[min(len(times) - 1, len(times) * p // 100)] if times else None for p in (50, 95, 99)}
    first = sorted(load.first_ms)
    firsts = {f"first_p{p}_ms": first[len(first) * p // 100] for p in (50, 99)} if first else {}
    print(json.dumps({"n": n, "failed": failed, "rate": len(times) / seconds, **at, **firsts}), flush=True)


if __name__ == "__main__":
    # select() wakes up to the microsecond, epoll only to the millisecond.
    asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())).run(main())
