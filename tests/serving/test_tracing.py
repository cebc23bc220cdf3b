"""Answers become traces that MLflow's own client reads back; no answer waits for them or fails with them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.server import WholeModel

from smallfirst.errors import ConfigError
from smallfirst.models.protocol import (
    Completion,
    Model,
    Request,
    Route,
    RouteStep,
)
from smallfirst.registry.runs import client
from smallfirst.registry.traces import TraceSpan, TraceStore, read_traces
from smallfirst.serving import tracing as module
from smallfirst.serving.app import build_app
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.settings import ServeSettings
from smallfirst.serving.tracing import EXPERIMENT, TracePlugin

DOMAIN = RouteStep(
    stage="domain", decision="passed on", why="own", score=0.1, threshold=0.4, cost_usd=0.001, latency_ms=1.0
)
SMALL = RouteStep(
    stage="small",
    decision="passed on",
    why="not sure enough",
    model="toy-small@3",
    score=0.41,
    threshold=0.8,
    cost_usd=0.002,
    latency_ms=20.0,
)
LARGE = RouteStep(stage="large", decision="answered", why="asked last", model="big", cost_usd=0.04, latency_ms=300.0)
WAIVED = RouteStep(stage="large", decision="not asked", why="expected price", model="big", cost_usd=0.04)
ROUTE = Route(
    stage="large",
    why="not sure enough, and the large model was measured to be better",
    certified=False,
    threshold=0.8,
    confidence=0.41,
    task="toy",
    trail=(DOMAIN, SMALL, LARGE),
)
ESCALATED = Completion(
    text="refund",
    answered_by="big",
    latency_ms=321.0,
    cost_usd=0.043,
    prompt_tokens=30,
    completion_tokens=10,
    route=ROUTE,
)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TraceStore:
    """A SQLite store whose tables are made: on a busy machine that alone takes longer than a server waits at last."""
    monkeypatch.setattr(module, "_CLOSE_TIMEOUT_S", 120.0)
    opened = TraceStore(EXPERIMENT)
    opened.write([])
    return opened


class Fixed(WholeModel):
    """Gives one answer to everything."""

    name = "fixed"

    def __init__(self, completion: Completion) -> None:
        self.completion = completion

    async def complete(self, request: Request) -> Completion:
        return self.completion


class Kept:
    """A store in memory, which may be away or slow."""

    def __init__(self) -> None:
        self.spans: list[TraceSpan] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def write(self, spans: Sequence[TraceSpan]) -> None:
        self.gate.wait(20)
        if self.error:
            raise self.error
        self.spans += spans


def ask(
    models: dict[str, Model], tracing: TracePlugin, folder: Path, *bodies: dict[str, Any], **headers: str
) -> list[httpx.Response]:
    """The answers of the real application; what waits to be written is written at the end."""

    async def ask_all() -> list[httpx.Response]:
        ledger = Ledger(folder / "ledger.db")
        app = build_app(models, ledger=ledger, settings=ServeSettings(), plugins=[tracing])
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
            asked = {"messages": [{"role": "user", "content": "my money back"}]}
            found = [await http.post("/v1/chat/completions", json={**asked, **body}) for body in bodies]
        await tracing.aclose()
        ledger.close()
        return found

    return asyncio.run(ask_all())


def answered(tracing: TracePlugin, completion: Completion, n: int = 1) -> None:
    for i in range(n):
        tracing.answered(f"chatcmpl-{i}", Request.ask("my money back"), completion)


def test_a_routed_answer_is_read_back_with_mlflows_own_client(store: TraceStore, tmp_path: Path) -> None:
    tracing = TracePlugin(store.write, providers={"big": "api.example.com"})
    before_ms = time.time() * 1000
    (reply,) = ask({"toy": Fixed(ESCALATED)}, tracing, tmp_path, {"model": "toy"})
    assert (reply.status_code, tracing.n_written, tracing.n_lost) == (200, 1, 0)
    mlflow = client()
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    (found,) = mlflow.search_traces([experiment.experiment_id])
    trace = mlflow.get_trace(found.info.trace_id)
    root, domain, small, large = trace.data.spans
    assert (root.name, root.span_type, root.parent_id) == ("toy", "CHAIN", None)
    assert [(s.name, s.span_type) for s in (domain, small, large)] == [
        ("domain", "TASK"),
        ("small", "CHAT_MODEL"),
        ("large", "CHAT_MODEL"),
    ]
    assert {s.parent_id for s in (domain, small, large)} == {root.span_id}
    assert root.attributes["smallfirst.id"] == reply.json()["id"]
    assert root.attributes["smallfirst.stage"] == "large"
    told = {name.removeprefix("smallfirst."): value for name, value in small.attributes.items()}
    assert told["decision"] == "passed on"
    assert (told["score"], told["threshold"], told["cost_usd"], told["latency_ms"]) == (0.41, 0.8, 0.002, 20.0)
    assert (small.attributes["mlflow.llm.model"], small.attributes["mlflow.llm.provider"]) == (
        "toy-small@3",
        "smallfirst",
    )
    assert (large.attributes["mlflow.llm.model"], large.attributes["mlflow.llm.provider"]) == ("big", "api.example.com")
    tokens = {"input_tokens": 30, "output_tokens": 10, "total_tokens": 40}
    assert large.attributes["mlflow.chat.tokenUsage"] == tokens
    assert "mlflow.chat.tokenUsage" not in small.attributes
    cost = {"input_cost": pytest.approx(0.03), "output_cost": pytest.approx(0.01), "total_cost": 0.04}
    assert large.attributes["mlflow.llm.cost"] == cost
    # What MLflow adds up is what the answer cost and read.
    assert trace.info.token_usage == tokens
    assert trace.info.cost["total_cost"] == pytest.approx(ESCALATED.cost_usd)
    assert str(trace.info.state).endswith("OK")
    assert trace.info.execution_duration == pytest.approx(321, abs=2)
    assert before_ms - 400 < trace.info.timestamp_ms < time.time() * 1000
    # One step after the other, none beyond the whole.
    assert domain.start_time_ns == root.start_time_ns
    assert [s.end_time_ns - s.start_time_ns for s in (domain, small, large)] == [1e6, 2e7, 3e8]
    assert (small.start_time_ns, large.start_time_ns) == (domain.end_time_ns, small.end_time_ns)
    assert large.end_time_ns == root.end_time_ns
    assert "my money back" not in str(trace.to_dict())  # bodies are not stored unless asked for


def test_bodies_are_stored_redacted_where_they_are_asked_for(store: TraceStore, tmp_path: Path) -> None:
    tracing = TracePlugin(store.write, store_bodies=True)
    told = {"messages": [{"role": "user", "content": "my money back, to ann@example.com"}]}
    said = ESCALATED.model_copy(update={"text": "refund to 4111 1111 1111 1111"})
    ask({"toy": Fixed(said)}, tracing, tmp_path, {"model": "toy", **told})
    mlflow = client()
    (found,) = mlflow.search_traces([mlflow.get_experiment_by_name(EXPERIMENT).experiment_id])
    root = mlflow.get_trace(found.info.trace_id).data.spans[0]
    assert root.inputs == {"messages": [{"role": "user", "content": "my money back, to [EMAIL]"}]}
    assert root.outputs == {"choices": [{"index": 0, "message": {"role": "assistant", "content": "refund to [CARD]"}}]}
    (text,) = read_traces(EXPERIMENT)
    assert json.loads(text)["info"]["trace_id"] == found.info.trace_id
    with pytest.raises(ConfigError, match='no experiment "sales"'):
        next(read_traces("sales"))


def test_a_model_without_a_router_is_one_span_and_a_choice_not_made_costs_nothing() -> None:
    store = Kept()
    tracing = TracePlugin(store.write)
    answered(tracing, ESCALATED.model_copy(update={"route": None, "cost_usd": 0.5}))
    kept = SMALL.model_copy(update={"decision": "kept"})
    route = ROUTE.model_copy(update={"stage": "small", "trail": (kept, WAIVED)})
    answered(tracing, ESCALATED.model_copy(update={"route": route, "answered_by": "toy-small@3", "cost_usd": 0.002}))
    asyncio.run(tracing.aclose())
    alone, root, step = store.spans
    assert (alone.name, alone.kind, alone.attributes["mlflow.llm.model"]) == ("big", "CHAT_MODEL", "big")
    assert alone.attributes["mlflow.llm.cost"]["total_cost"] == 0.5
    assert (step.name, step.attributes["mlflow.llm.cost"]["total_cost"]) == ("small", 0.002)
    assert "mlflow.llm.cost" not in root.attributes
    assert root.attributes["smallfirst.not_asked_usd"] == 0.04


def test_a_clients_trace_is_gone_on_with_unless_it_says_no(tmp_path: Path) -> None:
    store, trace = Kept(), "4bf92f3577b34da6a3ce929d0e0e4736"
    models: dict[str, Model] = {"toy": Fixed(ESCALATED)}
    ask(models, TracePlugin(store.write), tmp_path, {"model": "toy"}, traceparent=f"00-{trace}-00f067aa0ba902b7-01")
    assert {span.trace_id for span in store.spans} == {int(trace, 16)}
    assert store.spans[0].parent_id == 0x00F067AA0BA902B7
    before = len(store.spans)
    ask(models, TracePlugin(store.write), tmp_path, {"model": "toy"}, traceparent=f"00-{trace}-00f067aa0ba902b7-00")
    assert len(store.spans) == before
    for nonsense in ("nonsense", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{trace.upper()}-00f067aa0ba902b7-01"):
        ask(models, TracePlugin(store.write), tmp_path, {"model": "toy"}, traceparent=nonsense)
    assert [span.parent_id for span in store.spans[before:] if span.name == "toy"] == [None] * 3


def test_streamed_answers_are_traced_and_refused_ones_are_not(tmp_path: Path) -> None:
    store = Kept()
    replies = ask(
        {"toy": Fixed(ESCALATED)},
        TracePlugin(store.write),
        tmp_path,
        {"model": "toy", "stream": True},
        {"model": "other"},
    )
    assert [reply.status_code for reply in replies] == [200, 404]
    assert [span.name for span in store.spans] == ["toy", "domain", "small", "large"]


def test_a_store_that_is_away_costs_traces_and_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Kept()
    store.error = RuntimeError("the database is gone")
    tracing = TracePlugin(store.write)
    with caplog.at_level(logging.WARNING, "smallfirst.serving"):
        replies = ask({"toy": Fixed(ESCALATED)}, tracing, tmp_path, {"model": "toy"}, {"model": "toy"})
    assert [reply.status_code for reply in replies] == [200, 200]
    assert (tracing.n_written, tracing.n_lost) == (0, 2)
    assert "answers were not traced: the database is gone" in caplog.text


def test_a_slow_store_loses_what_does_not_fit_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 10)
    monkeypatch.setattr(module, "MAX_TRACES_PER_S", 1e6)
    store = Kept()
    store.gate.clear()
    tracing = TracePlugin(store.write)
    answered(tracing, ESCALATED, n=5)
    time.sleep(1.3)  # the thread has taken these and hangs in the store
    answered(tracing, ESCALATED, n=200)
    assert tracing.n_lost == 190
    store.gate.set()
    asyncio.run(tracing.aclose())
    assert (tracing.n_written, len(store.spans)) == (15, 60)


def test_no_more_than_so_many_a_second_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TRACES_PER_S", 2.0)
    store = Kept()
    tracing = TracePlugin(store.write)
    answered(tracing, ESCALATED, n=50)
    assert tracing.n_skipped == 30  # ten seconds' worth came at once
    tracing._room_at_s -= 1.0  # as if a second had passed
    answered(tracing, ESCALATED, n=50)
    asyncio.run(tracing.aclose())
    assert tracing.n_written >= 22
    assert (tracing.n_written + tracing.n_skipped, tracing.n_lost) == (100, 0)


def test_a_share_of_the_answers_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 100_000)
    monkeypatch.setattr(module, "MAX_TRACES_PER_S", 1e6)
    store = Kept()
    tracing = TracePlugin(store.write, share=0.25)
    answered(tracing, ESCALATED, n=8_000)
    asyncio.run(tracing.aclose())
    assert tracing.n_written == pytest.approx(2_000, rel=0.1)
