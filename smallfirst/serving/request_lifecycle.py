"""One request for an answer, from its first byte to its ledger row: admission, deadline, disconnects and failures."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector
from starlette.types import Receive, Scope, Send

from smallfirst.ledger.ledger import Ledger, LedgerUnavailable
from smallfirst.ledger.rows import LedgerRow, attempt_rows
from smallfirst.models.pricing import charges_json, known_usd, stated, tokens_of
from smallfirst.models.protocol import (
    Bill,
    Completion,
    Model,
    Request,
    Route,
    estimate_prompt_tokens,
    max_answer_tokens,
    probed_model,
    unfinished,
    unless_answered,
)
from smallfirst.models.remote.client import CircuitOpenError
from smallfirst.serving.admission import Admission, cancel_on_disconnect, read_body
from smallfirst.serving.auth import TokenReservation, caller_owner, current_caller
from smallfirst.serving.errors import ClientDisconnected, log_error, model_not_found, server_stopping, to_api_error
from smallfirst.serving.plugins import PluginGroup, ServedModels
from smallfirst.serving.settings import ServeSettings
from smallfirst.serving.wire import MAX_TOKENS, ResponseBuilder, certified, confidence, raw_headers, sse_event

_log = logging.getLogger("smallfirst.serving")

ERROR_SEND_TIMEOUT_S = 5.0
"""Longest time that a client may take to receive an error."""


FRESH_S = 1.0
"""Seconds for which a result is reused: probes must not become the load."""
PROBE_TIMEOUT_S = 10.0
"""Seconds after which a model that has not answered is not ready."""

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
"""Upper ends of the histograms' buckets, in seconds: from a scored label on a quiet machine to the default deadline."""


class Metrics:
    """The metrics of one server."""

    def __init__(self, collectors: Iterable[Collector] = ()) -> None:
        self._registry = registry = CollectorRegistry()
        for collector in collectors:
            registry.register(collector)
        self._requests = Counter(
            "smallfirst_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "smallfirst_request_seconds",
            "From the request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "smallfirst_first_token_seconds",
            "From the request to the first text of its answer, by the stage that answered.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "smallfirst_tokens", "Tokens of answers, by stage.", ["stage", "kind"], registry=registry
        )

    def add_gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        Gauge(name, what, registry=self._registry).set_function(value)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_answer(self, stage: str, completion: Completion, first_token_s: float) -> None:
        """Count an answer whose first text came after `first_token_s` seconds."""
        self._first.labels(stage).observe(first_token_s)
        self._tokens.labels(stage, "prompt").inc(completion.prompt_tokens)
        self._tokens.labels(stage, "completion").inc(completion.completion_tokens)

    def render(self) -> str:
        return generate_latest(self._registry).decode()


class Readiness:
    """Whether the models and the ledger of a server would answer: each does a tiny piece of real work.

    Models that cost money are never probed, and an upstream that is down does not make this server unready.
    """

    def __init__(self, models: Mapping[str, Model], ledger_ready: Callable[[], Awaitable[None]]) -> None:
        self._models, self._ledger_ready = models, ledger_ready
        self.stopping = False
        """Set to True, the server is not ready at once."""
        self._last: tuple[float, asyncio.Task[bool]] | None = None

    async def check(self) -> bool:
        """Return True if all would answer; the log names what would not."""
        if self.stopping:
            return False
        now = time.monotonic()
        if self._last is None or (self._last[1].done() and now - self._last[0] > FRESH_S):
            self._last = (now, asyncio.create_task(self._probe_all()))
        return await asyncio.shield(self._last[1])

    async def _probe_all(self) -> bool:
        probes = [("the ledger", self._ledger_ready)]
        for name in list(self._models):
            model = self._models.get(name)  # names may go while the server runs
            if model is not None and (probed := probed_model(model)) is not None:
                probes.append((name, probed.ready))
        return all(await asyncio.gather(*(_answers(*probe) for probe in probes)))


async def _answers(name: str, probe: Callable[[], Awaitable[None]]) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await probe()
    except CircuitOpenError:
        return True  # another machine is down, and it is down for every server: what is answered here still is
    except Exception as error:
        _log.warning("not ready: %s: %s", name, " ".join(str(error).split())[:300] or type(error).__name__)
        return False
    return True


class AppContext(NamedTuple):
    """What all routes of one server share."""

    models: ServedModels
    ledger: Ledger
    settings: ServeSettings
    admission: Admission
    metrics: Metrics
    readiness: Readiness
    plugins: PluginGroup
    usd_per_token: dict[str, float]
    """Of the latest answer under each served name; used where a model that was cut off does not report its cost."""


