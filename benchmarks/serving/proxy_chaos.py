"""Break what is around the proxy, and the proxy itself, under load: what do clients see, and what is kept?

    python -m benchmarks.serving.proxy_chaos [--repeats 5]     # a full disk needs root: it mounts a small tmpfs

16 clients ask as fast as they are answered, each with a number of its own; the upstream, in the process of the clients,
answers with the number. An answer counts if it is the upstream's, byte for byte. Afterwards the numbers in the capture
store are compared with those that were answered. Writes benchmarks/results/proxy_chaos.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp

from benchmarks.paths import RESULTS
from benchmarks.serving.gateway import free_port
from smallfirst.traffic.capture_store import FILE_NAME, CaptureStore

RESULT = RESULTS / "proxy_chaos.md"
CLIENTS = 16
Garbage = Callable[[asyncio.StreamWriter], None]


def answer_to(body: bytes) -> bytes:
    number = json.loads(body)["messages"][0]["content"]
    choice = {"index": 0, "message": {"role": "assistant", "content": number}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    return json.dumps(
        {"id": number, "object": "chat.completion", "model": "m-1", "choices": [choice], "usage": usage}
    ).encode()


class Upstream:
    """Answers at once, or with garbage; can go and come back."""

    def __init__(self) -> None:
        self.port, self.garbage = free_port(), None
        self._writers: set[asyncio.StreamWriter] = set()

    garbage: Garbage | None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
                body = await reader.readexactly(length)
                if self.garbage is not None:
                    self.garbage(writer)
                else:
                    answer = answer_to(body)
                    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                    writer.write(head % len(answer) + answer)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()


class Proxy:
    """The proxy in a process of its own, with a state folder of its own."""

    def __init__(self, folder: Path, upstream: int, capture: str = "{}") -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(exist_ok=True)
        address = f"http://127.0.0.1:{upstream}/v1"
        (folder / "gateway.yaml").write_text(f"upstreams: {{up: {{base_url: {address}}}}}\ncapture: {capture}\n")

    async def start(self) -> None:
        command = [sys.executable, "-m", "smallfirst.cli.main", "proxy", str(self.folder), "--port", str(self.port)]
        environment = {**os.environ, "SMALLFIRST_HOME": str(self.folder / "state")}
        log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while True:
            with contextlib.suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", self.port))[1].close()
                return
            await asyncio.sleep(0.1)

    def worker(self) -> int:
        """Return the living process that keeps exchanges."""
        asked = ["pgrep", "-P", str(self.process.pid), "-f", "capture_worker"]
        return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0])

    async def stop(self) -> None:
        """Stop the proxy and wait until what it has handed over is stored."""
        worker = self.worker()
        self.process.terminate()
        await asyncio.to_thread(self.process.wait)
        await ended(worker)

    def stored(self) -> set[str]:
        store = CaptureStore(self.folder / "state" / FILE_NAME)
        return {str(one.request["messages"][0]["content"]) for one in store.exchanges()}


class Load:
    """The clients; `seen` counts outcomes, `answered` has the numbers that were answered rightly."""

    def __init__(self, port: int) -> None:
        self.port, self.seen, self.answered = port, Counter[str](), set[str]()
        self._next = 0

    async def run(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            await asyncio.gather(*(self._client(session, ends) for _ in range(CLIENTS)))

    async def _client(self, session: aiohttp.ClientSession, ends: float) -> None:
        while time.monotonic() < ends:
            self._next += 1
            number = f"question {self._next}"
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": number}]}).encode()
            kind, got = await ask(session, self.port, body)
            right = kind == "200" and got == answer_to(body)
            self.seen["answered" if right else kind] += 1
            if right:
                self.answered.add(number)
            else:
                await asyncio.sleep(0.05)


async def ask(session: aiohttp.ClientSession, port: int, body: bytes) -> tuple[str, bytes]:
    """Return the status, with the proxy's own error code, or the kind of failure; and the body."""
    headers = {"content-type": "application/json"}
    got = b""
    try:
        async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", data=body, headers=headers) as answer:
            own = answer.headers.get("x-smallfirst-error")
            async for piece in answer.content.iter_any():
                got += piece
            return f"{answer.status} {own}" if own else str(answer.status), got
    except (aiohttp.ClientError, TimeoutError) as error:
        kind = "broken off" if isinstance(error, aiohttp.ClientPayloadError) else "no answer"
        return kind, got


async def ended(process: int) -> None:
    while Path(f"/proc/{process}").exists():
        await asyncio.sleep(0.1)


async def killed(folder: Path, upstream: Upstream, what: str) -> str:
    """Kill -9 of the proxy or of its keeping process in the middle of the load."""
    proxy = Proxy(folder, upstream.port)
    await proxy.start()
    load = Load(proxy.port)
    running = asyncio.create_task(load.run(8))
    await asyncio.sleep(2 + random.random())
    worker = proxy.worker()
    os.kill(worker if what == "keeping process" else proxy.process.pid, signal.SIGKILL)
    if what == "proxy":
        await asyncio.to_thread(proxy.process.wait)
        await proxy.start()  # as a supervisor would
    await running
    await proxy.stop()
    await ended(worker)
    lost = load.answered - proxy.stored()
    return f"| kill -9 of the {what} | {said(load.seen)} | answered but not kept: **{len(lost)}** of {len(load.answered):,} |"


