"""The files that a chat request passes through, from the ASGI app to the model and the ledger: few, and documented."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from fixtures.certificates import certificate

import smallfirst
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import RecordedAnswer, RecordingHeader, ReplayModel, request_key
from smallfirst.routing.router import Router
from smallfirst.serving.app import build_app
from smallfirst.serving.settings import ServeSettings

PACKAGE = Path(smallfirst.__file__).parent
DOCUMENT = PACKAGE.parent / "docs" / "design" / "request_path.md"
MAX_FILES = 17
QUESTION = "where is my card"


def replay(name: str, answer: str) -> ReplayModel:
    """A model with one recorded answer."""
    recorded = RecordedAnswer(
        key=request_key(Request.ask(QUESTION)),
        text=QUESTION,
        answer=answer,
        prompt_tokens=4,
        completion_tokens=1,
        latency_ms=1.0,
        cost_usd=0.001,
    )
    header = RecordingHeader(model=name, made_at="2026-01-01", smallfirst="0", n=1)
    return ReplayModel(header, [recorded], path="recording.jsonl")


class EnteredFiles:
    """The package's files with a function that is called inside the context, also in threads that start there."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def __enter__(self) -> EnteredFiles:
        sys.setprofile(self._profile)
        threading.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(str(PACKAGE)):
            self.files.add(f"smallfirst/{Path(file).relative_to(PACKAGE)}")


def test_a_chat_request_passes_through_few_files_and_these_are_documented(tmp_path: Path) -> None:
    ledger, key_store = Ledger(tmp_path / "ledger.db"), KeyStore(tmp_path / "keys.db")
    _, key = key_store.create("desk", KeyPolicy(requests_per_minute=100, tokens_per_minute=100_000))
    router = Router(replay("small", "refund"), replay("large", "card_arrival"), certificate(0.5), name="tickets")
    body = {"model": "tickets", "messages": [{"role": "user", "content": QUESTION}]}

    async def ask() -> tuple[set[str], httpx.Response]:
        app = build_app({"tickets": router}, ledger=ledger, settings=ServeSettings(), key_store=key_store)
        headers = {"authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            with EnteredFiles() as entered:
                await client.post("/v1/chat/completions", json=body)  # start-up
                entered.files.clear()
                response = await client.post("/v1/chat/completions", json=body)
        return entered.files, response

    entered, response = asyncio.run(ask())
    ledger.close()
    assert response.json()["choices"][0]["message"]["content"] == "card_arrival"
    section = DOCUMENT.read_text(encoding="utf-8").partition("\n## ")[0]
    documented = re.findall(r"^\d+\. `(smallfirst/[\w/]+\.py)`", section, re.MULTILINE)
    assert len(documented) <= MAX_FILES
    assert sorted(entered) == sorted(documented)
