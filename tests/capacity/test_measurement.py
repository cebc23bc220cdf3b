"""A closed loop against a server that counts, and rates from an evaluation."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.capacity.measurement import from_evaluation, measure
from smallfirst.capacity.simulation import Rates
from smallfirst.data.dataset import Message
from smallfirst.errors import ModelError


class Server:
    """Answers after a moment, and notes what was asked and how many at once."""

    def __init__(self, status: int = 200) -> None:
        self.status, self.under_way, self.most, self.asked, self.keys = status, 0, 0, list[str](), set[str]()

    async def answer(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.asked.append(f"{body['model']}: {body['messages'][0]['content']}")
        self.keys.add(request.headers.get("Authorization", ""))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.005)
        self.under_way -= 1
        return web.json_response({"error": "of this server"}, status=self.status)


async def loaded(*servers: Server, levels: tuple[int, ...]) -> tuple[Rates, int]:
    urls, runners = [], []
    for server in servers:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", server.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
    texts = [(Message(role="user", content=text),) for text in ("a", "b")]
    try:
        return await measure(urls, "t", texts, key="secret", seconds=0.05, levels=levels)
    finally:
        for runner in runners:
            await runner.cleanup()


def test_each_level_has_so_many_requests_under_way_at_each_server() -> None:
    first, second = Server(), Server()
    rates, n = asyncio.run(loaded(first, second, levels=(1, 3)))
    assert (first.most, second.most) == (3, 3)
    assert set(first.asked) | set(second.asked) == {"t: a", "t: b"}
    assert first.keys == {"Bearer secret"}
    assert set(rates.per_s) == {1, 3}
    assert n <= len(first.asked) + len(second.asked)  # what warmed up does not count
    assert sum(rates.work) / len(rates.work) > 0


def test_a_server_that_refuses_is_no_measurement() -> None:
    with pytest.raises(ModelError, match="answered 503 under load"):
        asyncio.run(loaded(Server(503), levels=(2,)))


def test_rates_of_an_evaluation() -> None:
    rows = [evaluated_row(str(i), "x", "x") for i in range(100)]
    found = from_evaluation(evaluation_of(rows, probes_ms=(4.0, 6.0), requests_per_s=800.0))
    assert found is not None
    assert found.rates.per_s == {1: 200.0, 64: 800.0}
    assert found.rates.slots == 4
    assert from_evaluation(evaluation_of(rows)) is None
