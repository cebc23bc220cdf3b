"""The tiny seeded model as a GGUF file, run by the real engine: what tests of it share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from smallfirst.models.gguf import GgufConfig, GgufModel
from smallfirst.models.manifest import Manifest
from smallfirst.models.model import Completion, Request, ResponseFormat
from smallfirst.pricing import PriceBook
from smallfirst.tasks.classify import Classify

LABELS = ("card", "card lost", 'été "x"\\')


@pytest.fixture(scope="session", name="tiny_gguf")
def given_gguf(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The tiny model with room for 16,384 tokens, as GGUF file."""
    pytest.importorskip("xllamacpp")
    import transformers

    from smallfirst.models.export_gguf import write_gguf

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.config.max_position_embeddings = 16384
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    task = Classify(name="toy", labels=("a", "b"))
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(model, tokenizer, Manifest(kind="codes", task=task, codes=(1, 2), base=""), path, precision="bf16")
    return path


@pytest.fixture(name="config")
def given_config(tiny_gguf: Path) -> GgufConfig:
    return GgufConfig(path=tiny_gguf, threads=1, context_tokens=2048)


@pytest.fixture(name="model")
def given_model(config: GgufConfig) -> Iterator[GgufModel]:
    model = GgufModel(config, PriceBook(), answers=LABELS)
    yield model
    asyncio.run(model.aclose())


@asynccontextmanager
async def opened(config: GgufConfig, **more: Any) -> AsyncIterator[GgufModel]:
    model = GgufModel(config, PriceBook(), **more)
    try:
        yield model
    finally:
        await model.aclose()


def formed(schema: dict[str, Any] | None, text: str = "where is my card", max_tokens: int = 60) -> Request:
    form = ResponseFormat(kind="json_schema" if schema else "json_object", json_schema=schema or {})
    return Request.ask(text, max_tokens=max_tokens).model_copy(update={"response_format": form})


def ask(model: GgufModel, max_tokens: int = 16) -> Completion:
    return asyncio.run(model.complete(Request.ask("I lost my card", max_tokens=max_tokens)))


def child_of(pid: int) -> int:
    """The newest process whose parent is `pid`."""
    stats = Path("/proc").glob("[0-9]*/stat")
    parents = {int(stat.parent.name): stat.read_text().rsplit(")", 1)[1].split()[1] for stat in stats}
    return max(child for child, parent in parents.items() if parent == str(pid))


def gone_within(pid: int, *, seconds: float) -> bool:
    """True if the process has ended (or waits to be reaped) in that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False
