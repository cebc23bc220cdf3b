"""Two usual servers for benchmarks/serving/speed.py: transformers behind FastAPI.

    python -m benchmarks.peers.serve_transformers MODEL --port PORT [--batch 32] [--encoder]

The plain one answers a request by one forward pass in a thread, one at a time (the model is not safe for two). With
`--batch` requests wait in a queue: requests that arrive while the last batch runs are padded on the left and read
together, up to this number. Both compute logits of the last position alone and take the likeliest of the code tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer


class Ask(BaseModel):
    """A request's body."""

    prompt: str


class Codes:
    """A model that returns the most likely code token after each prompt."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.codes = torch.tensor(json.loads((folder / "smallfirst.json").read_text())["label_tokens"])

    @torch.inference_mode()
    def answer(self, prompts: Sequence[str]) -> list[int]:
        texts = [self.tokenizer.bos_token + prompt for prompt in prompts]
        inputs = self.tokenizer(texts, add_special_tokens=False, padding=len(texts) > 1, return_tensors="pt")
        logits = self.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        found: list[int] = self.codes[logits[:, self.codes].argmax(dim=-1)].tolist()
        return found


class Labels:
    """A sentence encoder with a linear head that returns the place of the likeliest label."""

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer

        from smallfirst.models.catalog import find_weights
        from smallfirst.models.manifest import read_manifest

        own = folder / "encoder"
        weights = own if own.is_dir() else find_weights(read_manifest(folder).base)
        self.head = load_file(folder / "linear.safetensors")
        modules = [Transformer(str(weights)), Pooling(self.head["weights"].shape[1])]
        self.encoder = SentenceTransformer(modules=modules)

    def answer(self, texts: Sequence[str]) -> list[int]:
        vectors = self.encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        found: list[int] = (vectors @ self.head["weights"].T + self.head["bias"]).argmax(axis=1).tolist()
        return found


def plain(codes: Codes | Labels) -> FastAPI:
    app, lock = FastAPI(), threading.Lock()

    @app.post("/classify")
    def classify(ask: Ask) -> dict[str, int]:
        with lock:
            return {"token": codes.answer([ask.prompt])[0]}

    return app


def batching(codes: Codes | Labels, most: int) -> FastAPI:
    """All that wait together, up to `most`."""
    waiting: asyncio.Queue[tuple[str, asyncio.Future[int]]] = asyncio.Queue()

    async def run() -> None:
        while True:
            batch = [await waiting.get()]
            while len(batch) < most and not waiting.empty():
                batch.append(waiting.get_nowait())
            found = await asyncio.to_thread(codes.answer, [prompt for prompt, _ in batch])
            for (_, answer), token in zip(batch, found, strict=True):
                answer.set_result(token)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/classify")
    async def classify(ask: Ask) -> dict[str, int]:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting.put_nowait((ask.prompt, answer))
        return {"token": await answer}

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--encoder", action="store_true")
    wanted = parser.parse_args()
    codes = Labels(wanted.model) if wanted.encoder else Codes(wanted.model)
    app: Any = batching(codes, wanted.batch) if wanted.batch else plain(codes)
    uvicorn.run(app, host="127.0.0.1", port=wanted.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
