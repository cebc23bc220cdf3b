"""A bill of 20 mixed requests, computed by hand, equals the ledger: a real server in front of a real HTTP upstream.

Amounts are written as tokens times USD per million. The upstream says what was asked of it in turn; costs of this
machine are busy seconds at $3.60 an hour, half of it used: $0.002 a second.
"""

import json
import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fixtures.certificates import certificate
from fixtures.server import RunningServer, WholeModel
from fixtures.waiting import until

from smallfirst.base.records import parse_record
from smallfirst.ledger.rows import LedgerRow
from smallfirst.models.pricing import Charge, MachinePrice, PriceBook, tokens_of
from smallfirst.models.protocol import Completion, Request, paid
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.model import EndpointModel
from smallfirst.routing.router import Router
from tests.models.remote.test_client import BUSY, CHUNKED, Server, chunk, piece, reply, say_and_hang_up, server

upstream = server
HOSTED = {
    "input_usd_per_mtok": 2,
    "cached_usd_per_mtok": 0.2,
    "cache_write_usd_per_mtok": 2.5,
    "output_usd_per_mtok": 10,
    "reasoning_usd_per_mtok": 12,
    "tiers": {"batch": 0.5, "priority": 2},
}
PRICES = {
    "machines": {"gpu": {"usd_per_hour": 1.26, "utilisation": 0.5}},
    "tokens": {
        "big": HOSTED,
        "euro": {"input_usd_per_mtok": 2.16, "output_usd_per_mtok": 10.8},
        "fee": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1, "usd_per_request": 0.005},
    },
}
M = 1e-6
CHAT = {"messages": [{"role": "user", "content": "Is it?"}], "max_tokens": 100}
ANSWER = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
FRESH = {"prompt_tokens": 1000, "completion_tokens": 10}


class OwnModel(WholeModel):
    """Takes 0.004 s of this machine; it is as sure as the question says."""

    name = "small"

    async def complete(self, request: Request) -> Completion:
        machine = MachinePrice(usd_per_hour=3.6, utilisation=0.5)
        line = machine.charge(self.name, 0.004, tokens_of(7, 1))
        confidence = 0.1 if "unsure" in request.text else 0.9
        return Completion(text="yes", answered_by=self.name, latency_ms=4, confidence=confidence, **paid(line))


OWN = 0.004 * 0.002


def usage(n: int, of: int, **details: int) -> dict[str, Any]:
    """OpenAI's usage of n tokens read and `of` written, with their kinds."""
    written = {"reasoning_tokens": details.pop("reasoning")} if "reasoning" in details else {}
    counts = {"prompt_tokens": n, "completion_tokens": of}
    return {**counts, "prompt_tokens_details": details, "completion_tokens_details": written}


def says(usage: dict[str, Any] | None, *headers: str, **more: Any) -> Callable[[Any], bool]:
    return reply("200 OK", json.dumps({**ANSWER, **({"usage": usage} if usage else {}), **more}).encode(), *headers)


class Desk:
    """A server with the models of the bill, in front of one upstream."""

    def __init__(self, start: Callable[..., RunningServer], upstream: Server) -> None:
        self.upstream, book = upstream, parse_record(PriceBook, PRICES, where="task.yaml")

        def endpoint(model: str, **more: Any) -> EndpointModel:
            config = EndpointConfig(base_url=upstream.url, model=model, timeout_s=30, **more)
            return EndpointModel(config, book, sleep=upstream.no_wait)

        large = endpoint("big")
        names = {"hosted": large, "euro": endpoint("euro"), "fee": endpoint("fee")}
        router = Router(OwnModel(), large, certificate(0.5), name="task")
        gpu = endpoint("our-70b", priced_by="machine", machine="gpu")
        self.running = start(**names, gpu=gpu, billed=endpoint("any", priced_by="billed"), task=router)
        self.ledger = self.running.ledger

    def ask(self, model: str, *deeds: Any, text: str = "Is it?", **more: Any) -> LedgerRow:
        """Ask once and return the row; the upstream does the deeds in turn."""
        self.upstream.deeds = [*deeds] or [reply("500 Not Asked For")]
        body = {**CHAT, "model": model, "messages": [{"role": "user", "content": text}], **more}
        httpx.post(f"{self.running.url}/v1/chat/completions", json=body, timeout=30)
        return self.ledger.rows()[-1]

    def leave(self, *said: bytes) -> LedgerRow:
        """Ask for a stream, read its first piece and leave."""
        left, n = threading.Event(), len(self.ledger.rows())

        def stream(line: Any) -> bool:
            line.sendall(CHUNKED + b"".join(said))
            left.wait(20)
            return False

        self.upstream.deeds = [stream]
        body = {**CHAT, "model": "hosted", "stream": True}
        with httpx.stream("POST", f"{self.running.url}/v1/chat/completions", json=body, timeout=30) as answer:
            next(line for line in answer.iter_lines() if "maybe" in line)
        until(lambda: len(self.ledger.rows()) > n)
        left.set()
        return self.ledger.rows()[-1]


@pytest.fixture
def desk(start: Callable[..., RunningServer], upstream: Server) -> Desk:
    return Desk(start, upstream)


def lines(row: LedgerRow) -> list[tuple[str, str]]:
    return [(line.purpose, line.basis) for line in row.bill]