async def full_disk(folder: Path, upstream: Upstream, buffer_bytes: int) -> str:
    """A disk of 1 MB fills up under load, and has room again later."""
    state = folder / "state"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(state)], check=True)
    try:
        proxy = Proxy(folder, upstream.port, f"{{buffer_bytes: {buffer_bytes}}}")
        await proxy.start()
        load = Load(proxy.port)
        await load.run(8)
        at_full = len(proxy.stored())
        subprocess.run(["mount", "-o", "remount,size=64m", str(state)], check=True)
        await asyncio.sleep(4)
        no_room = await _no_room(proxy.port)
        await proxy.stop()
        lost = load.answered - proxy.stored()
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)
    kept = f"kept while it was full: {at_full:,}; after there was room again, not kept: **{len(lost):,}** of {len(load.answered):,} (counted: {no_room:,})"
    return f"| disk of 1 MB full, {buffer_bytes // 2**20} MiB of memory | {said(load.seen)} | {kept} |"


async def _no_room(port: int) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/v1/smallfirst/status") as got:
        return int((await got.json())["capture"]["no_room"])


async def dead_upstream(folder: Path, upstream: Upstream) -> str:
    """The upstream goes for two seconds and comes back."""
    proxy = Proxy(folder, upstream.port)
    await proxy.start()
    load = Load(proxy.port)
    running = asyncio.create_task(load.run(6))
    await asyncio.sleep(2)
    await upstream.stop()
    await asyncio.sleep(2)
    before = load.seen["answered"]
    await upstream.start()
    await running
    await proxy.stop()
    lost = load.answered - proxy.stored()
    back = load.seen["answered"] - before
    return f"| upstream away for 2 s | {said(load.seen)} | {back:,} answered after it came back; not kept: **{len(lost)}** |"


def _chunks(*pieces: bytes, kind: bytes = b"text/event-stream", end: bytes = b"0\r\n\r\n") -> Garbage:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n" % kind

    def write(writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + end)
        if end != b"0\r\n\r\n":
            writer.close()

    return write


def _raw(content: bytes) -> Garbage:
    def write(writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        writer.close()

    return write


NOISE = random.Random(1).randbytes(20_000)
KINDS: dict[str, Garbage] = {
    "random bytes as a stream of events": _chunks(NOISE),
    "events that are no JSON": _chunks(b"data: {\"choices\": [\n\n", b"data: \xff\xfe\n\n", b"event\n\n"),
    "a JSON body cut off in the middle": _raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"id\": "),
    "a stream that ends without its end": _chunks(b"data: {}\n\n", end=b""),
    "an invalid chunk": _chunks(b"data: {}\n\n", end=b"zz\r\n"),
    "gzip that is none": _raw(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 9\r\n\r\nnot gzip!"),
    "random bytes in place of HTTP": _raw(NOISE),
}  # fmt: skip


async def garbage(folder: Path, upstream: Upstream) -> AsyncIterator[str]:
    """Ask directly and through the proxy, and compare."""
    proxy = Proxy(folder, upstream.port)
    await proxy.start()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "question 0"}]}).encode()
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for name, kind in KINDS.items():
            upstream.garbage = kind
            seen = [await ask(session, port, body) for port in (upstream.port, proxy.port)]
            same = "the same" if seen[0] == seen[1] else f"{seen[1][0]}"
            yield f"| {name} | {seen[0][0]}, {len(seen[0][1]):,} bytes | {same} |"
        upstream.garbage = None
        assert await ask(session, proxy.port, body) == ("200", answer_to(body))
    await proxy.stop()


def said(seen: Counter[str]) -> str:
    return ", ".join(f"{n:,} {kind}" for kind, n in seen.most_common())


async def measure(repeats: int) -> tuple[list[str], list[str]]:
    rows: list[str] = []
    upstream = Upstream()
    await upstream.start()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cases: list[Callable[[Path], Awaitable[str]]] = []
        for _ in range(repeats):
            cases += [lambda folder: killed(folder, upstream, "proxy")]
            cases += [lambda folder: killed(folder, upstream, "keeping process")]
        cases += [lambda folder: full_disk(folder, upstream, 16 * 2**20)]
        cases += [lambda folder: full_disk(folder, upstream, 2**20)]
        cases += [lambda folder: dead_upstream(folder, upstream)]
        for i, case in enumerate(cases):
            rows.append(await case(root / str(i)))
            print(rows[-1], flush=True)
        compared = [row async for row in garbage(root / "garbage", upstream)]
    return sorted(rows), compared


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rows, compared = asyncio.run(measure(repeats))
    RESULT.write_text(
        "# The proxy when things break\n\n"
        f"`python -m benchmarks.serving.proxy_chaos --repeats {repeats}`, 2026-11-27, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11.\n\n"
        f"{CLIENTS} clients ask as fast as they are answered; «answered» is the upstream's answer, byte for byte. After a "
        "kill the proxy is started again at once; clients without a connection try again. A capture loses an exchange if a "
        "client had its answer and the store has not.\n\n"
        "| what broke | what clients saw | what was kept |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "Garbage, asked for directly and through the proxy:\n\n"
        "| the upstream sends | a client sees directly | through the proxy |\n|---|---|---|\n" + "\n".join(compared) + "\n",
        encoding="utf-8",
    )  # fmt: skip


if __name__ == "__main__":
    main()
