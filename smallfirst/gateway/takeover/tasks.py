"""All learnt tasks behind one proxy: it follows `takeovers.json`, finds the task of a request, and answers it small."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from smallfirst.gateway.assembly import read_response
from smallfirst.gateway.credentials import VALID_FOR_S, Credentials
from smallfirst.gateway.http import GatewayRequest, GatewayResponse, UpstreamAnswer
from smallfirst.gateway.takeover.answerable import route_of, why_not
from smallfirst.gateway.takeover.background import BackgroundTasks
from smallfirst.gateway.takeover.matching import TaskMatcher
from smallfirst.gateway.takeover.takeovers import TakeOver, TakeOvers
from smallfirst.gateway.takeover.upstream import Asked
from smallfirst.gateway.takeover.wire import Reply, Usage, new_id
from smallfirst.gateway.upstreams import UpstreamFailed, Upstreams
from smallfirst.models.protocol import Completion
from smallfirst.pricing.prices import PriceBook
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.openai.responses import system_fingerprint
from smallfirst.serving.response_head import raw_headers
from smallfirst.traffic.bodies import kept_body
from smallfirst.traffic.messages import Prompt, read_prompt

if TYPE_CHECKING:  # a proxy without learnt tasks needs no models
    from smallfirst.gateway.takeover.live_task import LiveTask, Ruling

_log = logging.getLogger("smallfirst.takeover")
POLL_INTERVAL_S = 1.0
"""Seconds between two looks at `takeovers.json`."""
MAX_WAITING = 10_000
"""Requests that were passed and whose answer is still awaited; older ones are forgotten."""
Json = dict[str, Any]


class _Missed(NamedTuple):
    """A request that resembles a task's wording and does not follow it."""

    task: LiveTask
    tenant: str


