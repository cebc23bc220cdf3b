"""A foundation-model API that misbehaves as the last message asks: `attack: NAME`; any other text gets a right answer.

python -m benchmarks.robustness.hostile_upstream PORT
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from typing import Any

from benchmarks.robustness.faults_upstream import stream as send_stream

BOMB = gzip.compress(b'{"a":"' + b"x" * (64 << 20) + b'"}', 6)
ATTACKS = (
    "gzip bomb", "endless body", "endless line", "endless stream", "deep JSON", "no JSON", "half", "closes", "NaN",
    "negative usage", "huge usage", "usage of text", "no choices", "wrong types", "surrogate", "status 500",
    "status 429", "status 200 of HTML", "slow", "header of 1 MiB",
)  # fmt: skip
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


def reply(usage: Any = USAGE, content: Any = "yes", logprob: float | None = None) -> dict[str, Any]:
    """A chat completion as OpenAI sends it, with one thing out of order."""
    tokens = [{"token": "yes", "logprob": logprob, "bytes": None, "top_logprobs": []}]
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    choice |= {} if logprob is None else {"logprobs": {"content": tokens}}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "x", "choices": [choice], "usage": usage}


WHOLE: dict[str, bytes] = {
    "deep JSON": b"[" * 200_000,
    "no JSON": b'{"choices": nonsense',
    "NaN": json.dumps(reply(logprob=float("nan"))).encode(),
    "negative usage": json.dumps(
        reply({"prompt_tokens": -(10**6), "completion_tokens": -5, "total_tokens": 0})
    ).encode(),
    "huge usage": json.dumps(reply({"prompt_tokens": 10**30, "completion_tokens": 1e300, "total_tokens": 1})).encode(),
    "usage of text": json.dumps(reply({"prompt_tokens": "three", "completion_tokens": None})).encode(),
    "no choices": b'{"object": "chat.completion", "choices": []}',
    "wrong types": json.dumps(reply(content=[{"type": "text", "text": 5}])).encode(),
    "surrogate": json.dumps(reply(content="\ud800")).encode(),
    "status 200 of HTML": b"<html>Bad gateway</html>",
}


async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests until the client or the attack ends the connection."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
            body = json.loads(await reader.readexactly(length))
            said = str(body["messages"][-1]["content"])
            name = said.partition("attack: ")[2]
            if not await answer(writer, name if name in ATTACKS else "", stream=bool(body.get("stream"))):
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer(writer: asyncio.StreamWriter, name: str, *, stream: bool) -> bool:
    """Return whether the connection stays open."""
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    if name == "closes":
        return False
    if name in ("status 500", "status 429"):
        writer.write(f"HTTP/1.1 {name[-3:]} X\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{{}}".encode())
    elif name == "gzip bomb":
        writer.write(f"{head}content-encoding: gzip\r\ncontent-length: {len(BOMB)}\r\n\r\n".encode() + BOMB)
    elif name == "header of 1 MiB":
        writer.write(head.encode() + b"x: " + b"a" * (1 << 20) + b"\r\n\r\n")
    elif name.startswith("endless"):
        line = (
            b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 60_000}}]}).encode() + b"\n\n"
        )
        writer.write(head.replace("application/json", "text/event-stream").encode() + b"connection: close\r\n\r\n")
        for _ in range(5_000):  # 300 MB
            writer.write(line if name == "endless stream" else b"x" * 60_000)
            await writer.drain()
        return False
    elif stream and name not in WHOLE:
        await send_stream(
            writer, n_words=3 if name in ("half", "slow") else 30, pause_s=1.0 if name == "slow" else 0.01
        )
        return name != "half"
    else:
        content = WHOLE.get(name) or json.dumps(reply()).encode()
        writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode())
        if name == "slow":
            await asyncio.sleep(3)
        writer.write(content[: len(content) // 2] if name == "half" else content)
        await writer.drain()
        return name != "half"
    await writer.drain()
    return True


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.start_server(connection, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
