"""Traces of answers for MLflow: what every stage of the Router did, with scores, tokens, durations and cost.

While a client waits, a trace costs an append to a bounded queue; a thread writes batches to MLflow's tracking store.
Writing a trace of four spans to SQLite takes about 4 ms of this process's interpreter, so the traces a second are
limited and the others are skipped.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from opentelemetry.trace import SpanContext, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from smallfirst.data.redaction import redact
from smallfirst.models.protocol import Completion, Request, RouteStep
from smallfirst.registry.traces import COST, INPUTS, MODEL, OUTPUTS, PROVIDER, TOKENS, TraceSpan
from smallfirst.serving.plugins import Plugin

_log = logging.getLogger("smallfirst.serving")

EXPERIMENT = "smallfirst serve"
"""MLflow experiment that traces are written to, unless another is named."""
MAX_QUEUED = 5_000
"""Answers that wait to be written; further ones are not traced."""
MAX_TRACES_PER_S = 20.0
"""Traces a second in the long run, about 8 % of a core; ten seconds' worth may come at once."""
_BURST_S = 10.0
_WARN_INTERVAL_S = 60.0
_BATCH = 100
_EVERY_S = 1.0
_MAX_BACKOFF_S = 60.0
_CLOSE_TIMEOUT_S = 10.0


_parent: ContextVar[SpanContext | None] = ContextVar("parent", default=None)
"""The client's span that a request belongs to (W3C Trace Context)."""


