"""An upstream for benchmarks/robustness/faults.py: answers at once, or streams a word every 50 ms for five seconds.

python -m benchmarks.robustness.faults_upstream PORT
"""

from __future__ import annotations

import asyncio
import json
import sys

WORDS, PAUSE_S = 100, 0.05
_CHAT = {"id": "x", "object": "chat.completion", "created": 1, "model": "upstream"}
_USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
            body = json.loads(await reader.readexactly(length))
            await (stream if body.get("stream") else _whole)(writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _whole(writer: asyncio.StreamWriter) -> None:
    message = {"role": "assistant", "content": "yes"}
    whole = {**_CHAT, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": _USAGE}
    content = json.dumps(whole).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()


async def stream(writer: asyncio.StreamWriter, *, n_words: int = WORDS, pause_s: float = PAUSE_S) -> None:
    """Stream so many words as OpenAI does, with the usage at the end."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for at in range(n_words + 1):
        last = at == n_words
        choice = {"index": 0, "delta": {} if last else {"content": "yes "}, "finish_reason": "stop" if last else None}
        await _event(writer, {**_CHAT, "object": "chat.completion.chunk", "choices": [choice]})
        await asyncio.sleep(pause_s)
    usage = {**_USAGE, "completion_tokens": n_words, "total_tokens": 3 + n_words}
    await _event(writer, {**_CHAT, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    await _event(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _event(writer: asyncio.StreamWriter, value: object) -> None:
    line = f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()
    writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
    await writer.drain()


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