@dataclass
class ApiCall:
    """One request and its response."""

    app: AppContext
    scope: Scope
    send: Send
    response: ResponseBuilder
    received_at: datetime
    owner: str = field(default_factory=caller_owner)
    """Owner of the caller's key, by which limits are shared; empty where no key is asked for."""
    started_s: float = field(default_factory=time.perf_counter)
    request: Request | None = None
    """Once it is parsed."""
    bill: Bill = field(default_factory=Bill)
    """What models did for the request without returning an answer, and requests to endpoints on its behalf."""
    answers: list[Completion] = field(default_factory=list)
    first_token_s: float | None = None
    status: int = 0
    begun: bool = False
    """True once the head was sent."""
    recorded: bool = False

    def accept(self, served_name: str, request: Request) -> tuple[Model, Request]:
        """Note the parsed request; return the model that it is for, and it. Raise ApiError 404 if none is served."""
        self.response = self.response._replace(served_name=served_name)
        self.request = request.model_copy(update={"bill": self.bill, "tenant": self.owner or request.tenant})
        found = self.app.models.get(served_name)
        if found is None:
            raise model_not_found(served_name, self.app.models.own_names())
        return found, self.request

    @asynccontextmanager
    async def admitted(self, model: Model, request: Request) -> AsyncIterator[TokenReservation]:
        """Reserve tokens for the prompt and the longest answer.

        Raise ApiError 429 or 503 if there is no room. Without an answer the prompt counts, and what was written.
        """
        n_read = estimate_prompt_tokens(request)
        n_written = min(request.max_tokens, max_answer_tokens(model) or MAX_TOKENS)
        with self.app.admission.prompt_tokens.hold(self.owner, n_read):
            async with current_caller().quota.tokens(n_read + n_written) as reservation:
                try:
                    yield reservation
                except BaseException:
                    used = self.used()
                    reservation.used = max(n_read, used.prompt_tokens + used.completion_tokens) if used else n_read
                    raise

    def turn(self) -> AbstractAsyncContextManager[None]:
        return self.app.admission.turns.turn(self.owner)

    def asking(self, request: Request, n_written: Callable[[], int]) -> AbstractContextManager[None]:
        """Estimate the usage of a model that is cut off and does not report it itself."""
        n_reports = len(self.bill.unfinished)

        def used(error: BaseException) -> Completion | None:
            written = n_written()
            refused = isinstance(error, Exception) and not (self.begun and written)
            if len(self.bill.unfinished) > n_reports or refused:
                return None
            read = estimate_prompt_tokens(request)
            cost_usd = self.app.usd_per_token.get(self.response.served_name, 0.0) * (read + written)
            name, tokens = self.response.served_name, tokens_of(read, written)
            return unfinished(stated(name, cost_usd, tokens=tokens, source="the latest answer's cost a token"))

        return unless_answered(self.bill, used)

    def used(self) -> Completion | None:
        """Return the sum of what models did so far; None if none was asked."""
        work = [*self.answers, *self.bill.unfinished]
        return combine(work) if work else None

    async def record(self, completion: Completion) -> None:
        """Write the answer to the ledger, count it and tell the plugins. Raise LedgerUnavailable."""
        self.recorded = True
        if n_tokens := completion.prompt_tokens + completion.completion_tokens:
            self.app.usd_per_token[self.response.served_name] = completion.cost_usd / n_tokens
        await self.write(self._answer_row(completion))
        stage = self.response.stage(completion)
        self.app.metrics.count_answer(stage, completion, self.first_token_s or self.elapsed_s)
        assert self.request is not None
        self.app.plugins.answered(self.response.id, self.request, completion)

    async def write(self, row: LedgerRow) -> None:
        """Write the row of the request together with its attempts at endpoints. Raise LedgerUnavailable."""
        attempts = attempt_rows(row.id, self.bill.attempts) if self.bill.attempts else ()
        await self.app.ledger.append_async(*attempts, row)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started_s

    async def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.begun = status, True
        await self.send({"type": "http.response.start", "status": status, "headers": raw_headers(headers)})

    async def send_body(self, content: bytes, *, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": content, "more_body": more})

    async def send_json(
        self, status: int, value: dict[str, Any], headers: Mapping[str, str], *, answer: Completion | None = None
    ) -> None:
        """Send a whole response; the answer in it is recorded before its client has anything of it."""
        content = json.dumps(value, allow_nan=False).encode()
        head = {"content-type": "application/json", "content-length": str(len(content))}
        if answer is not None:
            await self.record(answer)
        await self.send_head(status, {**head, **headers})
        await self.send_body(content, more=False)

    def row(self, *, status: int, latency_ms: float) -> LedgerRow:
        messages = messages_json(self.request) if self.request else None
        return LedgerRow(
            id=self.response.id,
            at=self.received_at,
            served_name=self.response.served_name[:128],
            status=status,
            latency_ms=latency_ms,
            owner=self.owner,
            request_sha256=None if messages is None else hashlib.sha256(messages.encode()).hexdigest(),
            request_text=messages if self.app.settings.store_bodies else None,
        )

    def _answer_row(self, completion: Completion) -> LedgerRow:
        route = completion.route
        row = self.row(status=200, latency_ms=completion.latency_ms)
        used = combine([completion, *self.bill.unfinished]) if self.bill.unfinished else completion
        return row.model_copy(
            update={
                "answered_by": completion.answered_by,
                "stage": self.response.stage(completion),
                "certified": certified(completion),
                "confidence": confidence(completion),
                "threshold": route.threshold if route else None,
                **usage_columns(used),
                "first_token_ms": None if self.first_token_s is None else self.first_token_s * 1000,
                "answer_text": completion.text if self.app.settings.store_bodies else None,
                **(route_columns(route) if route else {}),
            }
        )


Handler = Callable[[ApiCall, bytes], Coroutine[Any, Any, None]]
"""Read the body, ask the model, send and record the answer. Raise what `to_api_error` knows."""


class ModelEndpoint:
    """The ASGI application of one route that asks a model."""

    def __init__(self, app: AppContext, route: str, handle: Handler) -> None:
        self._app, self._route, self._handle = app, route, handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        now, app = datetime.now(UTC), self._app
        call = ApiCall(app, scope, send, ResponseBuilder(scope["smallfirst.id"], int(now.timestamp()), ""), now)
        try:
            async with asyncio.timeout(app.settings.request_timeout_s):
                if app.readiness.stopping:
                    raise server_stopping()
                await app.ledger.check()
                body = await read_body(scope, receive, max_bytes=app.settings.max_body_bytes)
                with app.admission.places.hold(call.owner):
                    await cancel_on_disconnect(self._handle(call, body), receive)
        except asyncio.CancelledError:
            # Not raised again: the task ends here, and the web server would log it as a bug.
            await self._fail(call, server_stopping())
        except Exception as error:
            await self._fail(call, error)
        app.metrics.count_request(self._route, call.status, call.elapsed_s)

    async def _fail(self, call: ApiCall, error: Exception) -> None:
        """Record the failure first, then send the error body, or an error event in a stream that has begun."""
        id, refusal = call.response.id, to_api_error(error, call.response.served_name)
        log_error(id, call.response.served_name, refusal, error)
        if not call.recorded:
            call.recorded = True
            row, used = call.row(status=refusal.status, latency_ms=call.elapsed_s * 1000), call.used()
            columns = {"error_code": refusal.code, **(usage_columns(used) if used else {})}
            try:
                await call.write(row.model_copy(update=columns))
            except LedgerUnavailable as away:  # the client still gets its error
                _log.warning("%s: the ledger did not take a row: %s", id, away)
            except Exception:
                _log.exception("%s: the ledger did not take a row", id)
        if not isinstance(error, ClientDisconnected):
            # Without the timeout a client that has stopped reading would hold this up for ever.
            with suppress(TimeoutError):
                async with asyncio.timeout(ERROR_SEND_TIMEOUT_S):
                    if call.begun:
                        await call.send_body(sse_event(refusal.body), more=False)
                    else:
                        await call.send_json(refusal.status, refusal.body, refusal.headers)
        call.status = refusal.status


def messages_json(request: Request) -> str:
    """Return the messages as canonical JSON, so that equal questions have equal hashes in the ledger."""
    turns = [[message.role, message.content] for message in request.messages]
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":"))


