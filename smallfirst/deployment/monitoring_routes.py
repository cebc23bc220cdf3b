"""Routes and metrics for Routers after go-live.

A user gives feedback on answers to keys of the same owner; it is kept. It never changes a bound, since people report
wrong answers more readily than right ones. A judge's first verdict does, on an answer that chance drew.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.deployment.review_queue import QueueRoutes, mark
from smallfirst.deployment.second_look import CAUSE
from smallfirst.ledger.ledger import Ledger, LedgerUnavailable
from smallfirst.ledger.rows import FeedbackRow, StateRow, standing
from smallfirst.models.protocol import Completion, Request
from smallfirst.routing.monitor import not_watched
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.plugins import Plugin, PluginRequest, PluginRoute

STATES = ("live", "shadow", "fallback")
_MAX_BODY_BYTES = 64 * 1024
MAX_VERDICTS = 16
"""Verdicts of users, and of judges, that are kept on one answer: they may disagree, but must not fill the ledger."""


class MonitoringRoutes(Plugin):
    """The plugin over the Routers of one server."""

    def __init__(self, routers: Sequence[AuditedRouter], ledger: Ledger) -> None:
        self.by_task = {router.name: router for router in routers}
        self._ledger, self._queue = ledger, QueueRoutes(self.by_task, ledger)
        self._answers: Counter[tuple[str, str]] = Counter()
        self._cost_usd: Counter[str] = Counter()
        self.collectors = (_RouterMetrics(self),)
        self.routes = (
            PluginRoute("POST", "/v1/feedback", self._feedback, "user"),
            PluginRoute("GET", "/v1/routers", self._states),
            *self._queue.routes,
        )

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        route = completion.route
        if route is None:
            return
        self._answers[route.task, route.stage] += 1
        self._cost_usd[route.task] += completion.cost_usd  # type: ignore[assignment]  # a Counter holds any number
        if router := self.by_task.get(route.task):
            router.answered(id, request, completion)

    async def _feedback(self, call: PluginRequest) -> dict[str, Any]:
        body = _checked(await call.json(max_bytes=_MAX_BODY_BYTES))
        row = await asyncio.to_thread(self._ledger.get, body["id"])
        if row is None or row.status != 200 or not (call.may_judge or row.owner == call.caller):
            raise ApiError(404, "There is no answer with this id.", param="id", code="answer_not_found")
        implied = {} if body.get("verdict") else await self._queue.verdict(row, body["answer"])
        known = {"at": datetime.now(UTC), "caller": call.caller, "name": call.caller_name, "judge": call.may_judge}
        feedback = FeedbackRow.model_validate({**body, **implied, **known})
        earlier = await asyncio.to_thread(self._ledger.entries, FeedbackRow, id=feedback.id)
        if sum(one.judge == feedback.judge for one in earlier) >= MAX_VERDICTS:
            raise ApiError(409, f"There are {MAX_VERDICTS} verdicts on this answer already.", param="id", code="judged")
        router = self.by_task.get(row.task or "")
        if router is None:
            await self._ledger.append_async(feedback)
        else:
            feedback = await router.feedback(feedback)
        told = {"object": "feedback", "id": row.id, "verdict": feedback.verdict, "audit": feedback.counted}
        if router is not None and feedback.counted:
            told["live_error"] = router.monitor.live_error.model_dump()
        replaced = [mark(one) for one in standing(earlier) if one.judge]
        return told | ({"replaces": replaced[0] if replaced else None} if feedback.judge else {})

    async def refresh(self) -> None:
        """Take over what other processes have written, as far as the ledger can be read."""
        for router in list(self.by_task.values()):
            with suppress(LedgerUnavailable):
                await router.follow()

    async def _states(self, _: PluginRequest) -> dict[str, Any]:
        await self.refresh()
        return await asyncio.to_thread(self._status_of_all)

    def _status_of_all(self) -> dict[str, Any]:
        return {"object": "list", "data": [_status(router) for router in list(self.by_task.values())]}


class _RouterMetrics(Collector):
    """The Routers' metrics, read from their monitors on every scrape, so that they cannot disagree."""

    def __init__(self, routes: MonitoringRoutes) -> None:
        self._routes = routes

    def collect(self) -> Iterator[Metric]:
        families: list[Metric] = []
        family = functools.partial(_family, families)
        count, gauge = CounterMetricFamily, GaugeMetricFamily
        answers = family(count, "answers", "Answers by task and stage.", "stage")
        for (task, stage), n in sorted(self._routes._answers.items()):
            answers([task, stage], n)
        cost = family(count, "cost_usd", "What the answers cost.")
        for task, usd in sorted(self._routes._cost_usd.items()):
            cost([task], usd)
        state = family(gauge, "state", "1 for the state a task is in.", "state")
        audits = family(gauge, "audits", "Audits the live error rests on.")
        error = family(gauge, "live_error", "Live error of kept answers, valid at any time.", "end")
        what = "Quantities that are watched, in the guarantee's unit, with their limit."
        watched = family(gauge, "watched", what, "quantity", "guaranteed", "end")
        alarms = family(count, "alarms", "Alarms by cause.", "cause")
        for task, router in self._routes.by_task.items():
            found = router.monitor.live_error
            for name in STATES:
                state([task, name], float(name == router.monitor.state))
            audits([task], found.n)
            for end in ("value", "low", "high"):
                error([task, end], getattr(found, end))
            for watch, one in zip(router.monitor.watches, _watched(router), strict=True):
                for end in ("limit", "value", "low", "high"):
                    watched([task, one["quantity"], str(not watch.quantity.by_gate).lower(), end], one[end])
            for cause, n in Counter(change.cause for change in router.monitor.alarms).items():
                alarms([task, cause], n)
        yield from families