class TraceContextMiddleware:
    """ASGI middleware that reads `traceparent`, so that the client's trace continues here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).getlist("traceparent")
            sent = {"traceparent": given[0]} if len(given) == 1 else {}
            found = get_current_span(TraceContextTextMapPropagator().extract(sent)).get_span_context()
            _parent.set(found if found.is_valid else None)
        await self._app(scope, receive, send)


class _Answer(NamedTuple):
    id: str
    request: Request
    completion: Completion
    end_ns: int
    parent: SpanContext | None


class TracePlugin(Plugin):
    """Trace the answers of a server."""

    middleware = (Middleware(TraceContextMiddleware),)

    def __init__(
        self,
        write: Callable[[Sequence[TraceSpan]], None],
        *,
        store_bodies: bool = False,
        share: float = 1.0,
        providers: Mapping[str, str] | None = None,
    ) -> None:
        """Trace a `share` of the answers, in [0, 1]; `write` may raise anything.

        `providers` maps names of models to who runs them; all others run here.
        """
        self._write, self._share = write, share
        self._room, self._room_at_s = MAX_TRACES_PER_S * _BURST_S, time.monotonic()
        self._spans = _SpanBuilder(store_bodies, dict(providers or {}))
        self._queue: queue.Queue[_Answer] = queue.Queue(MAX_QUEUED)
        self.n_written = self.n_lost = self.n_skipped = 0
        """Answers that were traced, that were lost to a failure or a full queue, and that came too fast."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="traces", daemon=True)
        self._thread.start()

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        parent = _parent.get()
        if not parent.trace_flags.sampled if parent else self._share < 1 and random.random() >= self._share:
            return
        if not self._has_room():
            self.n_skipped += 1
            return
        try:
            self._queue.put_nowait(_Answer(id, request, completion, time.time_ns(), parent))
        except queue.Full:
            self.n_lost += 1

    async def aclose(self) -> None:
        """Write the queued traces, for a few seconds at most."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, _CLOSE_TIMEOUT_S)

    def _has_room(self) -> bool:
        now_s = time.monotonic()
        refilled = self._room + (now_s - self._room_at_s) * MAX_TRACES_PER_S
        self._room = min(MAX_TRACES_PER_S * _BURST_S, refilled)
        self._room_at_s = now_s
        if self._room < 1:
            return False
        self._room -= 1
        return True

    def _write_all(self) -> None:
        wait_s, warned_at_s, warned = _EVERY_S, 0.0, (0, 0)
        while True:
            last = self._stop.wait(wait_s)
            wait_s = self._write_queued(wait_s)
            now = (self.n_lost, self.n_skipped)
            if now != warned and (last or time.monotonic() - warned_at_s > _WARN_INTERVAL_S):
                warned_at_s, warned = time.monotonic(), now
                _log.warning("%d traces were lost so far, and %d answers came too fast to be traced", *now)
            if last:
                return

    def _write_queued(self, wait_s: float) -> float:
        """Return the seconds to wait before the next attempt: longer each time while the store fails."""
        while answers := self._taken():
            try:
                self._write([span for answer in answers for span in self._spans.build(answer)])
                self.n_written += len(answers)
            except Exception as error:  # no answer fails because of its trace
                self.n_lost += len(answers)
                _log.warning("%d answers were not traced: %s", len(answers), " ".join(str(error).split())[:300])
                return min(2 * wait_s, _MAX_BACKOFF_S)
        return _EVERY_S

    def _taken(self) -> list[_Answer]:
        found: list[_Answer] = []
        while len(found) < _BATCH and not self._queue.empty():
            found.append(self._queue.get_nowait())
        return found


class _SpanBuilder(NamedTuple):
    store_bodies: bool
    providers: Mapping[str, str]

    def build(self, answer: _Answer) -> Iterator[TraceSpan]:
        completion, route = answer.completion, answer.completion.route
        trace_id = answer.parent.trace_id if answer.parent else secrets.randbits(128) or 1
        root_id, start_ns = _new_id(), answer.end_ns - _ns(completion.latency_ms)
        steps = [step for step in route.trail if step.decision != "not asked"] if route else []
        own = {} if steps else self._work(completion, completion.answered_by, completion.cost_usd)
        yield TraceSpan(
            name=(route.task if route else "") or completion.answered_by,
            kind="CHAIN" if steps else "CHAT_MODEL",
            trace_id=trace_id,
            span_id=root_id,
            parent_id=answer.parent.span_id if answer.parent else None,
            start_ns=start_ns,
            end_ns=answer.end_ns,
            attributes={**_facts(answer), **self._bodies(answer), **own},
        )
        last = max((i for i, step in enumerate(steps) if step.model == completion.answered_by), default=None)
        for place, step in enumerate(steps):
            end_ns = min(start_ns + _ns(step.latency_ms), answer.end_ns)
            yield TraceSpan(
                name=step.stage,
                kind="CHAT_MODEL" if step.model else "TASK",
                trace_id=trace_id,
                span_id=_new_id(),
                parent_id=root_id,
                start_ns=start_ns,
                end_ns=end_ns,
                attributes={**_step(step), **self._step_work(completion if place == last else None, step)},
            )
            start_ns = end_ns

    def _step_work(self, answered: Completion | None, step: RouteStep) -> dict[str, Any]:
        if step.model or step.cost_usd:
            return self._work(answered, step.model, step.cost_usd)
        return {}

    def _work(self, answered: Completion | None, model: str, cost_usd: float) -> dict[str, Any]:
        """Return model, tokens and cost as MLflow adds them up; tokens are known of the answer only, not of drafts."""
        read, written = (answered.prompt_tokens, answered.completion_tokens) if answered else (0, 0)
        tokens = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        named = {MODEL: model, PROVIDER: self.providers.get(model, "smallfirst")} if model else {}
        return {**named, **({TOKENS: tokens} if answered else {}), COST: _cost(cost_usd, read, written)}

    def _bodies(self, answer: _Answer) -> dict[str, Any]:
        if not self.store_bodies:
            return {}
        messages = [{"role": m.role, "content": redact(m.content).text} for m in answer.request.messages]
        message = {"role": "assistant", "content": redact(answer.completion.text).text}
        return {INPUTS: {"messages": messages}, OUTPUTS: {"choices": [{"index": 0, "message": message}]}}


def _facts(answer: _Answer) -> dict[str, Any]:
    completion, route = answer.completion, answer.completion.route
    waived = next((step for step in route.trail if step.decision == "not asked"), None) if route else None
    facts = {
        "smallfirst.id": answer.id,
        "smallfirst.answered_by": completion.answered_by,
        "smallfirst.cost_usd": completion.cost_usd,
        "smallfirst.latency_ms": completion.latency_ms,
        "smallfirst.confidence": route.confidence if route else completion.confidence,
        **({"smallfirst.not_asked_usd": waived.cost_usd} if waived else {}),
    }
    if route is not None:
        facts |= {
            "smallfirst.task": route.task,
            "smallfirst.stage": route.stage,
            "smallfirst.why": route.why,
            "smallfirst.certified": route.certified,
            "smallfirst.threshold": route.threshold,
            "smallfirst.audited": route.audited,
        }
    return {name: value for name, value in facts.items() if value is not None}


def _step(step: RouteStep) -> dict[str, Any]:
    known = step.model_dump(exclude_none=True, include={"decision", "why", "score", "threshold", "cost_usd"})
    return {f"smallfirst.{name}": value for name, value in {**known, "latency_ms": step.latency_ms}.items()}


def _cost(total_usd: float, read: int, written: int) -> dict[str, float]:
    """Return MLflow's three sums: an answer's cost divided by tokens, unknown ones counted as read."""
    output_usd = total_usd * written / (read + written) if written else 0.0
    return {"input_cost": total_usd - output_usd, "output_cost": output_usd, "total_cost": total_usd}


def _new_id() -> int:
    return secrets.randbits(64) or 1


def _ns(milliseconds: float) -> int:
    return max(0, int(milliseconds * 1e6))