def test_a_bill_of_twenty_requests_is_the_one_computed_by_hand(desk: Desk) -> None:
    ask, stated = desk.ask, {"smallfirst": {"cost_usd": 0.0123}}
    streamed = (
        piece("maybe"),
        piece("", "stop"),
        chunk({"choices": [], "usage": usage(1000, 20, cached_tokens=900)}),
        chunk("[DONE]"),
    )
    whole = say_and_hang_up(CHUNKED + b"".join(streamed) + b"0\r\n\r\n")
    bill: list[tuple[str, LedgerRow, float | None, list[tuple[str, str]]]] = []

    def item(name: str, row: LedgerRow, usd: float | None, *expected: tuple[str, str]) -> None:
        bill.append((name, row, usd, list(expected)))

    hosted = ("answer", "tokens")
    item("fresh", ask("hosted", says(FRESH)), (1000 * 2 + 10 * 10) * M, hosted)
    cached = usage(1000, 10, cached_tokens=900)
    item("cached", ask("hosted", says(cached)), (100 * 2 + 900 * 0.2 + 10 * 10) * M, hosted)
    written = usage(1000, 10, cached_tokens=500, cache_write_tokens=300)
    item("cache write", ask("hosted", says(written)), (200 * 2 + 500 * 0.2 + 300 * 2.5 + 10 * 10) * M, hosted)
    reasoned = usage(1000, 110, reasoning=100)
    item("reasoning", ask("hosted", says(reasoned)), (1000 * 2 + 10 * 10 + 100 * 12) * M, hosted)
    item("batch", ask("hosted", says(FRESH, service_tier="batch")), (1000 * 2 + 10 * 10) / 2 * M, hosted)
    item("priority", ask("hosted", says(FRESH, service_tier="priority")), (1000 * 2 + 10 * 10) * 2 * M, hosted)
    item("a tier without a price", ask("hosted", says(FRESH, service_tier="flex")), None, hosted)
    item("EUR", ask("euro", says(FRESH)), (1000 * 2 + 10 * 10) * 1.08 * M, hosted)
    item("fee", ask("fee", says(FRESH)), 0.005 + (1000 + 10) * M, hosted)
    billed = ("answer", "billed")
    item("billed in the body", ask("hosted", says({**FRESH, "cost": 0.00042})), 0.00042, billed)
    item("billed in a header", ask("billed", says(FRESH, "x-litellm-response-cost: 0.00077")), 0.00077, billed)
    item("billed by another smallfirst", ask("hosted", says(FRESH, **stated)), 0.0123, billed)
    own, draft = ("answer", "machine time"), ("draft", "machine time")
    item("own CPU", ask("task"), OWN, own)
    escalated = ask("task", says(FRESH), text="unsure: is it?")
    item("escalated", escalated, OWN + (1000 * 2 + 10 * 10) * M, draft, hosted)
    lost = reply("500 Oops")
    item("large lost, draft stands", ask("task", lost, text="unsure: is it?"), OWN, own, ("attempt", "billed"))
    retried = ask("hosted", BUSY, reply("429 Slow Down"), says(FRESH))
    item("retried", retried, (1000 * 2 + 10 * 10) * M, hosted)
    item("failed", ask("hosted", lost), None, ("attempt", "billed"))
    item("refused", ask("hosted", temperature=9), None)
    item("streamed", ask("hosted", whole, stream=True), (100 * 2 + 900 * 0.2 + 20 * 10) * M, hosted)
    # Left after "maybe": 6 // 3 + 4 tokens read are estimated, and 1 written, one a piece.
    item("left early", desk.leave(piece("maybe")), (6 * 2 + 1 * 10) * M, ("attempt", "tokens"))

    for name, row, usd, expected in bill:
        assert lines(row) == expected, name
        if usd is None:
            assert row.cost_usd is None, name
        else:
            assert row.cost_usd == pytest.approx(usd, rel=1e-9, abs=1e-15), name
    assert len(bill) == 20
    known = [usd for *_, usd, _ in bill if usd is not None]
    (total,) = desk.ledger.sums(by=("kind",))
    assert total.cost_usd == pytest.approx(math.fsum(known), rel=1e-9)
    assert {row.id for _, row, *_ in bill} == {row.id for row in desk.ledger.rows()}
    by_name = {name: row for name, row, *_ in bill}
    assert [by_name[name].cached_tokens for name in ("fresh", "cached", "cache write")] == [0, 900, 500]
    assert (by_name["left early"].status, by_name["left early"].estimated) == (499, True)
    flex = by_name["a tier without a price"].bill[0]
    assert (flex.usd, flex.tier, flex.source) == (
        None,
        "flex",
        'no price for "big": under `prices` it has no tier flex',
    )


def test_a_machine_of_ones_own_is_paid_by_its_busy_time(desk: Desk) -> None:
    before = datetime.now(UTC)
    row = desk.ask("gpu", says(FRESH))
    (line,) = row.bill
    assert isinstance(line, Charge)
    assert (line.machine, line.source) == ("gpu", "prices.machines.gpu")
    # $1 an hour of depreciation and 1 kWh at $0.26, half of it used
    assert line.rates == {"hour": pytest.approx(1.26), "utilisation": 0.5}
    assert row.cost_usd == pytest.approx(line.busy_s * 1.26 / 3600 / 0.5, rel=1e-9)
    assert 0 < line.busy_s <= (datetime.now(UTC) - before).total_seconds()
