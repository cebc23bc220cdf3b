"""An upstream for benchmarks/compatibility/proxy.py: answers openai-python's own tests with samples of their types.

    python -m benchmarks.compatibility.sdk_upstream PORT SAMPLES [RECORDING]

Every answer says by hashes what arrived: `x-seen` of the request's line and body, `x-seen-headers` of its headers but
for those of one connection, and `x-seen-accept-encoding` as it was. A request may ask for another kind of answer in `x-answer`: an error by its status, `gzip`,
`chunked` (pieces with pauses), `large` (a megabyte of random bytes). RECORDING gets every request as a line of JSON.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

CONNECTION = {"host", "connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade", "expect"}
"""Headers of one connection: each side of a proxy has its own."""
LARGE = random.Random(0).randbytes(1_000_000)
PAUSE_S = 0.02


class Asked(NamedTuple):
    """A request as it arrived."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        """A header's value, or an empty string."""
        return next((value for key, value in self.headers if key == name), "")

    @property
    def seen(self) -> list[tuple[str, str]]:
        """What arrived, as headers of the answer."""
        left = {*CONNECTION, "accept-encoding"}
        kept = json.dumps([[name, value] for name, value in self.headers if name not in left])
        return [
            ("x-seen", hashlib.sha256(self.line.encode() + b"\n" + self.body).hexdigest()),
            ("x-seen-headers", hashlib.sha256(kept.encode()).hexdigest()),
            ("x-seen-accept-encoding", self.header("accept-encoding")),
        ]


async def read(reader: asyncio.StreamReader) -> Asked:
    """Read one request. Raise IncompleteReadError at the end of the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    parts = [line.partition(":") for line in head[1:] if line]
    headers = [(name.lower(), value.strip()) for name, _, value in parts]
    asked = Asked(head[0], headers, b"")
    if asked.header("transfer-encoding") == "chunked":
        pieces = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            pieces.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readline()
        return asked._replace(body=b"".join(pieces))
    return asked._replace(body=await reader.readexactly(int(asked.header("content-length") or 0)))


class Upstream:
    """Answers by method, path and whether a stream was asked for."""

    def __init__(self, samples: dict[str, tuple[str, str]], recording: Path | None) -> None:
        self._samples = samples
        self._recording = recording.open("w", encoding="utf-8") if recording else None
        self.n = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while True:
                asked = await read(reader)
                self._record(asked)
                await self._answer(asked, writer)
                if asked.header("connection") == "close":
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    def _record(self, asked: Asked) -> None:
        self.n += 1
        if self._recording:
            row = {"line": asked.line, "headers": asked.headers, "body": base64.b64encode(asked.body).decode()}
            self._recording.write(json.dumps(row) + "\n")
            self._recording.flush()

    async def _answer(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        wanted = asked.header("x-answer")
        kind, body = self._sample(asked)
        status, more = "200 OK" if kind or wanted == "large" else "204 No Content", asked.seen
        if wanted.isdigit():
            status, kind = f"{wanted} Some Error", "application/json"
            body = json.dumps(
                {"error": {"message": f"as asked: {wanted}", "type": "t", "param": None, "code": "c"}}
            ).encode()
            more += [("retry-after", "3"), ("x-should-retry", "false")]
        elif wanted == "large":
            kind, body = "application/octet-stream", LARGE
        elif wanted == "gzip" and kind and "gzip" in asked.header("accept-encoding"):
            body = gzip.compress(body, mtime=0)
            more += [("content-encoding", "gzip")]
        more += [
            ("x-request-id", "req_" + more[0][1][:24]),
            ("openai-processing-ms", "12"),
            ("openai-version", "2020-10-01"),
            ("x-ratelimit-remaining-requests", "9999"),
            ("x-ratelimit-reset-tokens", "6m0s"),
            ("set-cookie", "a=1; path=/; HttpOnly"),
            ("set-cookie", "b=2; path=/"),
        ]
        in_pieces = (wanted == "chunked" and bool(kind)) or kind == "text/event-stream"
        lines = [f"HTTP/1.1 {status}"] + ([f"content-type: {kind}"] if kind else [])
        lines += [f"{name}: {value}" for name, value in more]
        if in_pieces:
            lines.append("transfer-encoding: chunked")
        elif kind:
            lines.append(f"content-length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if in_pieces:
            await self._write_pieces(body, writer)
        elif not asked.line.startswith("HEAD "):
            writer.write(body)
        await writer.drain()

    async def _write_pieces(self, body: bytes, writer: asyncio.StreamWriter) -> None:
        pieces = body.split(b"\n\n") if b"\n\n" in body else [body[at : at + 1000] for at in range(0, len(body), 1000)]
        for number, piece in enumerate(pieces):
            piece += b"\n\n" if b"\n\n" in body and number < len(pieces) - 1 else b""
            if piece:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.sleep(PAUSE_S)
        writer.write(b"0\r\n\r\n")

    def _sample(self, asked: Asked) -> tuple[str, bytes]:
        method, target, _ = asked.line.split(" ")
        path, _, query = target.partition("?")
        key = f"{method} {path}"
        if (_asks_for_stream(asked) or "stream=true" in query) and f"{key} stream" in self._samples:
            key += " stream"
        kind, text = self._samples.get(key, ("application/json", "{}"))
        return kind, text.encode()


def _asks_for_stream(asked: Asked) -> bool:
    if b"stream" not in asked.body:
        return False
    try:
        return bool(json.loads(asked.body).get("stream"))
    except ValueError:
        return b'name="stream"\r\n\r\ntrue' in asked.body


async def main(port: int, samples: dict[str, Any], recording: Path | None) -> None:
    """Serve until killed."""
    upstream = Upstream(samples, recording)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", port, limit=2**20, backlog=500)
    await server.serve_forever()


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(int(given[0]), json.loads(Path(given[1]).read_text()), Path(given[2]) if len(given) > 2 else None))
