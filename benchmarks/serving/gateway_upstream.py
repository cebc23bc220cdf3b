"""The upstream of gateway.py, which answers at once, so that only the gateway's own latency is measured.

    python -m benchmarks.serving.gateway_upstream

Raw sockets, one fixed answer in OpenAI's form to every POST, keep-alive. Prints its port, then serves until killed.
"""

from __future__ import annotations

import asyncio
import json
import re

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "instant",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A short answer of eight tokens or so.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 24, "completion_tokens": 8, "total_tokens": 32},
}
BODY = json.dumps(ANSWER).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)

EVENTS, EVENT_S = 20, 0.005
"""Events of a stream and the time between two of them, if a stream is asked for."""
_CHUNK = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "word "}}]}
_DATA = b"data: " + json.dumps(_CHUNK).encode() + b"\n\n"
EVENT = b"%x\r\n%s\r\n" % (len(_DATA), _DATA)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Instant(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            whole = end + 4 + (int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0)
            if len(self.buffer) < whole:
                return
            streamed = re.search(rb'"stream": ?true', self.buffer[:whole]) is not None
            self.buffer = self.buffer[whole:]
            if streamed:
                self._event(EVENTS)
            else:
                self.transport.write(REPLY)  # type: ignore[attr-defined]

    def _event(self, left: int) -> None:
        head = STREAM_HEAD if left == EVENTS else b""
        end = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n" if left == 1 else b""
        self.transport.write(head + EVENT + end)  # type: ignore[attr-defined]
        if left > 1:
            asyncio.get_running_loop().call_later(EVENT_S, self._event, left - 1)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
