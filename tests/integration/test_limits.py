"""What a request used is charged and recorded, however it ends: limits bind, and no row of work is without a price."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.certificates import certificate
from fixtures.server import LabelModel, RunningServer, WholeModel, run_server
from fixtures.waiting import until

from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import LedgerRow
from smallfirst.models.pricing import PriceBook, TokenPrice
from smallfirst.models.protocol import Capability, Chunk, Completion, Request
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.model import EndpointModel
from smallfirst.routing.router import Router

PRICES = PriceBook(tokens={"m": TokenPrice(input_usd_per_mtok=1, output_usd_per_mtok=10)})
HELLO: list[Any] = [{"role": "user", "content": "hello small world"}]
N_READ = len("hello small world") // 3 + 4
"""Tokens of the prompt, as they are estimated."""
N_WORDS = 50


class Writer(WholeModel):
    """Writes `N_WORDS` words and then waits for `gate` before the last one; whole answers wait before all."""

    capabilities = frozenset({Capability.STREAM})
    name = "m"

    def __init__(self) -> None:
        self.gate = threading.Event()

    async def complete(self, request: Request) -> Completion:
        return [chunk async for chunk in self.stream(request)][-1].completion  # type: ignore[return-value]

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        for _ in range(N_WORDS):
            await asyncio.sleep(0)
            yield Chunk(text="abc ")
        while not self.gate.is_set():
            await asyncio.sleep(0.005)
        yield Chunk(
            completion=Completion(
                text="abc", answered_by="m", latency_ms=1, cost_usd=0, prompt_tokens=5, completion_tokens=N_WORDS
            )
        )


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[tuple[Writer, EndpointModel]]:
    """An upstream, and a model that asks it at 1 and 10 dollars for a million tokens."""
    writer, ledger = Writer(), Ledger(tmp_path / "upstream.sqlite")
    with run_server({"m": writer}, ledger) as server:
        yield writer, EndpointModel(EndpointConfig(base_url=f"{server.url}/v1", model="m"), PRICES)
        writer.gate.set()
    ledger.close()


def leave(server: RunningServer, key: str = "none", *, after: int = N_WORDS, **values: Any) -> int:
    """Ask and leave after some words of a stream, or after a while; return the status if it is refused."""
    body = {"model": "m", "messages": HELLO, **values}
    head = {"authorization": f"Bearer {key}"}
    url = f"{server.url}/v1/chat/completions"
    try:
        with httpx.stream("POST", url, json=body, headers=head, timeout=20 if body.get("stream") else 0.5) as answer:
            if answer.status_code != 200:
                return answer.status_code
            n_words = 0
            for line in answer.iter_lines():
                n_words += line.count("abc ")
                if n_words >= after:
                    break
    except httpx.ReadTimeout:
        pass
    return 499


def row(server: RunningServer, n: int = 1) -> LedgerRow:
    """The last of `n` rows, once it is written."""
    until(lambda: len(server.ledger.rows()) >= n)
    return server.ledger.rows()[-1]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_early_pays_what_was_written(start, upstream, tmp_path: Path, stream: bool) -> None:
    _, model = upstream
    store = KeyStore(tmp_path / "keys.db")
    _, key = store.create("one", KeyPolicy(tokens_per_minute=100))
    server = start(key_store=store, m=model)
    assert leave(server, key, stream=stream, max_tokens=30_000) == 499
    written = row(server)
    assert written.status == 499
    assert written.prompt_tokens == N_READ
    assert written.completion_tokens == (N_WORDS if stream else 30_000)  # what is not seen may all have been written
    assert written.cost_usd == pytest.approx(N_READ / 1e6 + (written.completion_tokens or 0) / 1e5)
    assert written.estimated
    again = [leave(server, key, stream=stream, max_tokens=30_000) for _ in range(11)]
    assert again == [429] * 11


@pytest.mark.parametrize("stream", [True, False])
def test_drafts_and_a_cut_off_answer_of_a_router_are_both_paid(start, upstream, stream: bool) -> None:
    _, model = upstream
    server = start(m=Router(Unsure(), model, certificate(0.9)))
    leave(server, stream=stream, max_tokens=60)
    written = row(server)
    assert written.completion_tokens == 1 + (N_WORDS if stream else 60)
    assert written.cost_usd is not None
    assert written.cost_usd > 0.25  # the draft


def test_a_model_that_reports_nothing_is_counted_by_its_stream(start) -> None:
    writer = Writer()
    server = start(m=writer)
    leave(server, stream=True)
    written = row(server)
    assert (written.completion_tokens, written.cost_usd, written.estimated) == (N_WORDS, 0, True)


def test_an_answer_that_is_paid_and_not_given_out_is_recorded_with_its_price(start, label) -> None:
    server = start(m=label)
    body = {"model": "m", "messages": HELLO, "response_format": {"type": "json_object"}}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 400
    written = row(server)
    assert (written.prompt_tokens, written.completion_tokens, written.cost_usd) == (4, 1, 0.25)
    assert not written.estimated


def test_an_answer_reserves_its_tokens_and_gives_back_what_it_did_not_write(start, echo, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    _, key = store.create("one", KeyPolicy(tokens_per_minute=10_000))
    server = start(key_store=store, m=echo)
    echo.gate.clear()
    head, url = {"authorization": f"Bearer {key}"}, f"{server.url}/v1/chat/completions"
    body = {"model": "m", "messages": HELLO, "max_tokens": 9_000}
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body, headers=head, timeout=20)))
    asking.start()
    assert echo.started.wait(60)
    assert httpx.post(url, json=body, headers=head).status_code == 429
    assert leave(server, key, stream=True, max_tokens=3_000) == 429
    echo.gate.set()
    asking.join()
    assert answers[0].status_code == 200
    left = int(httpx.get(f"{server.url}/v1/models", headers=head).headers["x-ratelimit-remaining-tokens"])
    assert left >= 10_000 - answers[0].json()["usage"]["total_tokens"]


def test_a_label_reserves_one_token(start, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    _, key = store.create("one", KeyPolicy(tokens_per_minute=1_000))
    server = start(key_store=store, m=Router(OneToken(), None, certificate(0.5)))
    body = {"model": "m", "messages": HELLO, "max_tokens": 2_000}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200


class OneToken(LabelModel):
    max_answer_tokens = 1


class Unsure(LabelModel):
    async def complete(self, request: Request) -> Completion:
        return (await super().complete(request)).model_copy(update={"confidence": 0.1, "route": None})
