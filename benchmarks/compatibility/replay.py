"""Send recorded requests directly to an upstream and through a proxy, and compare every byte of both ways.

The upstream (`sdk_upstream`) says in each answer by hashes what arrived there, so equal answers mean equal requests too.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.compatibility.sdk_upstream import CONNECTION

KINDS = ("", "", "", "", "gzip", "chunked", "400", "401", "429", "500", "503", "large")
"""What requests ask the upstream for: most of them its usual answer."""
AT_ONCE = 8


class Answer(NamedTuple):
    """An answer as it came."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes
    framing: str
    first_s: float
    """From the request's last byte to the answer's first."""
    pieces: int
    """Chunks in which the body came; 0 if it was not chunked."""


class Request(NamedTuple):
    """A recorded request with what it asks the upstream for."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes
    in_pieces: bool

    def bytes(self, port: int) -> bytes:
        """The request for a server at `port`, which closes the connection afterwards."""
        own = [("host", f"127.0.0.1:{port}"), ("connection", "close")]
        if self.in_pieces:
            own.append(("transfer-encoding", "chunked"))
        elif self.body or self.line.startswith(("POST", "PUT", "PATCH")):
            own.append(("content-length", str(len(self.body))))
        head = "\r\n".join([self.line, *(f"{name}: {value}" for name, value in [*own, *self.headers]), "", ""])
        return head.encode("latin-1") + (self._chunked() if self.in_pieces else self.body)

    def _chunked(self) -> bytes:
        cuts = [self.body[at : at + 700] for at in range(0, len(self.body), 700)]
        return b"".join(b"%x\r\n%b\r\n" % (len(cut), cut) for cut in cuts) + b"0\r\n\r\n"


def requests_of(recording: Path, seed: int = 0) -> list[Request]:
    """The recorded requests in a random order, each asking for one of KINDS; each tenth body is sent in pieces."""
    draw = random.Random(seed)
    rows = [json.loads(line) for line in recording.open(encoding="utf-8")]
    draw.shuffle(rows)
    return [_request(row, draw) for row in rows]


def _request(row: dict[str, Any], draw: random.Random) -> Request:
    headers = [(name, value) for name, value in row["headers"] if name not in CONNECTION]
    kind = draw.choice(KINDS)
    body = base64.b64decode(row["body"])
    return Request(row["line"], headers + [("x-answer", kind)] * bool(kind), body, bool(body) and draw.random() < 0.1)


async def send(request: Request, port: int) -> Answer:
    """Send a request over a connection of its own and read the answer to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        writer.write(request.bytes(port))
        await writer.drain()
        began = time.perf_counter()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        first_s = time.perf_counter() - began
        rest = await reader.read(-1)
    finally:
        writer.close()
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in head[1:] if line)]
    given = dict(headers)
    framing = (
        "transfer-encoding" if "transfer-encoding" in given else "content-length" if "content-length" in given else ""
    )
    pieces = list(_pieces(rest)) if framing == "transfer-encoding" else []
    body = b"".join(pieces) if framing == "transfer-encoding" else rest
    return Answer(head[0].split(" ")[1], headers, body, framing, first_s, len(pieces))


def _pieces(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, body = body.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            return
        yield body[:n]
        body = body[n + 2 :]


class Compared(NamedTuple):
    """What a comparison found."""

    n: int
    n_bytes: int
    kinds: Counter[str]
    differences: Counter[str]
    """By what differs: `status`, `body`, or `header NAME`."""
    examples: dict[str, str]


async def compare(requests: Sequence[Request], direct: int, proxied: int) -> Compared:
    """Send every request to both ports and compare the answers."""
    found = Compared(len(requests), 0, Counter(), Counter(), {})
    places = asyncio.Semaphore(AT_ONCE)
    n_bytes = 0

    async def one(request: Request) -> None:
        nonlocal n_bytes
        async with places:
            ours, theirs = await send(request, proxied), await send(request, direct)
        n_bytes += len(request.body) + len(theirs.body)
        found.kinds[_kind(request, theirs)] += 1
        for what, example in _differences(ours, theirs):
            found.differences[what] += 1
            found.examples.setdefault(what, f"{request.line}: {example}")

    await asyncio.gather(*map(one, requests))
    return found._replace(n_bytes=n_bytes)


def _kind(request: Request, answer: Answer) -> str:
    streamed = any(name == "content-type" and value == "text/event-stream" for name, value in answer.headers)
    kind = (
        "stream"
        if streamed
        else answer.status
        if answer.status[0] in "45"
        else dict(request.headers).get("x-answer", "")
    )
    return kind or "plain"


def _differences(ours: Answer, theirs: Answer) -> Iterator[tuple[str, str]]:
    for name in ("status", "body", "framing"):
        if (a := getattr(ours, name)) != (b := getattr(theirs, name)):
            yield name, f"{a[:200]!r}, directly {b[:200]!r}"
    if ours.pieces != theirs.pieces:
        yield "pieces of a stream", f"{ours.pieces}, directly {theirs.pieces}"
    left = {"connection"}
    for name in dict.fromkeys(name for name, _ in [*ours.headers, *theirs.headers]):
        a = [value for key, value in ours.headers if key == name]
        b = [value for key, value in theirs.headers if key == name]
        if a != b and name not in left:
            yield f"header {name}", f"{a}, directly {b}"
    a_order, b_order = ([n for n, _ in one.headers if n not in left] for one in (ours, theirs))
    if sorted(a_order) == sorted(b_order) and a_order != b_order:
        yield "order of headers", f"{a_order}, directly {b_order}"


if __name__ == "__main__":
    import sys

    result = asyncio.run(
        compare(requests_of(Path(sys.argv[1]))[: int(sys.argv[4])], int(sys.argv[2]), int(sys.argv[3]))
    )
    print(result)
