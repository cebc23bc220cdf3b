"""The files that a chat request passes through, from the ASGI app to the model and the ledger: few, and documented."""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def entered_files(holds: Callable[[Any], bool] | None = None) -> Iterator[set[str]]:
    """Yield the package's files with a function that is called inside the block, in any thread.

    With `holds`, only those in which it is true of an argument or a result.
    """
    files = set[str]()

    def profile(frame: FrameType, event: str, result: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)):
            return
        file = f"smallfirst{code.co_filename.removeprefix(str(PACKAGE))}"
        if file not in files and holds is None and event == "call":
            files.add(file)
        elif file not in files and holds is not None:
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            given = [frame.f_locals.get(name) for name in names] if event == "call" else [result]
            files.update([file] if any(map(holds, given)) else [])

    sys.setprofile(profile)
    threading.setprofile(profile)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


async def test_a_chat_request_passes_through_few_files_and_these_are_documented(tmp_path: Path) -> None:
    ledger, key_store = Ledger(tmp_path / "ledger.db"), KeyStore(tmp_path / "keys.db")
    _, key = key_store.create("desk", KeyPolicy(requests_per_minute=100, tokens_per_minute=100_000))
    router = Router(replay("small", "refund"), replay("large", "card_arrival"), certificate(0.5), name="tickets")
    body = {"model": "tickets", "messages": [{"role": "user", "content": QUESTION}]}
    app = build_app({"tickets": router}, ledger=ledger, settings=ServeSettings(), key_store=key_store)
    headers = {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
        with entered_files() as entered:
            await client.post("/v1/chat/completions", json=body)  # start-up
            entered.clear()
            response = await client.post("/v1/chat/completions", json=body)
    ledger.close()
    assert response.json()["choices"][0]["message"]["content"] == "card_arrival"
    section = DOCUMENT.read_text(encoding="utf-8").partition("\n## ")[0]
    documented = re.findall(r"^\d+\. `(smallfirst/[\w/]+\.py)`", section, re.MULTILINE)
    assert len(documented) <= MAX_FILES
    assert sorted(entered) == sorted(documented)
