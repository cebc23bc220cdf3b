"""What the server shows and takes in about Routers after go-live.

    POST /v1/feedback   {"id": "chatcmpl-…", "verdict": "right" or "wrong", "answer": "…"}
    GET  /v1/routers    each task's state, live error, promise and alarms
    GET  /v1/queue      answers that wait for a person: abstentions, and audits that a person judges
    GET  /metrics       the same for Prometheus

Feedback is kept whoever gives it; it moves a bound only where chance had chosen the answer for an audit, since people
tell of wrong answers more readily than of right ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.models.protocol import Completion, Request
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, FeedbackRow, LedgerRow, StateRow
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.plugins import Plugin, PluginRequest, PluginRoute

STATES = ("live", "shadow", "drift", "fallback")
_MAX_BYTES = 64 * 1024
MAX_VERDICTS = 16
"""Verdicts that are kept on one answer: people may disagree, but not fill the ledger."""
_MOST_SHOWN = 200
"""Entries of the queue that are listed at once."""


class MonitoringRoutes(Plugin):
    """The extension over the Routers of one server."""

    def __init__(self, routers: Sequence[AuditedRouter], ledger: Ledger) -> None:
        self.by_task = {live.name: live for live in routers}
        self._ledger = ledger
        self._answers: Counter[tuple[str, str]] = Counter()
        self._cost_usd: Counter[str] = Counter()
        self.collectors = (_Figures(self),)
        self.routes = (
            PluginRoute("POST", "/v1/feedback", self._feedback, "user"),
            PluginRoute("GET", "/v1/routers", self._states),
            PluginRoute("GET", "/v1/queue", self._queue),
        )

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """The answer is counted, and its Router told of it."""
        route = completion.route
        if route is None:
            return
        self._answers[route.task, route.stage] += 1
        self._cost_usd[route.task] += completion.cost_usd  # type: ignore[assignment]  # a Counter holds any number
        if live := self.by_task.get(route.task):
            live.answered(id, request, completion)

    async def _feedback(self, call: PluginRequest) -> dict[str, Any]:
        said = _parse(await call.json(max_bytes=_MAX_BYTES), call.caller)
        row = await asyncio.to_thread(self._ledger.get, said.id)
        if row is None or row.status != 200:
            raise ApiError(404, "There is no answer with this id.", param="id", code="answer_not_found")
        earlier = await asyncio.to_thread(self._ledger.entries, FeedbackRow, id=said.id)
        if len(earlier) >= MAX_VERDICTS:
            raise ApiError(409, f"There are {MAX_VERDICTS} verdicts on this answer already.", param="id", code="judged")
        live = self.by_task.get(row.task or "")
        if live is None:
            await self._ledger.append_async(said)
        else:
            await live.feedback(said)
        return {"object": "feedback", "id": said.id, "verdict": said.verdict, "audit": bool(live and row.audited)}

    async def _states(self, _: PluginRequest) -> dict[str, Any]:
        return {"object": "list", "data": [_shown(live) for live in self.by_task.values()]}

    async def _queue(self, _: PluginRequest) -> dict[str, Any]:
        waiting = await asyncio.to_thread(self._waiting)
        data = [{"id": r.id, "task": r.task, "at": r.at.isoformat(), "stage": r.stage} for r in waiting[:_MOST_SHOWN]]
        return {"object": "list", "data": data, "has_more": len(waiting) > _MOST_SHOWN}

    def _waiting(self) -> list[LedgerRow]:
        """Answers for a person that nobody has judged, oldest first."""
        judged = {f.id for f in self._ledger.entries(FeedbackRow)}
        judged |= {a.id for a in self._ledger.entries(AuditRow) if a.judged_by == "person"}
        by_people = {live.name for live in self.by_task.values() if live.auditing.judge == "person"}
        rows = [*self._ledger.entries(LedgerRow, stage="person"), *self._ledger.entries(LedgerRow, audited="1")]
        wanted = {
            row.id: row
            for row in rows
            if row.id not in judged and (row.stage == "person" or (row.task in by_people and row.certified))
        }
        return sorted(wanted.values(), key=lambda row: row.at)


class _Figures(Collector):
    """The Routers' figures as Prometheus reads them; nothing is counted twice, so nothing can disagree."""

    def __init__(self, house: MonitoringRoutes) -> None:
        self._house = house

    def collect(self) -> Iterator[Metric]:
        house = self._house
        answers = CounterMetricFamily("smallfirst_answers", "Answers by task and stage.", labels=["task", "stage"])
        for (task, stage), n in sorted(house._answers.items()):
            answers.add_metric([task, stage], n)
        cost = CounterMetricFamily("smallfirst_cost_usd", "What the answers cost.", labels=["task"])
        for task, usd in sorted(house._cost_usd.items()):
            cost.add_metric([task], usd)
        state = GaugeMetricFamily("smallfirst_state", "1 for the state a task is in.", labels=["task", "state"])
        audits = GaugeMetricFamily("smallfirst_audits", "Audits the live error rests on.", labels=["task"])
        error = GaugeMetricFamily(
            "smallfirst_live_error", "Live error of kept answers, valid at any time.", labels=["task", "end"]
        )
        limit = GaugeMetricFamily("smallfirst_error_limit", "Error from which the promise is broken.", labels=["task"])
        alarms = CounterMetricFamily("smallfirst_alarms", "Alarms by cause.", labels=["task", "cause"])
        for task, live in house.by_task.items():
            found = live.monitor.live_error
            for name in STATES:
                state.add_metric([task, name], float(name == live.monitor.state))
            audits.add_metric([task], found.n)
            for end in ("value", "low", "high"):
                error.add_metric([task, end], getattr(found, end))
            limit.add_metric([task], live.monitor.limit)
            for cause, n in Counter(change.cause for change in live.monitor.alarms).items():
                alarms.add_metric([task, cause], n)
        yield from (answers, cost, state, audits, error, limit, alarms)


def _shown(live: AuditedRouter) -> dict[str, Any]:
    found = live.monitor.live_error
    states = live.ledger.entries(StateRow, task=live.name, limit=5)
    return {
        "task": live.name,
        "state": live.monitor.state,
        "why": states[-1].why if states else "",
        "promise": live.router.guarantee,
        "limit": live.monitor.limit,
        "live_error": found.model_dump(),
        "audit_share": live.monitor.audit_share,
        "judged_by": live.auditing.judge,
        "changes": [{"at": s.at.isoformat(), "before": s.before, "after": s.after, "why": s.why} for s in states],
    }


def _parse(body: dict[str, Any], caller: str) -> FeedbackRow:
    """The feedback in a body. Raises WireError 400 naming the field at fault."""
    unknown = sorted(set(body) - {"id", "verdict", "answer"})
    if unknown:
        raise ApiError(400, f'Unknown field: "{unknown[0][:64]}".', param=unknown[0][:64], code="unknown_parameter")
    id, verdict, answer = body.get("id"), body.get("verdict"), body.get("answer")
    if not isinstance(id, str) or not 1 <= len(id) <= 128:
        raise ApiError(400, "`id` is the id of a response, such as chatcmpl-….", param="id")
    if verdict not in ("right", "wrong"):
        raise ApiError(400, '`verdict` is "right" or "wrong".', param="verdict")
    if answer is not None and (not isinstance(answer, str) or len(answer) > 32_768):
        raise ApiError(400, "`answer` is the right answer as text, at most 32,768 characters.", param="answer")
    return FeedbackRow(id=id, at=datetime.now(UTC), verdict=verdict, answer=answer, caller=caller)