class TakenOverTasks:
    """The `LocalAnswers` of a proxy."""

    def __init__(
        self,
        ledger: Ledger,
        file: TakeOvers | None = None,
        *,
        prices: PriceBook | None = None,
        poll_interval_s: float = POLL_INTERVAL_S,
        credential_valid_for_s: float = VALID_FOR_S,
        one_tenant: Callable[[], bool] = lambda: True,
    ) -> None:
        """Follow the file, by default that of the state folder; `prices` are the upstream's. Closes the ledger.

        `one_tenant` returns True if there is one at most, whose evidence then counts for all.
        """
        self._prices, self._one_tenant = prices, one_tenant
        self.credentials = Credentials(ledger.shared, valid_for_s=credential_valid_for_s)
        self._ledger, self._file, self._interval_s = ledger, file or TakeOvers(), poll_interval_s
        self.tasks: dict[str, LiveTask] = {}
        self._matcher = TaskMatcher({})
        self._failed: dict[str, TakeOver] = {}
        self._waiting: dict[str, Ruling | _Missed] = {}
        self._background = BackgroundTasks()
        self._looked_at, self._stamp = time.monotonic(), 0

    async def start(self) -> None:
        """Load what the file names; a task that cannot be loaded is logged, and its requests pass."""
        self._stamp = self._file.stamp
        await self.credentials.start()
        self._use(await asyncio.to_thread(self._loaded))

    async def answer(self, request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
        """Return the small model's certified answer, or None: the request is passed on."""
        path, raw = request.path, request.json()
        route = route_of(path)
        if route is None or raw is None:
            return None
        self._look_at_file()
        if not self.tasks:
            return None
        prompt = read_prompt(path, raw)
        if prompt is None:
            return None
        body = raw
        if self._matcher.may_find(prompt):
            body = kept_body(raw)
            prompt = read_prompt(path, body) or prompt
        found = self._matcher.find(prompt)
        near = None if found else self._matcher.near(prompt)
        target = upstreams.own_target(request, prompt.model) if found or near else None
        if target is None:
            return None
        if found is None:
            self._await_upstream(request, _Missed(self.tasks[near or ""], request.tenant))
            return None
        task = self.tasks[found.task]
        closed = found.answer_format.kind == "label"
        if why_not(route, raw, closed=closed) or (not closed and body != raw):
            return None  # a redacted value must not stand in an answer
        again, may_ask = _asking_again(request, upstreams), upstreams.accepts(request, target, prompt.model)
        asked = Asked(
            request.id, path, route, raw, found.text, again, found.answer_format, request.tenant, may_ask=may_ask
        )
        ruling = await task.rule(asked)
        called = [call.name for call in ruling.answer.tool_calls] if ruling.answer else []
        if (
            ruling.small is None
            or ruling.answer is None
            or why_not(route, raw, _written(ruling), tools=called, closed=closed)
        ):
            self._await_upstream(request, ruling)
            return None
        return await self._reply(ruling._replace(asked=asked._replace(id=new_id(route))))

    def find(self, prompt: Prompt) -> tuple[LiveTask, str] | None:
        """Return the task that a prompt follows and the case that it asks about."""
        self._look_at_file()
        found = self._matcher.find(prompt)
        return (self.tasks[found.task], found.text) if found else None

    async def passed(self, request: GatewayRequest, answer: UpstreamAnswer) -> None:
        """Compare what the upstream answered to a request of a task with the small model's draft."""
        ruling = self._waiting.pop(request.id, None)
        if ruling is None or not 200 <= answer.status < 300:
            return  # a request that was refused is no evidence of anything
        if isinstance(ruling, _Missed):
            ruling.task.missed(ruling.tenant)
            return
        response = read_response(answer.headers, answer.body)
        if response is None:
            return
        named = ruling.asked._replace(id=str(response.get("id") or request.id))
        await ruling.task.passed(ruling._replace(asked=named), response, latency_ms=answer.latency_ms)

    async def aclose(self) -> None:
        """Finish what is under way and free all models."""
        await self._background.wait()
        await self.credentials.aclose()
        for task in self.tasks.values():
            await task.aclose()
        self._ledger.close()

    async def _reply(self, ruling: Ruling) -> GatewayResponse:
        task, asked, answer = ruling.task, ruling.asked, ruling.answer
        noted = await task.answered(ruling)
        assert answer is not None
        reply = Reply(
            id=asked.id,
            route=asked.route,
            body=asked.body,
            answer=answer,
            usage=Usage(noted.prompt_tokens, noted.completion_tokens),
            model=task.source.teacher.model or str(asked.body.get("model")),
            fingerprint=system_fingerprint(noted.answered_by),
            created=int(time.time()),
        )
        headers = [(b"content-type", reply.content_type.encode()), *_headers(task, noted)]
        return GatewayResponse(200, headers, b"".join(reply.chunks()))

    def _await_upstream(self, request: GatewayRequest, what: Ruling | _Missed) -> None:
        request.watched = True
        self._waiting[request.id] = what
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def _look_at_file(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < self._interval_s:
            return
        self._looked_at = now
        if (stamp := self._file.stamp) != self._stamp:
            self._stamp = stamp
            self._background.start(self._follow())

    async def _follow(self) -> None:
        replaced = await asyncio.to_thread(self._loaded)
        for task in self._use(replaced):
            await asyncio.sleep(self._interval_s)  # requests that are under way still use it
            await task.aclose()

    def _loaded(self) -> dict[str, LiveTask]:
        """Return the tasks of the file, those that have not changed as they are."""
        wanted = self._file.read()
        if not wanted:
            return {}
        from smallfirst.gateway.takeover.live_task import LiveTask

        found: dict[str, LiveTask] = {}
        for name, taken in wanted.items():
            running = self.tasks.get(name)
            if running is not None and running.serves == taken.serves:
                running.follow(taken)
                found[name] = running
                continue
            if self._failed.get(name) == taken:
                continue
            try:
                given = (self._file.update, self._one_tenant, self._prices)
                found[name] = LiveTask.load(taken, self._ledger, *given)
            except Exception as error:
                self._failed[name] = taken
                _log.error("%s is not served, its requests pass: %s", name, error)
                if running is not None:
                    found[name] = running
        return found

    def _use(self, tasks: dict[str, LiveTask]) -> list[LiveTask]:
        """Serve these tasks from now on; return those that are no longer served."""
        before, self.tasks = self.tasks, tasks
        self._matcher = TaskMatcher({name: task.source for name, task in tasks.items()})
        return [task for name, task in before.items() if tasks.get(name) is not task]


def _written(ruling: Ruling) -> str:
    assert ruling.answer is not None
    return ruling.answer.text + "".join(call.arguments for call in ruling.answer.tool_calls)


def _headers(task: LiveTask, completion: Completion) -> list[tuple[bytes, bytes]]:
    named = {"task": task.taken.task, "model": completion.answered_by, "certified": "true"}
    return raw_headers({f"x-smallfirst-{name}": text for name, text in named.items()})


def _asking_again(request: GatewayRequest, upstreams: Upstreams) -> Callable[[], Awaitable[tuple[int, Json | None]]]:
    """Return the function that sends a request to its upstream once more, not streamed."""

    async def ask() -> tuple[int, Json | None]:
        body = {key: value for key, value in (request.json() or {}).items() if key not in ("stream", "stream_options")}
        try:
            answer = await upstreams.ask(dataclasses.replace(request, body=json.dumps(body).encode()))
        except UpstreamFailed as failure:
            return failure.status, None
        return answer.status, read_response(answer.headers, answer.body)

    return ask