def usage_columns(used: Completion) -> dict[str, object]:
    """Return the columns of a ledger row that say what was used."""
    return {
        "prompt_tokens": used.prompt_tokens,
        "cached_tokens": used.cached_tokens,
        "completion_tokens": used.completion_tokens,
        "cost_usd": known_usd(used.charges),
        "charges": charges_json(used.charges),
        "estimated": used.estimated,
    }


def route_columns(route: Route) -> dict[str, object]:
    """Return the columns of a ledger row that say how the answer was chosen."""
    # What was said is kept, if at all, with the bodies, which are redacted and expire.
    words: Any = {"read": {"__all__": {"words"}}}
    trail = [step.model_dump(exclude_defaults=True, exclude=words) for step in route.trail]
    return {
        "task": route.task or None,
        "guarantee": route.guarantee or None,
        "trail": json.dumps(trail, ensure_ascii=False, separators=(",", ":")) if trail else None,
        "audit_share": route.audit_share,
        "audit_weight": route.audit_weight,
        "audited": route.audited,
    }


def combine(work: Sequence[Completion]) -> Completion:
    """Return the first piece of work for a request with the cost and tokens of all."""
    if len(work) == 1:
        return work[0]
    return work[0].with_charges(
        [charge for one in work for charge in one.charges],
        prompt_tokens=sum(one.prompt_tokens for one in work),
        completion_tokens=sum(one.completion_tokens for one in work),
        estimated=any(one.estimated for one in work),
    )
