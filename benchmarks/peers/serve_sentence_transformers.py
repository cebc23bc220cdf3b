"""A usual server of an encoder for benchmarks/serving/encoders.py: sentence-transformers behind FastAPI.

    python -m benchmarks.peers.serve_sentence_transformers FOLDER ENCODER --port PORT [--bf16]

Texts that wait are embedded together, up to 32, in a thread; the head is the one that our side serves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer

MOST = 32


class Ask(BaseModel):
    """A request's body."""

    text: str


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bf16", action="store_true")
    wanted = parser.parse_args()
    body = Transformer(str(wanted.encoder), max_seq_length=256)
    model = SentenceTransformer(modules=[body, Pooling(384, "mean"), Normalize()], device="cpu")
    if wanted.bf16:
        model.to(torch.bfloat16)
    head = load_file(wanted.folder / "linear.safetensors")
    labels = json.loads((wanted.folder / "smallfirst.json").read_text())["task"]["labels"]
    waiting: asyncio.Queue[tuple[str, asyncio.Future[str]]] = asyncio.Queue()

    def answer(texts: list[str]) -> list[str]:
        vectors = model.encode(texts, batch_size=MOST, show_progress_bar=False, convert_to_tensor=True).float().numpy()
        return [labels[i] for i in np.argmax(vectors @ head["weights"].T + head["bias"], axis=1)]

    async def run() -> None:
        while True:
            batch = [await waiting.get()]
            while len(batch) < MOST and not waiting.empty():
                batch.append(waiting.get_nowait())
            found = await asyncio.to_thread(answer, [text for text, _ in batch])
            for (_, future), label in zip(batch, found, strict=True):
                future.set_result(label)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/classify")
    async def classify(ask: Ask) -> dict[str, str]:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting.put_nowait((ask.text, future))
        return {"label": await future}

    uvicorn.run(app, host="127.0.0.1", port=wanted.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
