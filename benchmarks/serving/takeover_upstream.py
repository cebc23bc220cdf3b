"""The upstream of takeover.py: it answers Banking77's messages from the recording, after the recorded time.

    python -m benchmarks.serving.takeover_upstream      # prints its port, then serves until killed

The answer, its bill and its latency are those that deepseek-v4.1-flash gave on 2026-09-26 (hosted_banking77).
"""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

from aiohttp import web

from benchmarks.datasets import data_folder, read_lines

MODEL = "deepseek-v4.1-flash"
ASKED = "deepseek-chat"
Row = dict[str, Any]


def recorded(split: str) -> list[Row]:
    return list(read_lines(data_folder("hosted_banking77") / f"{split}.jsonl.gz"))


def stream(seed: int = 1) -> list[Row]:
    """Return all rows as they arrive: the training rows in an order drawn by chance, then the test rows likewise."""
    train, test = recorded("train"), recorded("test")
    for rows in (train, test):
        random.Random(seed).shuffle(rows)
    return train + test


def instructions() -> str:
    """Return the application's prompt: the 77 intents in words, as the recording was made."""
    names = sorted({row["label"].replace("_", " ") for row in recorded("train")})
    return (
        "You classify the messages of an online bank's customers by what they want. Answer with one of these intents, "
        f"in exactly these words and nothing else:\n{'; '.join(names)}"
    )


def response(row: Row, *, model: str = MODEL, answer: str | None = None) -> Row:
    text = row["answer"] if answer is None else answer
    message = {"role": "assistant", "content": text, "refusal": None}
    usage = {name: row[name] for name in ("prompt_tokens", "completion_tokens")}
    usage |= {"total_tokens": sum(usage.values()), "prompt_tokens_details": {"cached_tokens": row["cached_tokens"]}}
    choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": 1_790_000_000, "model": model}
    return head | {"choices": choices, "usage": usage}


async def main() -> None:
    by_text = {row["text"]: row for split in ("train", "test") for row in recorded(split)}

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        row = by_text[body["messages"][-1]["content"]]
        await asyncio.sleep(row["latency_ms"] / 1000)
        return web.json_response(response(row))

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