def _family(families: list[Metric], kind: type[Any], name: str, what: str, *labels: str) -> Callable[..., None]:
    """Append a family of metrics by task and `labels`, and return what adds a metric to it."""
    families.append(made := kind(f"smallfirst_{name}", what, labels=["task", *labels]))
    return made.add_metric  # type: ignore[no-any-return]


def _watched(router: AuditedRouter) -> list[dict[str, Any]]:
    """Return each quantity under watch with its limit and its mean so far, valid at any time."""
    monitor, in_force = router.monitor, bool(router.standing.promise)
    found = []
    for watch in monitor.watches:
        quantity = watch.quantity
        found.append(
            {
                "quantity": quantity.name,
                "in_words": quantity.words,
                "guaranteed": not quantity.by_gate and in_force,
                "found_broken": watch.exceeded,
                "limit": quantity.limit,
                **monitor.mean(watch).model_dump(),
            }
        )
    return found


def _status(router: AuditedRouter) -> dict[str, Any]:
    found, standing = router.monitor.live_error, router.standing
    states = router.ledger.entries(StateRow, task=router.name, limit=50)
    return {
        "task": router.name,
        "state": router.monitor.state,
        "why": next((s.why for s in reversed(states) if s.before != s.after), ""),
        "guarantee": standing.promise,
        "standing": standing.model_dump(),
        "second_look": next((s.why for s in reversed(states) if s.cause == CAUSE), ""),
        "outcome": router.outcome.model_dump(mode="json"),
        "watched": _watched(router),
        "not_watched": list(not_watched(router.router.certificate, router.auditing.judge)),
        "live_error": found.model_dump(),
        "audit_share": router.monitor.audit_share,
        "judged_by": router.auditing.judge,
        "changes": [{"at": s.at.isoformat(), "before": s.before, "after": s.after, "why": s.why} for s in states[-5:]],
    }


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(body) - {"id", "verdict", "answer"})
    if unknown:
        raise ApiError(400, f'Unknown field: "{unknown[0][:64]}".', param=unknown[0][:64], code="unknown_parameter")
    id, verdict, answer = (body.get(name) for name in ("id", "verdict", "answer"))
    if not isinstance(id, str) or not 1 <= len(id) <= 128:
        raise ApiError(400, "`id` is the id of a response, such as chatcmpl-….", param="id")
    if verdict not in ("right", "wrong") and not (verdict is None and answer is not None):
        raise ApiError(400, '`verdict` is "right" or "wrong".', param="verdict")
    if answer is not None and (not isinstance(answer, str) or len(answer) > 32_768):
        raise ApiError(400, "`answer` is the right answer as text, at most 32,768 characters.", param="answer")
    return body
